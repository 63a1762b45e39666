"""Inception-v3 with four channels a convolution and random weights: for tests of what is around."""

import pathlib

import numpy as np
from safetensors.numpy import save_file

from vilau_jax.models import inception

WIDTH = 4
# What is not 1 x 1, as (height, width); the rest follows from torchvision's names.
_SIZES = {
  "branch5x5_2": (5, 5), "branch3x3": (3, 3), "branch3x3_2": (3, 3), "branch3x3dbl_2": (3, 3),
  "branch3x3dbl_3": (3, 3), "branch7x7_2": (1, 7), "branch7x7_3": (7, 1), "branch7x7dbl_2": (7, 1),
  "branch7x7dbl_3": (1, 7), "branch7x7dbl_4": (7, 1), "branch7x7dbl_5": (1, 7),
  "branch7x7x3_2": (1, 7), "branch7x7x3_3": (7, 1), "branch7x7x3_4": (3, 3),
  "branch3x3_2a": (1, 3), "branch3x3_2b": (3, 1), "branch3x3dbl_3a": (1, 3),
  "branch3x3dbl_3b": (3, 1),
}  # fmt: skip


def tensors(classes: int = 1008) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  found = {"fc.weight": np.zeros((classes, 1)), "fc.bias": np.zeros(classes)}

  def conv(name: str, inputs: int, size=(1, 1)) -> None:
    scale = (2 / (inputs * size[0] * size[1])) ** 0.5
    found[f"{name}.conv.weight"] = rng.normal(0, scale, (WIDTH, inputs, *size))
    found[f"{name}.bn.weight"] = rng.uniform(0.5, 1.5, WIDTH)
    found[f"{name}.bn.bias"] = rng.normal(0, 0.2, WIDTH)
    found[f"{name}.bn.running_mean"] = rng.normal(0, 0.2, WIDTH)
    found[f"{name}.bn.running_var"] = rng.uniform(0.5, 1.5, WIDTH)

  for i, name in enumerate(inception._STEM):
    conv(name, WIDTH if i else 3, (1, 1) if name == "Conv2d_3b_1x1" else (3, 3))
  channels = WIDTH
  for block, branches in inception._BLOCKS.items():
    outputs = 0
    for chain in branches:
      inputs = channels
      for step in chain.split():
        names = step.strip("/").split("|")
        for name in names:
          conv(f"{block}.{name}", inputs, _SIZES.get(name, (1, 1)))
        inputs = WIDTH * len(names)
      outputs += inputs
    if block in inception._HALVING:
      outputs += channels
    else:
      conv(f"{block}.branch_pool", channels)
      outputs += WIDTH
    channels = outputs
  return {name: value.astype(np.float32) for name, value in found.items()}


def write(path: pathlib.Path) -> str:
  save_file(tensors(), path)
  return str(path)
