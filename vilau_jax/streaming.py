"""Arrays that are written to and read from disk a part at a time, because they are larger than the
memory that converting them should take.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Streamed:
  """A variable that checkpoint.save_model writes part by part, so that it is never whole in memory.

  Attributes:
    shape, dtype: of the whole array.
    parts: called once; yields (index on the first axis, array), or one (None, whole array).
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  parts: Callable[[], Iterator[tuple[int | None, np.ndarray]]]

  @property
  def size(self) -> int:
    return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class StoredArray:
  """A variable on disk that is read when it is asked for; see checkpoint.open_arrays."""

  shape: tuple[int, ...]
  dtype: np.dtype
  store: Any  # tensorstore.TensorStore

  def read(self) -> np.ndarray:
    """All of it."""
    return self.store.read().result()

  def rows(self) -> Iterator[np.ndarray]:
    """array[0], array[1], ...; one at a time in memory where it was written so."""
    if self.store.chunk_layout.read_chunk.shape[0] == 1:
      for i in range(self.shape[0]):
        yield self.store[i].read().result()
    else:
      yield from self.read()
