"""Normalisation layers: statistics in float32, output in the input's dtype."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vilau_jax import sharding

ONES, ZEROS = nn.initializers.ones, nn.initializers.zeros


class RmsNorm(nn.Module):
  """Llama's RMSNorm: normalise in float32, cast back, then scale."""

  eps: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., D] -> [..., D]."""
    scale = self.param("scale", sharding.boxed(ONES, "norm"), (x.shape[-1],))
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.eps)
    return y.astype(x.dtype) * scale.astype(x.dtype)


class LayerNorm(nn.Module):
  """LayerNorm over the last axis. `eps` has no default: SigLIP uses 1e-6, the depth transformer
  1e-5."""

  eps: float

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., D] -> [..., D]."""
    scale = self.param("scale", sharding.boxed(ONES, "norm"), (x.shape[-1],))
    bias = self.param("bias", sharding.boxed(ZEROS, "norm"), (x.shape[-1],))
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, -1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.eps)
    return (y * scale + bias).astype(x.dtype)


class GroupNorm(nn.Module):
  """GroupNorm of NHWC maps, as RQ-VAE uses it (32 groups, eps 1e-6)."""

  groups: int
  eps: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, C].

    Raises:
      ValueError: if the groups do not divide the channels.
    """
    channels = x.shape[-1]
    if channels % self.groups:
      raise ValueError(f"{channels} channels cannot be split into {self.groups} groups")
    scale = self.param("scale", sharding.boxed(ONES, "norm"), (channels,))
    bias = self.param("bias", sharding.boxed(ZEROS, "norm"), (channels,))

    def mean(y):  # of every group, [B, 1, 1, C]
      # Pixels first, as sums that keep the channels are vectorised; groups would tear them apart.
      y = jnp.mean(y, tuple(range(1, y.ndim - 1)), keepdims=True)
      groups = y.reshape(*y.shape[:-1], self.groups, -1)
      return jnp.broadcast_to(jnp.mean(groups, -1, keepdims=True), groups.shape).reshape(y.shape)

    y = x.astype(jnp.float32)
    y = y - mean(y)
    return (y * (jax.lax.rsqrt(mean(y * y) + self.eps) * scale) + bias).astype(x.dtype)
