"""Sums over a long axis, a piece at a time; pieces without anything to count are not computed.

What a piece computes is computed again in the backward pass, so that one piece's arrays are alive
at a time. That pass is written by hand: a differentiated cond hands on all that its branches read,
weights too, and a scan would stack that by piece.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vilau_jax import sharding

Sums = dict[str, jax.Array]


def total(sums: Callable[..., Sums], chunk: int, valid: jax.Array, *arrays: jax.Array) -> Sums:
  """Adds sums(*pieces, valid piece, number) over pieces of axis 1.

  Args:
    sums: differentiable; zeros are right where nothing of a piece is valid.
    chunk: length of a piece; what is left over is padded.
    valid: bool [B,L].
    arrays: [B,L,...].
  """
  length = valid.shape[1]
  if length <= chunk:
    return sums(*arrays, valid, 0)
  pieces = -(-length // chunk)
  width = [(0, 0), (0, pieces * chunk - length)]

  def split(x):
    padded = jnp.pad(x, width + [(0, 0)] * (x.ndim - 2))
    x = jnp.moveaxis(padded.reshape(x.shape[0], pieces, chunk, *x.shape[2:]), 1, 0)
    return sharding.constrain(x, None, "batch", *[None] * (x.ndim - 2))

  split_up = (*(split(a) for a in arrays), split(valid), jnp.arange(pieces))
  first = jax.tree.map(lambda a: a[0], split_up)
  work, shapes, (weights, others) = _opened(sums, *first)

  def add(so_far, piece):
    smooth, rest = _parted(piece)
    part = _unless_empty(work, shapes, (weights, smooth), (others, rest), piece[-2])
    return jax.tree.map(jnp.add, so_far, part), None

  return jax.lax.scan(add, _zeros(shapes), split_up)[0]


Parted = tuple[list[jax.Array | None], list[jax.Array | None]]


def _parted(values: Any) -> Parted:
  """What has a gradient and the rest, with None at the other's places."""
  smooth = [jnp.issubdtype(v.dtype, jnp.floating) for v in values]
  return (
    [v if is_smooth else None for v, is_smooth in zip(values, smooth)],
    [None if is_smooth else v for v, is_smooth in zip(values, smooth)],
  )


def _joined(parted: Parted) -> list[jax.Array]:
  return [b if a is None else a for a, b in zip(*parted)]


def _opened(sums: Callable[..., Sums], *examples: jax.Array) -> tuple[Any, Any, Parted]:
  """The function of (held, arguments) that `sums` is of its arguments; shapes of its result; and
  held, the arrays that it closes over."""
  closed, shapes = jax.make_jaxpr(sums, return_shape=True)(*examples)
  tree = jax.tree.structure(shapes)

  def work(held, arguments):
    return jax.tree.unflatten(tree, jax.core.eval_jaxpr(closed.jaxpr, held, *arguments))

  return work, shapes, _parted(closed.consts)


def _zeros(shapes: Any) -> Any:
  return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _unless_empty(work, shapes, smooth, rest, valid):
  """work(held, arguments), or zeros. `smooth` and `rest`: the halves of both, as _parted gives."""
  held, arguments = (_joined(halves) for halves in zip(smooth, rest))
  return jax.lax.cond(jnp.any(valid), lambda: work(held, arguments), lambda: _zeros(shapes))


def _forward(work, shapes, smooth, rest, valid):
  return _unless_empty(work, shapes, smooth, rest, valid), (smooth, rest, valid)


def _backward(work, shapes, kept, grads):
  smooth, rest, valid = kept

  def some():
    run = lambda smooth: work(*(_joined(halves) for halves in zip(smooth, rest)))  # noqa: E731
    return jax.vjp(run, smooth)[1](grads)[0]

  return jax.lax.cond(jnp.any(valid), some, lambda: _zeros(smooth)), None, None


_unless_empty.defvjp(_forward, _backward)
