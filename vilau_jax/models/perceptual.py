"""LPIPS: how different two images look to a VGG16 (arXiv 1801.03924)."""

import pathlib
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vilau_jax import sharding
from vilau_jax.layers.conv import Conv

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
# torchvision's layer numbers of the convolutions, by stage; a 2x2 max-pool opens stages 1 to 4.
STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


class Lpips(nn.Module):
  """VGG16 features of both images, compared channel by channel with learned weights.

  Attributes:
    widths: channels of the five stages; other than VGG16's for tests.
    dtype: compute dtype of the convolutions.
  """

  widths: tuple[int, ...] = (64, 128, 256, 512, 512)
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    for stage, layers in enumerate(STAGES):
      for layer in layers:
        axes = ("conv_in" if layer else "image_channels", "conv_out")
        setattr(self, f"conv_{layer}", Conv(self.widths[stage], axes=axes, dtype=self.dtype))
    self.lins = [
      self.param(f"lin_{i}", sharding.boxed(nn.initializers.constant(1 / width), "norm"), (width,))
      for i, width in enumerate(self.widths)
    ]

  def __call__(self, first: jax.Array, second: jax.Array) -> jax.Array:
    """Two float32 [B, S, S, 3] in [-1, 1] -> float32 [B]; symmetric."""
    # Two passes and not one over both images: only the drawn one needs a backward pass.
    pairs = zip(self.taps(first), self.taps(second))
    parts = [
      jnp.mean(jnp.sum((_unit(a) - _unit(b)) ** 2 * lin, -1), (1, 2))
      for (a, b), lin in zip(pairs, self.lins)
    ]
    return sum(parts)

  def taps(self, x: jax.Array) -> list[jax.Array]:
    """[B, S, S, 3] -> the last activations of the five stages, [B, S / 2**stage, .., width]."""
    x = (x - jnp.asarray(SHIFT)) / jnp.asarray(SCALE)
    taps = []
    for stage, layers in enumerate(STAGES):
      if stage:
        x = nn.max_pool(x, (2, 2), (2, 2))
      for layer in layers:
        x = nn.relu(getattr(self, f"conv_{layer}")(x))
      taps.append(x)
    return taps


def _unit(x: jax.Array) -> jax.Array:
  """Divides by the norm over channels, in float32."""
  x = x.astype(jnp.float32)
  square = jnp.sum(x * x, -1, keepdims=True)
  # The root of zero has no gradient: where all channels are dead it must be 0, not NaN.
  norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
  return x / (norm + 1e-10)


def load_lpips(path: str | pathlib.Path) -> dict[str, Any]:
  """Reads LPIPS weights.

  Args:
    path: .safetensors or .npz with torchvision's VGG16 names (features.0.weight, ...; also
      net.slice1.0.weight, ...) and lin0.model.1.weight to lin4.model.1.weight.

  Returns:
    {"params": ...} for `Lpips.apply`, float32.

  Raises:
    ValueError: if the file is of another kind or lacks a tensor.
  """
  path = pathlib.Path(path)
  if path.suffix == ".npz":
    with np.load(path, allow_pickle=False) as archive:
      tensors = dict(archive)
  elif path.suffix == ".safetensors":
    from safetensors.numpy import load_file

    tensors = load_file(path)
  else:
    raise ValueError(f"{path}: LPIPS weights must be a .safetensors or .npz file")
  return {"params": lpips_params(tensors, str(path))}


def lpips_params(tensors: dict[str, np.ndarray], source: str) -> dict[str, Any]:
  """Parameters of `Lpips` from torch-named tensors; see load_lpips. Other tensors are ignored (the
  classifier of VGG16, the constants of the input scaling)."""
  params: dict[str, Any] = {}
  for name, value in tensors.items():
    conv = re.fullmatch(r"(?:features|net\.slice\d)\.(\d+)\.(weight|bias)", name)
    lin = re.fullmatch(r"lin(\d)\.model\.1\.weight", name)
    if conv and conv[2] == "weight":
      kernel = jnp.asarray(np.transpose(value, (2, 3, 1, 0)), jnp.float32)
      params.setdefault(f"conv_{conv[1]}", {})["kernel"] = kernel
    elif conv:
      params.setdefault(f"conv_{conv[1]}", {})["bias"] = jnp.asarray(value, jnp.float32)
    elif lin:
      params[f"lin_{lin[1]}"] = jnp.asarray(value, jnp.float32).reshape(-1)
  wanted = {f"conv_{n}.{leaf}" for stage in STAGES for n in stage for leaf in ("kernel", "bias")}
  wanted |= {f"lin_{n}" for n in range(len(STAGES))}
  found = {n for n in params if n.startswith("lin")}
  found |= {f"{n}.{leaf}" for n in params if n.startswith("conv") for leaf in params[n]}
  if found != wanted:
    raise ValueError(
      f"{source}: not LPIPS weights; missing {sorted(wanted - found)}, "
      f"unexpected {sorted(found - wanted)}"
    )
  return params
