"""Inception-v3 up to its 2048 pooled features (Szegedy et al. 2015), forward only, for FID.

Two variants share all names and shapes of weights. "fid" is the network of 2015-12-05 that every
FID is defined by (pytorch-fid's port, 1008 classes): padding does not count in average pools, and
the last block pools by maximum. "torchvision" (1000 classes) averages everywhere.

Axis letters: B batch, S side, C channels.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

WIDTH = 2048
SIDE = 299
_EPSILON = 1e-3  # of the batch norms
_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
# Branches of the blocks, each a chain of convolutions; "/" halves the side without padding, "|"
# splits into two convolutions whose outputs stand side by side.
_A = ("branch1x1", "branch5x5_1 branch5x5_2", "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3")
_B = ("branch3x3/", "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3/")
_C = ("branch1x1", "branch7x7_1 branch7x7_2 branch7x7_3",
      "branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5")  # fmt: skip
_D = ("branch3x3_1 branch3x3_2/", "branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4/")
_E = ("branch1x1", "branch3x3_1 branch3x3_2a|branch3x3_2b",
      "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a|branch3x3dbl_3b")  # fmt: skip
_BLOCKS = {
  "Mixed_5b": _A, "Mixed_5c": _A, "Mixed_5d": _A, "Mixed_6a": _B, "Mixed_6b": _C, "Mixed_6c": _C,
  "Mixed_6d": _C, "Mixed_6e": _C, "Mixed_7a": _D, "Mixed_7b": _E, "Mixed_7c": _E,
}  # fmt: skip
_HALVING = ("Mixed_6a", "Mixed_7a")

Params = Mapping[str, Mapping[str, jax.Array]]


@dataclasses.dataclass(frozen=True, eq=False)
class Inception:
  """Weights and what they are for.

  Attributes:
    params: convolution -> {"kernel" [h,w,in,out], "scale" [out], "shift" [out]}; the batch norms
      are folded into the last two.
    variant: "fid" or "torchvision".
  """

  params: Params
  variant: str

  def __call__(self, images: jax.Array) -> jax.Array:
    """float32 [B, S, S, 3], scaled as the weights want it (about -1 to 1) -> float32 [B, 2048]."""
    return _features(self.params, images, self.variant)


@functools.partial(jax.jit, static_argnames="variant")
def _features(params: Params, x: jax.Array, variant: str) -> jax.Array:
  conv = functools.partial(_conv, params)
  x = conv("Conv2d_1a_3x3", x, stride=2, padding="VALID")
  x = conv("Conv2d_2a_3x3", x, padding="VALID")
  x = conv("Conv2d_2b_3x3", x)
  x = _max_pool(x, 2, "VALID")
  x = conv("Conv2d_3b_1x1", x)
  x = conv("Conv2d_4a_3x3", x, padding="VALID")
  x = _max_pool(x, 2, "VALID")
  for block, branches in _BLOCKS.items():
    outputs = [_branch(conv, block, chain.split(), x) for chain in branches]
    if block in _HALVING:
      outputs.append(_max_pool(x, 2, "VALID"))
    else:
      by_maximum = block == "Mixed_7c" and variant == "fid"
      pooled = _max_pool(x, 1, "SAME") if by_maximum else _mean_pool(x, variant)
      outputs.append(conv(f"{block}.branch_pool", pooled))
    x = jnp.concatenate(outputs, -1)
  return x.mean((1, 2))


def _branch(conv, block: str, chain: list[str], x: jax.Array) -> jax.Array:
  for step in chain:
    if step.endswith("/"):
      x = conv(f"{block}.{step[:-1]}", x, stride=2, padding="VALID")
    else:
      x = jnp.concatenate([conv(f"{block}.{name}", x) for name in step.split("|")], -1)
  return x


def _conv(params: Params, name: str, x: jax.Array, stride: int = 1, padding: str = "SAME"):
  leaf = params[name]
  x = jax.lax.conv_general_dilated(
    x, leaf["kernel"], (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  return jax.nn.relu(x * leaf["scale"] + leaf["shift"])


def _max_pool(x: jax.Array, stride: int, padding: str) -> jax.Array:
  window, strides = (1, 3, 3, 1), (1, stride, stride, 1)
  return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, padding)


def _mean_pool(x: jax.Array, variant: str) -> jax.Array:
  add = lambda v: jax.lax.reduce_window(v, 0.0, jax.lax.add, (1, 3, 3, 1), (1,) * 4, "SAME")  # noqa: E731
  count = add(jnp.ones((1, *x.shape[1:3], 1), x.dtype)) if variant == "fid" else 9.0
  return add(x) / count


def load_inception(path: str | pathlib.Path) -> Inception:
  """Reads a file of weights.

  Args:
    path: .pth or .pt (a state dict; needs torch, and nothing but tensors is unpickled) or
      .safetensors, with torchvision's names: pytorch-fid's pt_inception-2015-12-05 or torchvision's
      inception_v3.

  Raises:
    ValueError: if it is of another kind, or lacks a tensor.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f"no Inception weights at {path}")
  if path.suffix == ".safetensors":
    from safetensors.numpy import load_file

    return inception_from(load_file(path), str(path))
  if path.suffix not in (".pth", ".pt"):
    raise ValueError(f"{path}: Inception weights must be a .pth, .pt or .safetensors file")
  try:
    import torch
  except ImportError as error:
    raise ValueError(f"{path} can only be read with torch: pip install torch") from error
  state = torch.load(path, map_location="cpu", weights_only=True)
  return inception_from({name: value.numpy() for name, value in state.items()}, str(path))


def inception_from(tensors: Mapping[str, np.ndarray], source: str) -> Inception:
  """The network from tensors under torchvision's names; the classifier tells the variant, and it
  and the auxiliary head are left out."""
  classes = len(tensors["fc.bias"]) if "fc.bias" in tensors else None
  variant = {1008: "fid", 1000: "torchvision"}.get(classes)
  if variant is None:
    raise ValueError(f"{source}: fc.bias tells the network apart, 1008 or 1000; here: {classes}")
  names = [*_STEM]
  for block, branches in _BLOCKS.items():
    steps = [step.strip("/") for chain in branches for step in chain.replace("|", " ").split()]
    names += [f"{block}.{step}" for step in steps]
    names += [] if block in _HALVING else [f"{block}.branch_pool"]
  leaves = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
  wanted = {f"{name}.{leaf}" for name in names for leaf in leaves}
  found = {
    name for name in tensors
    if not name.startswith(("fc.", "AuxLogits.")) and not name.endswith("num_batches_tracked")
  }  # fmt: skip
  if found != wanted:
    lacks, extra = sorted(wanted - found), sorted(found - wanted)
    raise ValueError(
      f"{source}: not Inception-v3 weights; missing {lacks[:3]} ({len(lacks)}), "
      f"unexpected {extra[:3]} ({len(extra)})"
    )
  return Inception({name: _leaf(tensors, name) for name in names}, variant)


def _leaf(tensors: Mapping[str, np.ndarray], name: str) -> dict[str, Any]:
  at = lambda leaf: np.asarray(tensors[f"{name}.{leaf}"], np.float64)  # noqa: E731
  scale = at("bn.weight") / np.sqrt(at("bn.running_var") + _EPSILON)
  shift = at("bn.bias") - at("bn.running_mean") * scale
  kernel = at("conv.weight").transpose(2, 3, 1, 0)
  return {k: jnp.asarray(v, jnp.float32)
          for k, v in (("kernel", kernel), ("scale", scale), ("shift", shift))}  # fmt: skip
