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
# # Fine-tuning on your own pictures with LoRA
# A folder of pictures with captions becomes records, gets the codes of the model's tower, and adapters of low rank
# beside the frozen weights learn to draw them. Merged into the weights, they leave a model like any other.

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
  if pathlib.Path("/dev/nvidia0").exists():
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    accelerator = ["jax[cuda13]" if int(driver.split(".")[0]) >= 580 else "jax[cuda12]"]
  elif any(pathlib.Path("/dev").glob("accel*")) or pathlib.Path("/dev/vfio/0").exists():
    accelerator = ["jax[tpu]"]
  else:
    accelerator = []
  install = [sys.executable, "-m", "pip", "install", "-q", "-e", ".[quickstart]", *accelerator]
  subprocess.run(install, check=True)
sys.path.insert(0, os.getcwd())

import jax
import matplotlib.pyplot as plt
import numpy as np

import vilau_jax

print(jax.__version__, jax.devices())


def show(pictures, titles=None, columns=6, width=10):
  """Pictures in rows."""
  columns = min(columns, len(pictures))
  rows = -(-len(pictures) // columns)
  figure, axes = plt.subplots(rows, columns, figsize=(width, width / columns * rows * 1.15))
  for i, axis in enumerate(np.ravel(axes)):
    axis.axis("off")
    if i < len(pictures):
      axis.imshow(pictures[i], interpolation="nearest")
      axis.set_title("" if titles is None else titles[i], fontsize=9)
  figure.tight_layout()
  plt.show()


# %%
BASE = pathlib.Path(os.environ.get("VILAU_MODEL", "runs/quickstart/finetune"))
FOLDER = os.environ.get("VILAU_FOLDER", "")  # NAME.png beside NAME.txt; empty: pictures made here
WORK = pathlib.Path(os.environ.get("VILAU_WORK", "runs")).absolute() / "own"
STEPS = int(os.environ.get("VILAU_STEPS", "40"))
if "VILAU_MODEL" not in os.environ and not (BASE.parent / "report.html").exists():
  subprocess.run(["bash", "launch/quickstart.sh"], check=True)  # a quarter of an hour and more
model = vilau_jax.load(BASE)
side = model.config.tower.image_size

if not FOLDER:  # gray scenes, which the base model has never seen
  from vilau_jax.data import media
  from vilau_jax.data.formats import emoji

  FOLDER = WORK / "pictures"
  for i, scene in enumerate(emoji.pictures(64, "train", 7)):
    gray = emoji.render(scene, side).mean(axis=-1).astype(np.uint8)
    media.write_image(gray, FOLDER / f"{i:03}.png")
    (FOLDER / f"{i:03}.txt").write_text(f"an old photo of {emoji.caption(scene)}")

# %% [markdown]
# ## Folder -> records -> codes

# %%
from vilau_jax.cli import main

assert (
  main.run(["data", "import", "folder", f"--source={FOLDER}", f"--output={WORK / 'records'}"]) == 0
)
tokenize = [f"--model={BASE}", f"--records={WORK / 'records'}", f"--output={WORK / 'codes'}"]
assert main.run(["tokenize", *tokenize]) == 0

from vilau_jax.data import inspect
from vilau_jax.data.records import Records

records = Records(WORK / "codes")
print(inspect.summary(Records(WORK / "records"), samples=2))
plt.figure(figsize=(10, 4))
plt.imshow(inspect.sheet(Records(WORK / "records"), 16))
plt.axis("off")
plt.show()

# %% [markdown]
# ## Train adapters
# The config is the quickstart's fine-tuning, with our records and our model in it, and with adapters instead of
# weights: every projection of the language model, the projector and the depth transformer gets two matrices of rank
# 8, and nothing else learns. `configs/lora_7b_v5e8.py` is the same for the 7B model, `configs/qlora_7b_gpu.py` with
# its projections in 4 bits.

# %%
from absl import logging
from ml_collections import ConfigDict

from configs import quickstart_finetune
from vilau_jax.train.loop import train

RANK = 8
config = quickstart_finetune.get_config()
config.init_from = dict(whole=str(BASE))
config.steps, config.batch_size = STEPS, 4
config.model.preset = model.config.name
config.data.mixture = (dict(path=str(WORK / "codes"), form="t2i", weight=1.0),)
config.lora = dict(rank=RANK, alpha=2.0 * RANK, targets=("llm", "projector", "depth"), base="")
config.optim.freeze = ()
config.optim.peak_lr = 5e-3  # more than whole weights bear: adapters begin at zero
config.log.every = max(1, STEPS // 8)
logging.set_verbosity(logging.ERROR)
result = train(
  ConfigDict(config.copy_and_resolve_references()).lock(), WORK / "tuned", devices=jax.devices()[:1]
)

# %%
assert main.run(["figures", f"--run={WORK / 'tuned'}", f"--output={WORK / 'figures'}"]) == 0
plt.figure(figsize=(7, 5))
plt.imshow(plt.imread(WORK / "figures" / "losses_tuned.png"))
plt.axis("off")
plt.show()

import json

lines = [json.loads(line) for line in (WORK / "tuned" / "metrics.jsonl").read_text().splitlines()]
losses = [line["loss"] for line in lines if "loss" in line]
assert np.mean(losses[-3:]) < losses[0], losses

# %% [markdown]
# ## Merge
# `vilau convert merge` adds the adapters to what they stand beside. What is written needs neither the run nor the
# base, and `vilau convert export` takes it: the whole to VILA-U's format if the base came from a release (that
# format has no place for the quickstart model's extensions), the language model alone to Hugging Face's in any case.

# %%
import shutil

for name in ("merged", "llama"):
  shutil.rmtree(WORK / name, ignore_errors=True)  # of an earlier run of this notebook
merge = [f"--model={WORK / 'tuned'}", f"--output={WORK / 'merged'}"]
assert main.run(["convert", "merge", *merge]) == 0
export = [f"--model={WORK / 'merged'}", f"--output={WORK / 'llama'}"]
assert main.run(["convert", "export", "llama", *export]) == 0
print(sorted(path.name for path in (WORK / "llama").iterdir()))

# %% [markdown]
# What has changed is of rank 8, in the parts that had adapters; all else is the base, bit for bit.

# %%
from flax import traverse_util

from vilau_jax import checkpoint

before, after = (
  traverse_util.flatten_dict(checkpoint.load_model(path).variables["params"], sep="/")
  for path in (BASE, WORK / "merged")
)
changed = [name for name in before if (before[name] != after[name]).any()]
print(f"{len(changed)} of {len(before)} tensors have changed")
assert {name.split("/")[0] for name in changed} == {"llm", "projector", "depth"}
name = next(name for name in changed if name.endswith("mlp/down_proj/kernel"))
spectrum = np.linalg.svd((after[name] - before[name])[0], compute_uv=False)
assert spectrum[RANK - 1] > 100 * spectrum[RANK], spectrum  # beyond it is rounding
print(name, "changes by singular values", spectrum[: RANK + 2])

# %% [markdown]
# ## Before and after

# %%
tuned = vilau_jax.load(WORK / "merged")
prompt = records[0]["caption"]
print(prompt)
pictures = [m.generate_images(prompt, num_images=3, seed=0) for m in (model, tuned)]
show(np.concatenate(pictures), ["before"] * 3 + ["after"] * 3)
# The workdir draws the same: it is merged when it is opened.
again = vilau_jax.load(WORK / "tuned").generate_images(prompt, num_images=3, seed=0)
np.testing.assert_array_equal(again, pictures[1])
assert tuned.identity() != model.identity() and tuned.tower_id() == model.tower_id()
