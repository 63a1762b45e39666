"""How one tensor of a PyTorch checkpoint becomes one of our arrays, and back, bit for bit.

Torch keeps Linear as (out, in) and Conv2d as (out, in, height, width); here projections are
[in, out], attention projections [D, H, C] and [H, C, D], convolutions [height, width, in, out].
"""

import dataclasses
from collections.abc import Callable

import ml_dtypes
import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Transform:
  """Attributes:
  name: for tables and the manifest.
  source_shape: our shape -> the source's.
  to_ours: (source array, our shape) -> our array.
  to_source: our array -> the source's.
  """

  name: str
  source_shape: Callable[[Shape], Shape]
  to_ours: Callable[[np.ndarray, Shape], np.ndarray]
  to_source: Callable[[np.ndarray], np.ndarray]


def _reshaping(name: str, source_shape: Callable[[Shape], Shape]) -> Transform:
  return Transform(
    name,
    source_shape,
    lambda x, shape: x.reshape(shape),
    lambda y: y.reshape(source_shape(y.shape)),
  )


def _transposing(name: str, flat: Callable[[Shape], Shape]) -> Transform:
  """Ours, flattened to a matrix [in, out], is the source transposed."""
  return Transform(
    name,
    lambda shape: flat(shape)[::-1],
    lambda x, shape: transposed(x, (1, 0)).reshape(shape),
    lambda y: transposed(y.reshape(flat(y.shape)), (1, 0)),
  )


def transposed(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
  """A contiguous transposed copy; NumPy is slow with bfloat16, so it sees 16-bit integers."""
  if x.dtype == ml_dtypes.bfloat16:
    return np.ascontiguousarray(x.view(np.uint16).transpose(axes)).view(x.dtype)
  return np.ascontiguousarray(x.transpose(axes))


SAME = _reshaping("same", lambda s: s)
LEADING_1 = _reshaping("drop a leading 1", lambda s: (1, *s))
HEADS_BIAS = _reshaping("split heads", lambda s: (s[0] * s[1],))
LINEAR = _transposing("transpose", lambda s: s)
HEADS_IN = _transposing("transpose, split heads", lambda s: (s[0], s[1] * s[2]))
HEADS_OUT = _transposing("transpose, split heads", lambda s: (s[0] * s[1], s[2]))
CONV = Transform(
  "OIHW to HWIO",
  lambda s: (s[3], s[2], s[0], s[1]),
  lambda x, shape: transposed(x, (2, 3, 1, 0)),
  lambda y: transposed(y, (3, 2, 0, 1)),
)
# The last row of a codebook in torch is the padding entry: zero, never searched, never updated.
CODEBOOK = Transform(
  "drop the padding row",
  lambda s: (s[0] + 1, *s[1:]),
  lambda x, shape: x[:-1],
  lambda y: np.concatenate([y, np.zeros_like(y[:1])]),
)


def vocabulary(rows: int, *, head: bool = False) -> Transform:
  """Rows of an embedding table (or, transposed, columns of a head) without those that only pad the
  vocabulary for sharding; they are zeros here and in no checkpoint."""
  if head:
    return Transform(
      "transpose, pad the vocabulary",
      lambda s: (rows, s[0]),
      lambda x, shape: _padded(transposed(x, (1, 0)), shape),
      lambda y: transposed(y[:, :rows], (1, 0)),
    )
  return Transform(
    "pad the vocabulary",
    lambda s: (rows, *s[1:]),
    _padded,
    lambda y: np.ascontiguousarray(y[:rows]),
  )


def _padded(x: np.ndarray, shape: Shape) -> np.ndarray:
  if x.shape == shape:
    return x
  y = np.zeros(shape, x.dtype)
  y[tuple(slice(n) for n in x.shape)] = x
  return y
