"""Causal attention for training: block by block, with a backward pass that recomputes.

No [L, L] array is kept for the backward pass, and blocks above the diagonal are never computed.
Axis letters: B batch, L positions, K kv heads, G query heads a kv head, H = K * G, C head dim;
l and m are the queries and keys of one block.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

OUTPUT = "attention"  # what the backward pass reads besides its inputs, for remat policies
_MASKED = -1e30
_MOST_BLOCKS, _SMALLEST_BLOCK = 8, 64


def causal_attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
  """Equals `attention.attend` for a mask that is False above the diagonal.

  Args:
    q: [B, L, H, C].
    k: [B, L, K, C]; query head h reads kv head h // G.
    v: [B, L, K, C].
    mask: bool [B, L, L], True = may attend; whatever it says above the diagonal is not looked at
      beyond the block on it.

  Returns:
    [B, L, H, C] in q's dtype. A query that may attend nowhere gets a finite mean of values.
  """
  b, length, h, c = q.shape
  heads = k.shape[2]
  q = (q * c**-0.5).reshape(b, length, heads, h // heads, c).transpose(0, 2, 3, 1, 4)
  k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
  size = _block(length)
  parts = []
  for start in range(0, length, size):
    stop = min(start + size, length)
    parts.append(
      _attend(q[..., start:stop, :], k[:, :, :stop], v[:, :, :stop], mask[:, start:stop, :stop])
    )
  return jnp.concatenate(parts, axis=3).transpose(0, 3, 1, 2, 4).reshape(b, length, h, c)


def _block(length: int) -> int:
  mesh = jax.sharding.get_abstract_mesh()
  if not mesh.empty and mesh.shape.get("context", 1) > 1:
    return length  # slices of a sharded sequence would travel
  return max(_SMALLEST_BLOCK, -(-length // _MOST_BLOCKS))


@jax.custom_vjp
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
  """q [B, K, G, l, C], already scaled; k, v [B, K, m, C]; mask [B, l, m] -> [B, K, G, l, C]."""
  return _forward(q, k, v, mask)[0]


def _scores(q: jax.Array, k: jax.Array, mask: jax.Array) -> jax.Array:
  """Float32 [B, K, G, l, m]."""
  scores = _product("bkqc,bkmc->bkqm", q, k)
  return scores + jnp.where(mask, 0.0, _MASKED)[:, None, None]


def _product(subscripts: str, x: jax.Array, y: jax.Array) -> jax.Array:
  """einsum in float32, x's G and l as one axis q: two free axes would make XLA transpose."""
  b, k, g, l, last = x.shape
  out = jnp.einsum(subscripts, x.reshape(b, k, g * l, last), y, preferred_element_type=jnp.float32)
  return out.reshape(b, k, g, l, -1)


def _forward(q, k, v, mask):
  scores = _scores(q, k, mask)
  top = scores.max(-1, keepdims=True)
  weights = jnp.exp(scores - top)
  total = weights.sum(-1, keepdims=True)
  y = (_product("bkqm,bkmc->bkqc", weights.astype(v.dtype), v) / total).astype(q.dtype)
  y, norm = checkpoint_name(y, OUTPUT), checkpoint_name(top + jnp.log(total), OUTPUT)
  return y, (q, k, v, mask, y, norm)


def _backward(kept, grad):
  q, k, v, mask, y, norm = kept
  weights = jnp.exp(_scores(q, k, mask) - norm)
  grad_scores = _product("bkqc,bkmc->bkqm", grad, v)
  grad_scores -= jnp.sum(grad.astype(jnp.float32) * y, -1, keepdims=True)
  grad_scores = (weights * grad_scores).astype(k.dtype)
  grad_q = _product("bkqm,bkmc->bkqc", grad_scores, k).astype(q.dtype)
  return grad_q, _gather(grad_scores, q, k), _gather(weights.astype(v.dtype), grad, v), None


def _gather(weights: jax.Array, x: jax.Array, like: jax.Array) -> jax.Array:
  """Sums [B, K, G, l, m] times [B, K, G, l, C] over the queries -> [B, K, m, C]."""
  b, k, g, l, m = weights.shape
  weights, x = weights.reshape(b, k, g * l, m), x.reshape(b, k, g * l, -1)
  out = jnp.einsum("bkqm,bkqc->bkmc", weights, x, preferred_element_type=jnp.float32)
  return out.astype(like.dtype)


_attend.defvjp(_forward, _backward)
