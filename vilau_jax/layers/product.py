"""The product of activations and a weight: the one place that knows what is fast where.

Decoding multiplies a row or two by every weight, so the time is that of reading the weights. XLA's
CPU backend reads them at full speed only in the product of a matrix and one vector; a product with
two rows copies the weight into blocks first. Accelerators get the plain product. Axis letters: N
rows, I contracted, O features.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

FEW = 2  # rows up to which a CPU takes one after the other
_OUT = ("o_proj", "out")  # modules whose kernels [H, C, D] are contracted over two axes


def product(
  x: jax.Array,
  w: Any,
  dtype: jnp.dtype,
  *,
  contracted: int = 1,
  result: jnp.dtype | None = None,
) -> jax.Array:
  """x [..., *I] times w [*I, *O], computed in `dtype`: [..., *O].

  Args:
    x: activations.
    w: an array, or a qwix.QArray with one scale a feature, which multiplies the result.
    dtype: of the computation.
    contracted: number of axes I.
    result: dtype of the result, which the sums keep; `dtype` if None.
  """
  features, result = w.shape[contracted:], result or dtype
  scale = None
  if hasattr(w, "qvalue"):  # quantised
    scale, w = w.scale.reshape(-1), w.qvalue
  inner = math.prod(w.shape[:contracted])
  rows = x.astype(dtype).reshape(-1, inner)
  w = w.astype(dtype).reshape(inner, -1)
  if scale is None:
    y = _matmul(rows, w, result)
  else:
    y = (_matmul(rows, w, jnp.float32) * scale).astype(result)
  return y.reshape(*x.shape[:-contracted], *features)


def _matmul(x: jax.Array, w: jax.Array, result: jnp.dtype) -> jax.Array:
  """[N, I] times [I, O]."""
  plain = functools.partial(jnp.matmul, preferred_element_type=result)
  if not 1 < x.shape[0] <= FEW:
    return plain(x, w)
  by_row = lambda x, w: jnp.stack([plain(row, w) for row in x])  # noqa: E731
  return jax.lax.platform_dependent(x, w, cpu=by_row, default=plain)


def contracted_axes(names: tuple[str, ...], ndim: int) -> int:
  """How many leading axes of a parameter, named by its path, `product` contracts; 0: it is none."""
  if names[-1] not in ("kernel", "lm_head"):
    return 0
  return 2 if ndim == 3 and names[-2] in _OUT else 1
