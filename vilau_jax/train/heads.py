"""Cross-entropy of a large classifier, a block of its classes at a time.

The logits of all classes never exist at once: the forward pass keeps a running maximum and sum, the
backward pass computes each block's logits again. Axis letters: n positions, D width, E classes,
J blocks, S mesh shards of the classes, e classes of a block and shard, E = S * J * e.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from vilau_jax import sharding
from vilau_jax.layers.dense import Head
from vilau_jax.train import losses

_NEVER = -1e30  # logit of what pads the classes


def nll(head: Head, wanted: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
  """Negative log-likelihood of the wanted classes.

  Args:
    head: inputs [..., D] and the projection to the classes.
    wanted: int32 [...].
    block: most classes whose logits exist at once on a device; 0 or a number beyond E: all.

  Returns:
    float32 [...], and whether the wanted class is the likeliest (the first of equals), bool [...].
  """
  width, entries = head.kernel.shape
  shards = _shards(entries)
  pieces = _pieces(entries // shards, block)
  if pieces == 1:
    return losses.nll(head.logits(), wanted)
  kernel = sharding.constrain(head.kernel, None, "act_vocab")  # gathered once, not in every turn
  kernel = _split(kernel, shards, pieces)
  bias = jnp.zeros(entries) if head.bias is None else head.bias.astype(jnp.float32)
  bias = jnp.where(jnp.arange(entries) < head.size, bias, _NEVER)
  x = head.x.reshape(-1, width)
  loss, correct = _nll(x, kernel, _split(bias, shards, pieces), wanted.reshape(-1))
  return loss.reshape(wanted.shape), correct.reshape(wanted.shape)


def _shards(entries: int) -> int:
  """Ways in which the mesh divides the classes."""
  mesh = jax.sharding.get_abstract_mesh()
  ways = 1 if mesh.empty else mesh.shape[sharding.RULES["act_vocab"]]
  return ways if entries % ways == 0 else 1


def _pieces(entries: int, block: int) -> int:
  """The fewest equal blocks of at most `block` classes."""
  fewest = -(-entries // block) if block else 1
  return next(j for j in range(fewest, entries + 1) if entries % j == 0)


def _split(x: jax.Array, shards: int, pieces: int) -> jax.Array:
  """[..., E] -> [J, ..., S, e]; a shard stays on its device."""
  x = x.reshape(*x.shape[:-1], shards, pieces, -1)
  x = jnp.moveaxis(x, -2, 0)
  return sharding.constrain(x, *[None] * (x.ndim - 2), "act_vocab", None)


def _logits(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
  """x [n, D], one block [D, S, e] and its bias [S, e] -> float32 [n, S, e]."""
  return jnp.einsum("nd,dse->nse", x, kernel, preferred_element_type=jnp.float32) + bias


def _ids(number: jax.Array, kernel: jax.Array) -> jax.Array:
  """Which classes block `number` of [J, D, S, e] holds: int32 [S, e]."""
  pieces, _, shards, size = kernel.shape
  return (jnp.arange(shards)[:, None] * pieces + number) * size + jnp.arange(size)


@jax.custom_vjp
def _nll(x, kernel, bias, wanted):
  """x [n, D], kernel [J, D, S, e], bias [J, S, e], wanted [n] -> float32 [n], bool [n]."""
  return _forward(x, kernel, bias, wanted)[0]


def _forward(x, kernel, bias, wanted):
  start = jnp.full(wanted.shape, -jnp.inf)

  def turn(carry: Any, block: Any):
    top, total, chosen, best = carry
    number, weights, offset = block
    logits, ids = _logits(x, weights, offset), _ids(number, kernel)
    high = logits.max((1, 2))
    new = jnp.maximum(top, high)
    total = total * jnp.exp(top - new) + jnp.exp(logits - new[:, None, None]).sum((1, 2))
    chosen += jnp.sum(jnp.where(ids == wanted[:, None, None], logits, 0), (1, 2))
    first = jnp.min(jnp.where(logits == high[:, None, None], ids, kernel.size), (1, 2))
    # Blocks are not in the order of their classes where these are sharded.
    best = jnp.where((high > top) | ((high == top) & (first < best)), first, best)
    return (new, total, chosen, best), None

  zeros = jnp.zeros(wanted.shape)
  carry = (start, zeros, zeros, jnp.full(wanted.shape, kernel.size, jnp.int32))
  blocks = (jnp.arange(len(kernel)), kernel, bias)
  (top, total, chosen, best), _ = jax.lax.scan(turn, carry, blocks)
  norm = top + jnp.log(total)
  return (norm - chosen, best == wanted), (x, kernel, bias, wanted, norm)


def _backward(kept, grads):
  x, kernel, bias, wanted, norm = kept
  grad = grads[0][:, None, None]

  def turn(grad_x, block):
    number, weights, offset = block
    hit = _ids(number, kernel) == wanted[:, None, None]
    slope = grad * (jnp.exp(_logits(x, weights, offset) - norm[:, None, None]) - hit)
    slope, grad_bias = slope.astype(x.dtype), slope.sum(0)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    grad_x += product("nse,dse->nd", slope, weights)
    return grad_x, (product("nd,nse->dse", x, slope).astype(kernel.dtype), grad_bias)

  blocks = (jnp.arange(len(kernel)), kernel, bias)
  grad_x, (grad_kernel, grad_bias) = jax.lax.scan(turn, jnp.zeros(x.shape), blocks)
  return grad_x.astype(x.dtype), grad_kernel, grad_bias, None


_nll.defvjp(_forward, _backward)
