"""SigLIP's two encoders (arXiv 2303.15343), cut where VILA-U quantises the vision one.

Axis letters: B batch, T visual positions, L text length, D width, S image side.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vilau_jax import sharding
from vilau_jax.config import TextConfig, VisionConfig
from vilau_jax.layers.attention import MultiHeadAttention
from vilau_jax.layers.dense import LECUN, Dense
from vilau_jax.layers.mlp import Mlp, gelu_tanh
from vilau_jax.layers.norm import LayerNorm
from vilau_jax.layers.stack import scan_blocks

XAVIER = nn.initializers.xavier_uniform()


class SiglipBlock(nn.Module):
  """Pre-norm transformer block: bidirectional attention, tanh-GELU MLP, biases everywhere."""

  heads: int
  hidden: int
  eps: float
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
    """[B, L, D] -> [B, L, D] and no cache."""
    y = LayerNorm(self.eps, name="layer_norm1")(x)
    y, _ = MultiHeadAttention(self.heads, dtype=self.dtype, name="self_attn")(y)
    x = sharding.constrain(x + y, "batch", "length", "act_embed")
    y = LayerNorm(self.eps, name="layer_norm2")(x)
    y = Mlp(self.hidden, gelu_tanh, dtype=self.dtype, name="mlp")(y)
    return sharding.constrain(x + y, "batch", "length", "act_embed"), None


def _block_fields(config: VisionConfig | TextConfig, dtype: jnp.dtype) -> dict:
  return dict(heads=config.heads, hidden=config.hidden, eps=config.eps, dtype=dtype)


class PatchEmbed(nn.Module):
  """Projects patches and adds a learned position each; rows and columns beyond the last whole patch
  are not seen."""

  config: VisionConfig
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """float32 [B, S, S, 3] -> [B, T, D], row-major."""
    config, grid, patch = self.config, self.config.grid, self.config.patch_size

    def init(key, shape, dtype):  # fan-in is a whole patch
      return LECUN(key, (patch * patch * 3, config.width), dtype).reshape(shape)

    kernel_init = sharding.boxed(init, "kernel", "kernel", "image_channels", "embed")
    kernel = self.param("kernel", kernel_init, (patch, patch, 3, config.width))
    bias = self.param("bias", sharding.boxed(nn.initializers.zeros, "norm"), (config.width,))
    normal = sharding.boxed(nn.initializers.normal(config.width**-0.5), "position", "embed")
    position = self.param("position", normal, (grid * grid, config.width))
    # Stride equals the kernel side, so the convolution is a matrix product over patches.
    x = images[:, : grid * patch, : grid * patch].astype(self.dtype)
    x = x.reshape(-1, grid, patch, grid, patch, 3)
    x = jnp.einsum("bhpwqc,pqcd->bhwd", x, kernel.astype(self.dtype))
    x = x.reshape(-1, grid * grid, config.width) + bias.astype(self.dtype)
    return sharding.constrain(x + position.astype(self.dtype), "batch", "length", "act_embed")


class PoolingHead(nn.Module):
  """A learned probe attends over all positions; then a residual MLP (SigLIP's "MAP" head)."""

  heads: int
  hidden: int
  eps: float
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, T, D] -> [B, D]."""
    probe = self.param("probe", sharding.boxed(XAVIER, None, None, "embed"), (1, 1, x.shape[-1]))
    probe = jnp.broadcast_to(probe, (x.shape[0], 1, x.shape[-1])).astype(self.dtype)
    y, _ = MultiHeadAttention(self.heads, dtype=self.dtype, name="attention")(probe, context=x)
    z = LayerNorm(self.eps, name="layer_norm")(y)
    return (y + Mlp(self.hidden, gelu_tanh, dtype=self.dtype, name="mlp")(z))[:, 0]


class CodePooling(nn.Module):
  """Contrastive head over codes of a CNN encoder: a projection to the texts' width, then a pooling
  head. The paper does not say what its recipe C2 had there."""

  width: int
  heads: int
  hidden: int
  eps: float
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, T, Z] -> [B, D]."""
    project = Dense(self.width, ("embed", "mlp"), dtype=self.dtype, name="project")
    x = project(x.astype(self.dtype))
    return PoolingHead(self.heads, self.hidden, self.eps, self.dtype, name="head")(x)


class VisionEncoder(nn.Module):
  """Vision transformer in two halves: `__call__` up to the quantiser, `pool` from there on."""

  config: VisionConfig
  dtype: jnp.dtype = jnp.float32
  remat: str = "none"

  def setup(self):
    if self.config.depth < 2:
      raise ValueError(f"vision.depth must be at least 2, got {self.config.depth}: the last layer "
                       "reads what the others produced, quantised")  # fmt: skip
    fields = _block_fields(self.config, self.dtype)
    self.last_layer = SiglipBlock(**fields)
    self.post_norm = LayerNorm(self.config.eps)
    self.head = PoolingHead(**fields)
    if self.config.pool_positions:
      shape = (self.config.grid**2, self.config.width)
      # As large as codewords: lost in them, left and right take thousands of steps to be learned.
      draw = sharding.boxed(nn.initializers.normal(1.0), "position", "embed")
      self.pool_position = self.param("pool_position", draw, shape)

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    """float32 [B, S, S, 3] in [-1, 1] -> output of layer depth-1, not normalised: [B, T, D]."""
    x = PatchEmbed(self.config, self.dtype, name="embed")(images)
    fields = _block_fields(self.config, self.dtype)
    return scan_blocks(SiglipBlock, fields, self.config.depth - 1, x, remat=self.remat)

  def last_hidden(self, x: jax.Array) -> jax.Array:
    """Last layer and its norm: [B, T, D] -> [B, T, D]."""
    x = x.astype(self.dtype)
    if self.config.pool_positions:
      x = x + self.pool_position.astype(self.dtype)
    return self.post_norm(self.last_layer(x)[0])

  def pool(self, x: jax.Array) -> jax.Array:
    """Output of layer depth-1, quantised or not, [B, T, D] -> image embedding [B, D]."""
    return self.head(self.last_hidden(x))


class TextEncoder(nn.Module):
  """Bidirectional text transformer. Padding takes part, and the last position is the summary."""

  config: TextConfig
  dtype: jnp.dtype = jnp.float32
  remat: str = "none"

  def setup(self):
    self.final_norm = LayerNorm(self.config.eps)
    self.head = Dense(self.config.width, ("embed", "mlp"), dtype=self.dtype)

  @nn.compact
  def last_hidden(self, ids: jax.Array) -> jax.Array:
    """int32 [B, L] with L <= config.length -> normalised hidden states [B, L, D]. An id beyond the
    vocabulary gives NaN."""
    config = self.config
    scaled = nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)
    tokens = self.param(
      "token", sharding.boxed(scaled, "vocab", "embed"), (config.vocab_size, config.width)
    )
    normal = sharding.boxed(nn.initializers.normal(0.01), "position", "embed")
    positions = self.param("position", normal, (config.length, config.width))
    # Rows are read whole: gathering their parts first is cheaper than resharding the result.
    x = jnp.take(sharding.constrain(tokens, "vocab", None), ids, axis=0, mode="fill")
    x = (x + positions[: ids.shape[1]]).astype(self.dtype)
    x = sharding.constrain(x, "batch", "length", "act_embed")
    fields = _block_fields(config, self.dtype)
    x = scan_blocks(SiglipBlock, fields, config.depth, x, remat=self.remat)
    return self.final_norm(x)

  def __call__(self, ids: jax.Array) -> jax.Array:
    """int32 [B, L] -> text embedding [B, D].

    Raises:
      ValueError: if the text is longer than the position table.
    """
    if ids.shape[1] > self.config.length:
      raise ValueError(
        f"text of {ids.shape[1]} ids, the text encoder reads at most {self.config.length}"
      )
    return self.head(self.last_hidden(ids)[:, -1])
