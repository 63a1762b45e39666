"""PatchGAN discriminator, as RQ-VAE trains against it (pix2pix, arXiv 1611.07004)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vilau_jax import sharding
from vilau_jax.layers.conv import Conv

COLLECTION = "batch_stats"
NORMAL = nn.initializers.normal(0.02)


def _around_one(key, shape, dtype=jnp.float32):
  return 1 + NORMAL(key, shape, dtype)


class BatchNorm(nn.Module):
  """Batch norm with torch's bookkeeping: the batch is normalised by its biased variance, the
  running variance takes the unbiased one. Sharded batches have global statistics."""

  momentum: float = 0.1
  eps: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[B, height, width, channels] -> the same shape; training moves collection "batch_stats"."""
    shape = (x.shape[-1],)
    scale = self.param("scale", sharding.boxed(_around_one, "norm"), shape)
    bias = self.param("bias", sharding.boxed(nn.initializers.zeros, "norm"), shape)
    zeros, ones = (sharding.boxed(i, "norm") for i in (nn.initializers.zeros, nn.initializers.ones))
    running_mean = self.variable(COLLECTION, "mean", zeros, None, shape)
    running_var = self.variable(COLLECTION, "var", ones, None, shape)
    y = x.astype(jnp.float32)
    mean, var = running_mean.value, running_var.value
    if train:
      mean = jnp.mean(y, (0, 1, 2))
      var = jnp.mean((y - mean) ** 2, (0, 1, 2))
      if not self.is_initializing():
        count = y.size // y.shape[-1]
        unbiased = var * count / (count - 1)
        running_mean.value = (1 - self.momentum) * running_mean.value + self.momentum * mean
        running_var.value = (1 - self.momentum) * running_var.value + self.momentum * unbiased
    return ((y - mean) * jax.lax.rsqrt(var + self.eps) * scale + bias).astype(x.dtype)


class ActNorm(nn.Module):
  """Scale and shift that the first training batch sets to whiten itself (Glow, arXiv 1807.03039).

  What that batch sets lives in collection "batch_stats"; the parameters are offsets to it, starting
  at zero, so that gradients are those of a directly initialised scale and shift.
  """

  eps: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    """[B, height, width, channels] -> the same shape."""
    shape = (x.shape[-1],)
    zeros, ones = (sharding.boxed(i, "norm") for i in (nn.initializers.zeros, nn.initializers.ones))
    loc_offset = self.param("loc_offset", zeros, shape)
    scale_offset = self.param("scale_offset", zeros, shape)
    loc = self.variable(COLLECTION, "loc", zeros, None, shape)
    scale = self.variable(COLLECTION, "scale", ones, None, shape)
    initialized = self.variable(COLLECTION, "initialized", jnp.zeros, (), bool)
    y = x.astype(jnp.float32)
    if train and not self.is_initializing():
      seen = jax.lax.stop_gradient(y)
      std = jnp.std(seen, (0, 1, 2), ddof=1)
      loc.value = jnp.where(initialized.value, loc.value, -jnp.mean(seen, (0, 1, 2)))
      scale.value = jnp.where(initialized.value, scale.value, 1 / (std + self.eps))
      initialized.value = jnp.ones((), bool)
    return ((scale.value + scale_offset) * (y + loc.value + loc_offset)).astype(x.dtype)


class PatchDiscriminator(nn.Module):
  """Judges overlapping patches: `layers` stride-2 convolutions, one of stride 1, one to a logit.

  Attributes:
    channels: of the first convolution; they double with each layer, up to 8 times.
    layers: n, the number of stride-2 convolutions.
    norm: "batch" or "actnorm".
    dtype: compute dtype.
  """

  channels: int = 64
  layers: int = 2
  norm: str = "batch"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, train: bool) -> jax.Array:
    """float32 [B, S, S, 3] in [-1, 1] -> float32 logits [B, rows, columns], positive = real.

    Training uses the statistics of this batch: real and drawn images go in separate calls, with
    mutable=["batch_stats"].
    """
    norms = {"batch": BatchNorm, "actnorm": ActNorm}
    if self.norm not in norms:
      raise ValueError(f"discriminator norm must be one of {sorted(norms)}, got {self.norm!r}")
    fields = dict(size=4, dtype=self.dtype, kernel_init=NORMAL)
    first = ("image_channels", "conv_out")
    x = Conv(self.channels, stride=2, axes=first, name="conv_0", **fields)(images)
    x = nn.leaky_relu(x, 0.2)
    for i in range(1, self.layers + 1):
      stride = 2 if i < self.layers else 1
      bias = self.norm == "actnorm"  # batch norm has its own
      width = self.channels * min(2**i, 8)
      x = Conv(width, stride=stride, bias=bias, name=f"conv_{i}", **fields)(x)
      x = nn.leaky_relu(norms[self.norm](name=f"norm_{i}")(x, train), 0.2)
    last = ("conv_in", "image_channels")
    return Conv(1, axes=last, name="conv_out", **fields)(x)[..., 0].astype(jnp.float32)
