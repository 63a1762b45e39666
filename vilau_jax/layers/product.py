"""The product of activations and a weight: the one place that knows what is fast where.

Decoding multiplies a row or two by every weight, so the time is that of reading the weights. XLA's
CPU backend reads them at full speed only in the product of a matrix and one vector; a product with
two rows copies the weight into blocks first. There, weights with more inputs than features are kept
transposed, because the sum over neighbouring numbers is up to twice as fast. Accelerators get the
plain product of plain weights. Axis letters: N rows, I contracted, O features.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from vilau_jax import sharding

FEW = 2  # rows up to which a CPU takes one after the other
_READING = 128  # rows up to which a GPU's time is that of reading the weights
_OUT = ("o_proj", "out")  # modules whose kernels [H, C, D] are contracted over two axes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Transposed:
  """A weight [I, O] that is held as [O, I]."""

  value: jax.Array

  @property
  def shape(self) -> tuple[int, ...]:
    return self.value.shape[::-1]


def for_decoding(params: Any) -> Any:
  """Decoding parameters as this machine multiplies them fastest; see `natural`."""
  if jax.default_backend() != "cpu":
    return params
  return jax.tree_util.tree_map_with_path(_turned, params)


def natural(params: Any) -> Any:
  """Inverse of `for_decoding`: every weight as it is trained and saved."""
  whole = lambda leaf: leaf.value.T if isinstance(leaf, Transposed) else leaf  # noqa: E731
  return jax.tree.map(whole, params, is_leaf=lambda leaf: isinstance(leaf, Transposed))


def _turned(path: tuple[Any, ...], leaf: jax.Array) -> Any:
  names = tuple(str(getattr(step, "key", step)) for step in path)
  tall = leaf.ndim == 2 and contracted_axes(names, 2) and leaf.shape[0] > leaf.shape[1]
  return Transposed(jnp.array(leaf.T)) if tall else leaf


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
    w: an array, a Transposed one, or a qwix.QArray with one scale a feature, which multiplies the
      result.
    dtype: of the computation.
    contracted: number of axes I.
    result: dtype of the result, which the sums keep; `dtype` if None.
  """
  features, result = w.shape[contracted:], result or dtype
  inner, leading = math.prod(w.shape[:contracted]), x.shape[:-contracted]
  x, w = _apart(x.astype(dtype), w, math.prod(leading))
  plain = not isinstance(w, Transposed) and not hasattr(w, "qvalue")
  if plain and not 1 < math.prod(leading) <= FEW:
    if _one_cpu():
      x = x.reshape(-1, *w.shape[:contracted])
    # With the weight's own axes: that is what adapters attach to (lora.py). Theirs are float32.
    axes = tuple(range(x.ndim - contracted, x.ndim)), tuple(range(contracted))
    w = w.astype(dtype) if isinstance(w, jax.Array) else w  # else quantised, by an adapter
    y = jax.lax.dot_general(x, w, (axes, ((), ())), preferred_element_type=result)
    return y.astype(result).reshape(*leading, *features)
  rows, scale = x.reshape(-1, inner), None
  if isinstance(w, Transposed):
    return _matmul_transposed(rows, w.value.astype(dtype), result).reshape(*leading, *features)
  if hasattr(w, "qvalue"):  # quantised
    scale, w = w.scale.reshape(-1), w.qvalue
  w = w.astype(dtype).reshape(inner, -1)
  if scale is None:
    y = _matmul(rows, w, result)
  else:
    y = (_matmul(rows, w, jnp.float32) * scale).astype(result)
  return y.reshape(*leading, *features)


def _apart(x: jax.Array, w: Any, rows: int) -> tuple[jax.Array, Any]:
  """Hides from XLA's GPU backend that several weights multiply the same few rows: it would put the
  weights side by side for one product, and copy them so at every position that is decoded."""
  few = rows <= _READING and sharding.platform() in ("cuda", "gpu", "rocm")
  # A barrier of the rows alone would be found equal to the other weights' barriers.
  return jax.lax.optimization_barrier((x, w)) if few else (x, w)


def _one_cpu() -> bool:
  """Whether rows of several axes should become one: for the gradient of a weight, XLA's CPU backend
  else writes out transposed activations, half of a feed-forward block's time. Where axes are
  sharded they stay apart."""
  mesh = jax.sharding.get_abstract_mesh()
  return sharding.platform() == "cpu" and (mesh.empty or mesh.size == 1)


def _matmul(x: jax.Array, w: jax.Array, result: jnp.dtype) -> jax.Array:
  """[N, I] times [I, O]."""
  plain = functools.partial(jnp.matmul, preferred_element_type=result)
  if not 1 < x.shape[0] <= FEW:  # of a quantised weight
    return plain(x, w)
  by_row = lambda x, w: jnp.stack([plain(row, w) for row in x])  # noqa: E731
  return jax.lax.platform_dependent(x, w, cpu=by_row, default=plain)


def _matmul_transposed(x: jax.Array, w: jax.Array, result: jnp.dtype) -> jax.Array:
  """[N, I] times the transpose of [O, I]."""
  if 1 < x.shape[0] <= FEW:
    return jnp.stack([jnp.matmul(w, row, preferred_element_type=result) for row in x])
  last = (((1,), (1,)), ((), ()))
  return jax.lax.dot_general(x, w, last, preferred_element_type=result)


def contracted_axes(names: tuple[str, ...], ndim: int) -> int:
  """How many leading axes of a parameter, named by its path, `product` contracts; 0: it is none."""
  if names[-1] not in ("kernel", "lm_head"):
    return 0
  return 2 if ndim == 3 and names[-2] in _OUT else 1
