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
# # Weights from PyTorch and back
# A release becomes a model directory and a release again, and every tensor is the same bit for bit. The same
# works for `llama`, `siglip` and `rqvae`: take parts out of a model that was trained here, or start from them.

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
import json
import tempfile

from vilau_jax import convert
from vilau_jax.convert.formats import locate

RELEASE = os.environ.get("VILAU_RELEASE", "hf://mit-han-lab/vila-u-7b-256")  # or a folder
WORK = pathlib.Path(tempfile.mkdtemp(dir=os.environ.get("VILAU_WORK")))
source = locate(RELEASE)

# %%
report = convert.import_checkpoint("vila-u", source, WORK / "model")
print(report.table())
print(convert.export_checkpoint("vila-u", WORK / "model", WORK / "release").table())


# %%
def tensors(folder):
  """All tensors below a folder by part and name: dtype, shape and bytes, read from the disk when
  they are looked at (numpy has no bfloat16, so safetensors' own loader would refuse a release)."""
  found = {}
  for file in sorted(pathlib.Path(folder).rglob("*.safetensors")):
    data = np.memmap(file, np.uint8, "r")
    size = int(data[:8].view("<u8")[0])
    for name, info in json.loads(bytes(data[8 : 8 + size])).items():
      if name != "__metadata__":
        start, stop = (8 + size + offset for offset in info["data_offsets"])
        found[file.parent.name, name] = info["dtype"], info["shape"], data[start:stop]
  return found


before, after = tensors(source), tensors(WORK / "release")
there = [key for key in before if key in after]
same = [
  key
  for key in there
  if before[key][:2] == after[key][:2] and np.array_equal(before[key][2], after[key][2])
]
print(f"{len(same)} of {len(before)} tensors of the source are there, bit for bit")
print("not written again:", [name for part, name in before if (part, name) not in after])
assert len(same) == len(there) > 200

# %% [markdown]
# ## Parts
# The language model alone, as transformers reads it; and back into a model of its own.

# %%
print(convert.export_checkpoint("llama", WORK / "model", WORK / "llama").table())
convert.import_checkpoint("llama", WORK / "llama", WORK / "llm")
whole, part = vilau_jax.load(WORK / "model"), vilau_jax.load(WORK / "llm")
tokens = np.array([[1, 5, 9, 2]])
np.testing.assert_array_equal(whole.text_logits(tokens), part.text_logits(tokens))
