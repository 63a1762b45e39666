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
# # Using a VILA-U release
# Imports PyTorch weights, talks about pictures, draws and animates. A 7B release in bfloat16 needs 16 GB for its
# weights; in int8, which a device with less than 24 GB gets (or `VILAU_QUANTIZE=int8`), about half of that.

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
  install = [sys.executable, "-m", "pip", "install", "-q", "-e", ".[quickstart,hub]", *accelerator]
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
RELEASE = os.environ.get("VILAU_RELEASE", "hf://mit-han-lab/vila-u-7b-256")  # or a folder
MODEL = pathlib.Path(os.environ.get("VILAU_IMPORTED", "models/vila_u"))
from vilau_jax import convert

if not MODEL.exists():
  report = convert.import_checkpoint("vila-u", RELEASE, MODEL)
  print(report.table())
print(convert.verify(MODEL, RELEASE).table())  # raises if a bit differs
memory = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", float("inf"))  # CPUs do not say
quantize = os.environ.get("VILAU_QUANTIZE") or ("int8" if memory < 24e9 else None)
model = vilau_jax.load(MODEL, quantize=quantize)

# %% [markdown]
# ## Chat

# %%
from vilau_jax.data.formats import emoji

scene = next(emoji.pictures(1, "test", 0))
picture = emoji.render(scene, 240)
show([picture], width=3)
question = [vilau_jax.Image(picture), "What is in the picture?"]
pieces = []
for piece in model.stream_text([question], max_new_tokens=32):
  print(piece, end="", flush=True)
  pieces.append(piece)
assert "".join(pieces).strip() == model.generate_text([question], max_new_tokens=32)[0]

# %% [markdown]
# ## Draw, and watch

# %%
previews = []


def watch(progress):
  if progress.done * 2 == progress.total:
    previews.append(progress.preview()[0])


pictures = model.generate_images("a fox in the snow", num_images=2, seed=3, on_progress=watch)
show([*previews, *pictures], ["half-way", "seed 3", "seed 4"])
alone = model.generate_images("a fox in the snow", seed=4)
same = (alone[0] == pictures[1]).mean()
print(f"{same:.1%} of the pixels are the same alone as in a batch")
assert same > 0.99 or jax.default_backend() != "cpu"  # bfloat16 is rounded otherwise in a batch

# %% [markdown]
# ## Animate

# %%
import IPython.display

video = model.generate_videos("a fox runs to the left", seed=0)[0]
file = MODEL.parent / "fox.gif"
from vilau_jax.data import media

media.write_gif(video, file)
IPython.display.display(IPython.display.Image(data=file.read_bytes(), width=256))
assert video.shape[0] == model.config.video_frames and video.dtype == np.uint8

# %% [markdown]
# ## Draw in half the memory

# %%
if quantize != "int8":
  del model  # room for the other
  model = vilau_jax.load(MODEL, quantize="int8")
light = model.generate_images("a fox in the snow", seed=3)
show([pictures[0], light[0]], [quantize or "as it is", "int8"], width=5)
assert light.shape == pictures[:1].shape and light.dtype == np.uint8 and np.ptp(light) > 0
