"""Attention: the one function that computes it, the masks it takes, and biased multi-head
attention.

Axis letters: B batch, L queries, M keys, D width, H heads, K kv heads, C head dim.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vilau_jax import sharding
from vilau_jax.layers.dense import HeadsIn, HeadsOut

Cache = tuple[jax.Array, jax.Array]


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None) -> jax.Array:
  """Scaled dot-product attention with grouped key/value heads; softmax in float32.

  Args:
    q: [B, L, H, C].
    k: [B, M, K, C]; query head h reads kv head h // (H / K).
    v: [B, M, K, C].
    mask: bool, broadcastable to [B, L, M]; True = may attend. None attends everywhere.

  Returns:
    [B, L, H, C] in q's dtype. A query that may attend nowhere gets the mean of v, never NaN.
  """
  b, l, h, c = q.shape
  kv = k.shape[2]
  q = q.reshape(b, l, kv, h // kv, c) * (c**-0.5)
  scores = jnp.einsum("blkgc,bmkc->bkglm", q, k, preferred_element_type=jnp.float32)
  if mask is not None:
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  return jnp.einsum("bkglm,bmkc->blkgc", weights, v).reshape(b, l, h, c)


def write_cache(cache: Cache, k: jax.Array, v: jax.Array, index: jax.Array | int) -> Cache:
  """Puts keys and values [B, L, K, C] of L new positions at `index` of a cache [B, K, M, C]."""
  return tuple(
    jax.lax.dynamic_update_slice_in_dim(old, new.swapaxes(1, 2).astype(old.dtype), index, 2)
    for old, new in zip(cache, (k, v))
  )


def attend_cache(q: jax.Array, cache: Cache, mask: jax.Array | None = None) -> jax.Array:
  """`attend` over a cache of keys and values [B, K, M, C].

  Heads come before positions there, so that decoding, which reads the cache once a position, never
  transposes it: on a CPU that was 5 to 40 times the cost of the attention itself.
  """
  b, l, h, c = q.shape
  k, v = cache
  q = q.reshape(b, l, k.shape[1], h // k.shape[1], c) * (c**-0.5)
  scores = jnp.einsum("blkgc,bkmc->bkglm", q, k, preferred_element_type=jnp.float32)
  if mask is not None:
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  return jnp.einsum("bkglm,bkmc->blkgc", weights, v).reshape(b, l, h, c)


def causal_mask(segment_ids: jax.Array, branches: jax.Array | None = None) -> jax.Array:
  """Causal attention within segments: int32 [B, L] -> bool [B, L, L].

  Args:
    segment_ids: int32 [B, L].
    branches: int32 [B, L], or None. A segment may fork behind a common stem (branch 0): its
      branches 1, 2, .. see the stem and themselves, not each other.
  """
  length = segment_ids.shape[1]
  mask = segment_ids[:, :, None] == segment_ids[:, None, :]
  if branches is not None:
    keys = branches[:, None, :]
    mask &= (keys == 0) | (keys == branches[:, :, None])
  return mask & jnp.tril(jnp.ones((length, length), bool))


class MultiHeadAttention(nn.Module):
  """Biased multi-head attention, as in SigLIP, its pooling head and the depth transformer."""

  heads: int
  dtype: jnp.dtype = jnp.float32
  init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    context: jax.Array | None = None,
    mask: jax.Array | None = None,
    cache: Cache | None = None,
    index: jax.Array | int | None = None,
  ) -> tuple[jax.Array, Cache | None]:
    """Attends from x to context (or to x itself).

    Args:
      x: [B, L, D].
      context: [B, M, D], or None for self-attention.
      mask: bool, broadcastable to [B, L, M].
      cache: keys and values [B, H, M, C] of earlier positions; x is written at `index`.
      index: where x's L positions go in the cache.

    Returns:
      [B, L, D] and the updated cache (None without one).
    """
    width = x.shape[-1]
    if width % self.heads:
      raise ValueError(f"{self.heads} heads do not divide a width of {width}")
    context = x if context is None else context
    project = dict(heads=self.heads, head_dim=width // self.heads, dtype=self.dtype, init=self.init)
    q = HeadsIn(name="query", **project)(x)
    k = HeadsIn(name="key", **project)(context)
    v = HeadsIn(name="value", **project)(context)
    if cache is None:
      y = attend(q, k, v, mask)
    else:
      cache = write_cache(cache, k, v, index)
      y = attend_cache(q, cache, mask)
    y = sharding.constrain(y, "batch", "length", "act_heads", None)
    return HeadsOut(width, dtype=self.dtype, init=self.init, name="out")(y), cache
