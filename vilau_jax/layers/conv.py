"""Convolutional blocks of the RQ-VAE family, on NHWC maps [B, height, width, channels]."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from vilau_jax import sharding
from vilau_jax.layers.attention import attend
from vilau_jax.layers.norm import GroupNorm


def fan_in_uniform(fan_in: int) -> nn.initializers.Initializer:
  """Torch's default for convolutions and linear layers: U(-b, b) with b = 1 / sqrt(fan_in)."""
  bound = 1 / math.sqrt(fan_in)

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def conv_of_doubled(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """3x3 convolution of a map made twice as large by nearest neighbour, without that larger map.

  Nine taps on the doubled map see four pixels of the small one; the weights of those that see the
  same pixel are summed, which saves five ninths of the products. Differs from the nine taps by
  rounding only.

  Args:
    x: [B, height, width, in].
    kernel: [3, 3, in, out]; summed in its own dtype, multiplied in that of x.

  Returns:
    [B, 2 height, 2 width, out], of x's dtype; outside of the doubled map are zeros.
  """

  def fold(k, odd):  # an even row sees the one before and its own twice, an odd one the one after
    return jnp.stack([k[0] + k[1], k[2]] if odd else [k[0], k[1] + k[2]])

  def phase(row, column):  # the outputs at odd or even rows and columns
    k = fold(fold(kernel, row).swapaxes(0, 1), column).swapaxes(0, 1)
    pad = ((1 - row, row), (1 - column, column))
    return jax.lax.conv_general_dilated(
      x, k.astype(x.dtype), (1, 1), pad, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  y = jnp.stack([jnp.stack([phase(r, c) for c in (0, 1)], 3) for r in (0, 1)], 2)
  return y.reshape(x.shape[0], 2 * x.shape[1], 2 * x.shape[2], kernel.shape[-1])


class Conv(nn.Module):
  """2-D convolution with kernel [size, size, in, out] and torch's default initialisation.

  Attributes:
    features: output channels.
    size: kernel side.
    stride: step along both axes.
    padding: zeros (low, high) added along both axes.
    axes: logical axes of the input and output channels.
    kernel_init: None is torch's default.
    doubled: convolve the map made twice as large by nearest neighbour; with size 3, stride 1.
  """

  features: int
  size: int = 3
  stride: int = 1
  padding: tuple[int, int] = (1, 1)
  axes: tuple[str, str] = ("conv_in", "conv_out")
  bias: bool = True
  dtype: jnp.dtype = jnp.float32
  kernel_init: nn.initializers.Initializer | None = None
  doubled: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, height, width, in] -> [B, height', width', out].

    Raises:
      ValueError: for `doubled` with another kernel side, stride or padding than its own.
    """
    if self.doubled and (self.size, self.stride, self.padding) != (3, 1, (1, 1)):
      raise ValueError(
        f"a doubled map is convolved with size 3, stride 1 and padding (1, 1), got {self.size}, "
        f"{self.stride} and {self.padding}"
      )
    shape = (self.size, self.size, x.shape[-1], self.features)
    default = fan_in_uniform(math.prod(shape[:3]))
    init = sharding.boxed(self.kernel_init or default, "kernel", "kernel", *self.axes)
    kernel = self.param("kernel", init, shape)
    x = x.astype(self.dtype)
    if self.doubled:
      y = conv_of_doubled(x, kernel)
    elif self.size == self.stride == 1:
      y = jnp.einsum("bhwi,io->bhwo", x, kernel[0, 0].astype(self.dtype))
    else:
      y = jax.lax.conv_general_dilated(
        x,
        kernel.astype(self.dtype),
        window_strides=(self.stride, self.stride),
        padding=(self.padding, self.padding),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
      )
    if self.bias:
      bias = self.param("bias", sharding.boxed(default, self.axes[1]), (self.features,))
      y = y + bias.astype(self.dtype)
    return sharding.constrain(y, "batch", "height", "width", "channels")


def pointwise(features: int, name: str, dtype: jnp.dtype) -> Conv:
  """1x1 convolution."""
  return Conv(features, size=1, padding=(0, 0), dtype=dtype, name=name)


class ResBlock(nn.Module):
  """GN-SiLU-conv twice, plus the input (through a 1x1 convolution where channels change)."""

  features: int
  groups: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, height, width, in] -> [B, height, width, features]."""
    y = nn.silu(GroupNorm(self.groups, name="norm1")(x))
    y = Conv(self.features, dtype=self.dtype, name="conv1")(y)
    y = nn.silu(GroupNorm(self.groups, name="norm2")(y))
    y = Conv(self.features, dtype=self.dtype, name="conv2")(y)
    if x.shape[-1] != self.features:
      x = pointwise(self.features, "nin_shortcut", self.dtype)(x)
    return x + y


class AttnBlock(nn.Module):
  """Single-head attention over all positions of the map, with its residual."""

  groups: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, height, width, channels] -> the same shape."""
    batch, height, width, channels = x.shape
    y = GroupNorm(self.groups, name="norm")(x)
    q, k, v = (
      pointwise(channels, name, self.dtype)(y).reshape(batch, height * width, 1, channels)
      for name in ("q", "k", "v")
    )
    y = attend(q, k, v).reshape(x.shape)
    return x + pointwise(channels, "proj_out", self.dtype)(y)


class Upsample(nn.Module):
  """Nearest neighbour x2, then a 3x3 convolution."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, height, width, channels] -> [B, 2 height, 2 width, channels]."""
    return Conv(x.shape[-1], dtype=self.dtype, doubled=True, name="conv")(x)


class Downsample(nn.Module):
  """3x3 convolution with stride 2 after one row and column of zeros at the bottom and the right."""

  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, height, width, channels] -> [B, height // 2, width // 2, channels]."""
    return Conv(x.shape[-1], stride=2, padding=(0, 1), dtype=self.dtype, name="conv")(x)
