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
# # A small VILA-U from the inside
# Trains the quickstart's model, if it is not there yet (15 to 30 minutes on two CPU cores), and looks into every
# stage: what codes keep, which codes are used, what the language model reads, what the depth transformer
# attends to, and what guidance does.

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
RUN = pathlib.Path(os.environ.get("VILAU_RUN", "runs/quickstart"))  # of launch/quickstart.sh
if "VILAU_RUN" not in os.environ and not (RUN / "report.html").exists():  # goes on where it was
  subprocess.run(["bash", "launch/quickstart.sh", f"--output={RUN}"], check=True)
model = vilau_jax.load(RUN / "finetune")
print(model.config.name, model.config.tower.image_size, "px")

# %% [markdown]
# ## The tower: pictures as codes
# Every position of the grid has R codes; each one refines what the ones before it left over.

# %%
from vilau_jax.data.records import Records

records = Records(RUN / "data" / "emoji" / "test_scenes")
some = [records[i] for i in range(min(12, len(records)))]
codes = model.encode_images([record["images"][0] for record in some])
depth = codes.shape[-1]
steps = [model.decode_codes(codes[..., :r]) for r in range(1, depth + 1)]
from vilau_jax.data import media

squares = np.stack([media.to_square(r["images"][0], model.config.tower.image_size) for r in some])
psnr = [10 * np.log10(255**2 / np.mean((squares - step.astype(float)) ** 2)) for step in steps]
rows = [squares, *steps]
titles = ["picture"] + [f"{r} codes, {p:.1f} dB" for r, p in enumerate(psnr, 1)]
show([row[i] for row in rows for i in range(6)], [t for t in titles for _ in range(6)])
alone = model.encode_images([some[0]["images"][0]])
np.testing.assert_array_equal(alone[0], codes[0])  # a picture's codes do not depend on its batch

# %%
entries = model.config.tower.quantizer.entries
figure, axes = plt.subplots(1, depth, figsize=(10, 2), sharey=True)
for d, axis in enumerate(axes):
  counts = np.sort(np.bincount(codes[..., d].ravel(), minlength=entries))[::-1]
  axis.plot(counts[counts > 0])
  axis.set_title(f"depth {d + 1}: {np.count_nonzero(counts)} of {entries} used", fontsize=9)
axes[0].set_ylabel("times used")
plt.show()

# %% [markdown]
# ## The language model: what it reads
# A packed row: text, pictures as slots with their codes, and what is supervised.

# %%
from vilau_jax.data import inspect

coded = Records(RUN / "codes" / "emoji" / "train_scenes")
row = inspect.first_row(coded, "t2i", model.tokenizer, model.runtime.settings, 96)
plt.figure(figsize=(12, 3))
plt.imshow(inspect.draw_row(row, model.tokenizer))
plt.axis("off")
plt.show()

# %% [markdown]
# ## The depth transformer: which earlier code a code looks at
# It writes the R codes of a position one after the other. Input 0 is the language model's hidden state, input d
# the sum of the codewords before depth d.

# %%
import flax.linen as nn
import jax.numpy as jnp

from vilau_jax.layers.dense import HeadsIn
from vilau_jax.models import depth as depth_transformer
from vilau_jax.models.vilau import previous

engine, config = model.runtime.engine, model.config
batch = {
  k: row[k][None] for k in ("tokens", "segment_ids", "positions", "visual_position", "codes")
}
real = np.flatnonzero(row["visual_position"] >= 0)
hidden = previous(engine.hidden(batch), batch["visual_position"])[0, real]
chosen = row["codes"][real]
module = depth_transformer.DepthTransformer(config.depth, config.tower.quantizer)
seen = {"query": [], "key": []}


def watch(call, args, kwargs, context):
  out = call(*args, **kwargs)
  if isinstance(context.module, HeadsIn) and context.module.name in seen:
    seen[context.module.name].append(np.asarray(out, np.float32))
  return out


caches = depth_transformer.init_cache(config.depth, config.tower.quantizer, len(real))
variables, total = {"params": engine.params["depth"]}, 0.0
with nn.intercept_methods(watch):
  for d in range(depth):
    if d:
      book = engine.codebook[0 if config.tower.quantizer.shared else d - 1]
      total = total + book[chosen[:, d - 1]]
      token = module.apply(variables, config.code_scale * total, method="from_codes")
    else:
      token = module.apply(variables, jnp.asarray(hidden), method="from_hidden")
    _, caches = module.apply(variables, token, d, caches, method="step")
blocks = config.depth.depth
q, k = (
  np.stack(seen[name]).reshape(depth, blocks, len(real), config.depth.heads, -1) for name in seen
)
scores = np.einsum("dbnhc,ebnhc->bhnde", q, k) / q.shape[-1] ** 0.5
scores = np.where(np.tril(np.ones((depth, depth), bool)), scores, -np.inf)
weights = np.exp(scores - scores.max(-1, keepdims=True))
weights = (weights / weights.sum(-1, keepdims=True)).mean(axis=(1, 2))  # over heads, positions
figure, axes = plt.subplots(1, blocks, figsize=(3 * blocks, 3), squeeze=False)
for b, axis in enumerate(axes[0]):
  axis.imshow(weights[b], vmin=0, vmax=1)
  axis.set(title=f"block {b + 1}", xlabel="reads input", ylabel="writes code")
plt.show()
np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-4)

# %% [markdown]
# ## Guidance
# The same seed with more and more guidance by the prompt.

# %%
prompt, scales = "two foxes on a blue background", (1.0, 2.0, 3.0, 5.0)
drawn = [model.generate_images(prompt, num_images=3, cfg_scale=scale, seed=1) for scale in scales]
show(np.concatenate(drawn), [f"CFG {s:g}" for s in scales for _ in range(3)], columns=3, width=6)
again = model.generate_images(prompt, cfg_scale=3.0, seed=2)
np.testing.assert_array_equal(again[0], drawn[2][1])  # a picture depends on its seed alone
