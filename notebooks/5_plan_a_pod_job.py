# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Planning a pod job
# Before a pod is rented: does the run fit, what will its chips tell each other, how fast can it be? The planner compiles
# the very step that training runs, for a machine that is not there, and reads the answers off the program. This
# notebook plans a tiny model, a minute on two CPU cores; a plan of a 7B model takes longer, and is the same call.

# %%
# In Colab: clones and installs. Elsewhere: the checkout, or what is installed.
import os
import pathlib
import subprocess
import sys

REPOSITORY = ""  # Colab only: the git URL of vilau_jax

if pathlib.Path("../vilau_jax/api.py").exists():  # the kernel started in notebooks/
  os.chdir("..")
elif "google.colab" in sys.modules and pathlib.Path("vilau_jax/setup.py").exists():
  os.chdir("vilau_jax")  # the session was restarted
elif "google.colab" in sys.modules and not pathlib.Path("setup.py").exists():
  assert REPOSITORY, "fill in REPOSITORY, the git URL from which vilau_jax is cloned"
  subprocess.run(["git", "clone", "-q", REPOSITORY, "vilau_jax"], check=True)
  os.chdir("vilau_jax")
  subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", ".[plan]"], check=True)
sys.path.insert(0, os.getcwd())

os.environ["JAX_PLATFORMS"] = "cpu"  # no device of this machine takes part

import jax
import matplotlib.pyplot as plt
import numpy as np

print(jax.__version__, jax.devices())

# %% [markdown]
# ## The run
# The paper's pre-training with a small model in it. All devices share weights and optimizer (`fsdp`); a row of the
# batch lives on one device.

# %%
from configs import pretrain_7b_256
from vilau_jax.train import defaults

PRESET = os.environ.get("VILAU_PRESET", "tiny")  # the paper's: "vilau_7b_256", on v5e:16x16
MACHINES = os.environ.get("VILAU_MACHINES", "v5e:2x2 v5e:4x4").split()  # also v5p:2x2x2, h100:1x8
config = pretrain_7b_256.get_config()
if PRESET != config.model.preset:
  config.model.preset = PRESET
  config.batch_size = 16
  config.data.row.update(dict(length=256, slots=160, targets=128))
defaults.check(config)
print(config.mesh)

# %% [markdown]
# ## The plans
# Nothing is allocated and nothing runs: XLA compiles for the chip, and the planner counts what the program holds,
# multiplies, moves and sends. On a command line: `vilau plan --config=configs/pretrain_7b_256.py --topology=v5e:16x16`.

# %%
from rich.console import Console

from vilau_jax.plan import compiling, report, topology

plans = {name: compiling.make_plan(config, topology.parse(name)) for name in MACHINES}
console = Console(width=100, force_jupyter=False)
report.show(plans[MACHINES[0]], config.steps * config.batch_size, console)

# %% [markdown]
# ## More chips
# Four times the chips hold a quarter of the weights and of the work each. What does not shrink is what they tell each
# other: the weights are still gathered whole in every step, so a small model on many chips waits for the network.

# %%
results = [plans[name].result for name in MACHINES]
labels = [f"{name}\n{plans[name].mesh.size} chips" for name in MACHINES]
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3))
bottom = np.zeros(len(MACHINES))
for part in ("parameters", "optimizer", "temporaries"):
  values = np.array([r["memory_gib_per_device"][part] * 1024 for r in results])
  left.bar(labels, values, 0.5, bottom=bottom, label=part)
  bottom += values
left.set(ylabel="MiB a device", title="memory")
left.legend(fontsize=8)
for i, part in enumerate(("compute", "memory", "network")):
  values = [r["roofline"][f"{part}_s"] * 1e6 for r in results]
  right.bar(np.arange(len(MACHINES)) + 0.25 * (i - 1), values, 0.25, label=part)
right.set_xticks(range(len(MACHINES)), labels)
right.set(ylabel="microseconds a step, at peak", title="which is the longest?")
right.legend(fontsize=8)
figure.tight_layout()
plt.show()

# %%
chips = [plans[name].mesh.size for name in MACHINES]
for r, count in zip(results, chips):
  assert r["fits"] and 1 < r["flops_per_device"]["ratio"] < 2  # rematerialisation computes twice
  longest = max(r["roofline"][f"{part}_s"] for part in ("compute", "memory", "network"))
  assert r["roofline"]["step_s"] == longest
  # Every weight is somewhere, and nearly all are shared: what a chip holds, times chips, is the model.
  held = sum(r["memory_gib_per_device"][part] for part in ("parameters", "optimizer"))
  whole = sum(results[0]["memory_gib_per_device"][part] for part in ("parameters", "optimizer"))
  assert 1 <= held * count / (whole * chips[0]) < 1.1
work = [r["flops_per_device"]["model"] * count for r, count in zip(results, chips)]
np.testing.assert_allclose(work, work[0])
print({name: r["roofline"]["limit"] for name, r in zip(MACHINES, results)})
