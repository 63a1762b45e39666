"""Cross-entropy of a large classifier, a block of its classes at a time.

The logits of all classes never exist at once: the forward pass keeps a running maximum and sum, the
backward pass computes each block's logits again. Axis letters: n positions, D width, E classes,
S mesh shards of the classes, F = E / S (or a little more, see _pieces), e classes of a block and
shard.
"""

import functools
import math
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
  each = entries // shards
  pieces = _pieces(each, block)
  if pieces == 1:
    return losses.nll(head.logits(), wanted)
  size = -(-each // pieces)
  kernel = _split(head.kernel, shards, size * pieces, 0, "embed")
  bias = jnp.zeros(entries) if head.bias is None else head.bias.astype(jnp.float32)
  bias = jnp.where(jnp.arange(entries) < head.size, bias, _NEVER)
  bias = _split(bias, shards, size * pieces, _NEVER)
  x = sharding.constrain(head.x.reshape(-1, width), "batch", None)
  loss, correct = _nll(size, each, x, kernel, bias, wanted.reshape(-1))
  return loss.reshape(wanted.shape), correct.reshape(wanted.shape)


def _shards(entries: int) -> int:
  """Ways in which the mesh divides the classes."""
  mesh = jax.sharding.get_abstract_mesh()
  ways = 1 if mesh.empty else mesh.shape[sharding.RULES["act_vocab"]]
  return ways if entries % ways == 0 else 1


def _pieces(entries: int, block: int) -> int:
  """The fewest blocks of at most `block` classes; up to twice as many where those are equal: then
  none needs padding, which would copy the kernel."""
  fewest = -(-entries // block) if block else 1
  return next((j for j in range(fewest, 2 * fewest) if entries % j == 0), fewest)


def _split(x: jax.Array, shards: int, size: int, fill: float, *names: str) -> jax.Array:
  """[..., E] -> [..., S, size], without moving anything; a shard stays on its device, and behind it
  comes what fills it up. `names`: of the other axes."""
  x = x.reshape(*x.shape[:-1], shards, -1)
  more = [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])]
  return sharding.constrain(jnp.pad(x, more, constant_values=fill), *names, "act_vocab", None)


def _gathered(kernel: jax.Array) -> jax.Array:
  """[D, S, F] with all of D: once, not in every turn of a loop. Outside of the function whose
  gradient this is, it would gather the gradient as well."""
  return sharding.constrain(kernel, None, "act_vocab", None)


def _zeros(like: jax.Array, *names: str | None) -> jax.Array:
  """Where a loop begins to add, laid out by name: nothing else would say where the sums lie."""
  return sharding.constrain(jnp.zeros(like.shape, jnp.float32), *names)


def _block(x: jax.Array, number: jax.Array, size: int) -> jax.Array:
  """Block `number` of every shard: [..., S, F] -> [..., S, e]."""
  return jax.lax.dynamic_slice_in_dim(x, number * size, size, x.ndim - 1)


def _put(x: jax.Array, block: jax.Array, number: jax.Array, size: int) -> jax.Array:
  """Inverse of _block, in place."""
  return jax.lax.dynamic_update_slice_in_dim(x, block.astype(x.dtype), number * size, x.ndim - 1)


def _logits(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
  """x [n, D], one block [D, S, e] and its bias [S, e] -> float32 [n, S, e]."""
  return jnp.einsum("nd,dse->nse", x, kernel, preferred_element_type=jnp.float32) + bias


def _ids(kernel: jax.Array, number: jax.Array, size: int, each: int) -> jax.Array:
  """Which classes block `number` of [D, S, F] holds: int32 [S, e]; S F where it is padding."""
  _, shards, filled = kernel.shape
  inside = number * size + jnp.arange(size)
  return jnp.where(inside < each, jnp.arange(shards)[:, None] * each + inside, shards * filled)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _nll(size, each, x, kernel, bias, wanted):
  """x [n, D], kernel [D, S, F], bias [S, F], wanted [n] -> float32 [n], bool [n]; `size` is e,
  `each` what of F is no padding."""
  return _forward(size, each, x, kernel, bias, wanted)[0]


def _forward(size, each, x, kernel, bias, wanted):
  beyond, kept = math.prod(kernel.shape[1:]), kernel
  kernel = _gathered(kernel)

  def turn(number: jax.Array, carry: Any) -> Any:
    top, total, chosen, best = carry
    logits = _logits(x, _block(kernel, number, size), _block(bias, number, size))
    ids = _ids(kernel, number, size, each)
    high = logits.max((1, 2))
    new = jnp.maximum(top, high)
    total = total * jnp.exp(top - new) + jnp.exp(logits - new[:, None, None]).sum((1, 2))
    chosen += jnp.sum(jnp.where(ids == wanted[:, None, None], logits, 0), (1, 2))
    first = jnp.min(jnp.where(logits == high[:, None, None], ids, beyond), (1, 2))
    # Where classes are sharded, a block before may hold later ones.
    best = jnp.where((high > top) | ((high == top) & (first < best)), first, best)
    return new, total, chosen, best

  nothing = _zeros(wanted, "batch")
  none = sharding.constrain(jnp.full(wanted.shape, beyond, jnp.int32), "batch")
  carry = (nothing - jnp.inf, nothing, nothing, none)
  top, total, chosen, best = jax.lax.fori_loop(0, kernel.shape[2] // size, turn, carry)
  norm = top + jnp.log(total)
  return (norm - chosen, best == wanted), (x, kept, bias, wanted, norm)


def _backward(size, each, kept, grads):
  x, kernel, bias, wanted, norm = kept
  whole = _gathered(kernel)
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

  def turn(number: jax.Array, carry: Any) -> Any:
    grad_x, grad_kernel, grad_bias = carry
    weights = _block(whole, number, size)
    likely = jnp.exp(_logits(x, weights, _block(bias, number, size)) - norm[:, None, None])
    hit = _ids(kernel, number, size, each) == wanted[:, None, None]
    slope = grads[0][:, None, None] * (likely - hit)
    grad_bias = _put(grad_bias, slope.sum(0), number, size)
    slope = slope.astype(x.dtype)
    grad_x += product("nse,dse->nd", slope, weights)
    part = sharding.constrain(product("nd,nse->dse", x, slope), "embed", "act_vocab", None)
    grad_kernel = _put(grad_kernel, part, number, size)
    return grad_x, grad_kernel, grad_bias

  empty = sharding.constrain(jnp.zeros_like(kernel), "embed", "act_vocab", None)
  carry = (_zeros(x, "batch", None), empty, jnp.zeros_like(bias))
  grad_x, grad_kernel, grad_bias = jax.lax.fori_loop(0, kernel.shape[2] // size, turn, carry)
  return grad_x.astype(x.dtype), grad_kernel, grad_bias, None


_nll.defvjp(_forward, _backward)
