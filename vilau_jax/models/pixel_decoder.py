"""RQ-VAE's convolutional halves: the pixel decoder, and the CNN encoder of the RQ-VAE baseline.

Both are built from levels; level l works at side resolution / 2**l with channels * multipliers[l]
channels. Attention sits where that side, derived from the configured resolution and not from the
actual map, is listed.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vilau_jax.config import CnnConfig
from vilau_jax.layers.conv import AttnBlock, Conv, Downsample, ResBlock, Upsample
from vilau_jax.layers.norm import GroupNorm
from vilau_jax.layers.stack import checkpointed

IMAGE_CHANNELS = 3


def resize_latents(x: jax.Array, side: int) -> jax.Array:
  """Bilinear resize with half-pixel centres and no antialiasing: [B, h, w, Z] -> [B, side, side,
  Z], computed in float32."""
  shape = (x.shape[0], side, side, x.shape[-1])
  y = jax.image.resize(x.astype(jnp.float32), shape, "bilinear", antialias=False)
  return y.astype(x.dtype)


def depth_to_space(x: jax.Array, p: int) -> jax.Array:
  """[B, h, w, p * p * 3] -> [B, h * p, w * p, 3]; channels are (row, column, colour)."""
  b, h, w, c = x.shape
  x = x.reshape(b, h, w, p, p, c // p**2).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h * p, w * p, c // p**2)


def level_side(config: CnnConfig, level: int) -> int:
  """Side of the maps of a level, derived from the configured resolution."""
  return config.resolution // config.pixel_shuffle // 2**level


def scale_factor(config: CnnConfig) -> int:
  """Image side / latent side."""
  return config.pixel_shuffle * 2 ** (len(config.multipliers) - 1)


def _blocks(config: CnnConfig, remat: str) -> tuple[type[nn.Module], type[nn.Module]]:
  wrap = checkpointed(remat, prevent_cse=True)
  return wrap(ResBlock), wrap(AttnBlock)


class Level(nn.Module):
  """Residual blocks of one level, each followed by attention where the level has it; then, but for
  the last level, "upsample" or "downsample"."""

  config: CnnConfig
  level: int
  blocks: int
  resample: str = ""
  dtype: jnp.dtype = jnp.float32
  remat: str = "none"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, h, w, channels before] -> [B, h, w, channels * multipliers[level]]."""
    config = self.config
    res_block, attn_block = _blocks(config, self.remat)
    for i in range(self.blocks):
      features = config.channels * config.multipliers[self.level]
      x = res_block(features, config.groups, self.dtype, name=f"block_{i}")(x)
      if level_side(config, self.level) in config.attention_resolutions:
        x = attn_block(config.groups, self.dtype, name=f"attn_{i}")(x)
    if self.resample:
      block = {"upsample": Upsample, "downsample": Downsample}[self.resample]
      x = block(self.dtype, name=self.resample)(x)
    return x


class Middle(nn.Module):
  """ResBlock, attention, ResBlock at the latent side."""

  config: CnnConfig
  dtype: jnp.dtype = jnp.float32
  remat: str = "none"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, h, w, channels] -> the same shape."""
    groups = self.config.groups
    res_block, attn_block = _blocks(self.config, self.remat)
    x = res_block(x.shape[-1], groups, self.dtype, name="block_1")(x)
    x = attn_block(groups, self.dtype, name="attn_1")(x)
    return res_block(x.shape[-1], groups, self.dtype, name="block_2")(x)


class PixelDecoder(nn.Module):
  """Latents to pixels. `__call__` stops before the last convolution, whose gradient sets the weight
  of the adversarial loss; `out` is that convolution."""

  config: CnnConfig
  dtype: jnp.dtype = jnp.float32
  remat: str = "none"

  def setup(self):
    self.conv_out = Conv(
      IMAGE_CHANNELS * self.config.pixel_shuffle**2,
      axes=("conv_in", "image_channels"),
      dtype=self.dtype,
    )

  @nn.compact
  def __call__(self, z: jax.Array) -> jax.Array:
    """[B, h, w, latent_channels] -> features [B, S / p, S / p, channels], p = pixel_shuffle."""
    config, fields = self.config, dict(dtype=self.dtype, remat=self.remat)
    top = len(config.multipliers) - 1
    x = Conv(config.channels * config.multipliers[top], dtype=self.dtype, name="conv_in")(z)
    x = Middle(config, name="mid", **fields)(x)
    for level in reversed(range(top + 1)):
      x = Level(
        config, level, config.blocks + 1, "upsample" if level else "", name=f"up_{level}", **fields
      )(x)
    return nn.silu(GroupNorm(config.groups, name="norm_out")(x))

  def out(self, features: jax.Array) -> jax.Array:
    """[B, S / p, S / p, channels] -> float32 images [B, S, S, 3], not clamped."""
    pixels = self.conv_out(features).astype(jnp.float32)
    return depth_to_space(pixels, self.config.pixel_shuffle)


class CnnEncoder(nn.Module):
  """Pixels to latents: the encoder of RQ-VAE."""

  config: CnnConfig
  dtype: jnp.dtype = jnp.float32
  remat: str = "none"

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """[B, S, S, 3] -> [B, h, w, latent_channels].

    Raises:
      ValueError: for a config with pixel_shuffle, which only the decoder has.
    """
    config, fields = self.config, dict(dtype=self.dtype, remat=self.remat)
    if config.pixel_shuffle != 1:
      raise ValueError(
        f"tower.cnn.pixel_shuffle must be 1 (the encoder has none), got {config.pixel_shuffle}"
      )
    first = ("image_channels", "conv_out")
    x = Conv(config.channels, axes=first, dtype=self.dtype, name="conv_in")(images)
    top = len(config.multipliers) - 1
    for level in range(top + 1):
      resample = "downsample" if level < top else ""
      x = Level(config, level, config.blocks, resample, name=f"down_{level}", **fields)(x)
    x = Middle(config, name="mid", **fields)(x)
    x = nn.silu(GroupNorm(config.groups, name="norm_out")(x))
    return Conv(config.latent_channels, dtype=self.dtype, name="conv_out")(x)
