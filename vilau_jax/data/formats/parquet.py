"""Parquet files by row groups."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from etils import epath

from vilau_jax.data.formats.ranges import Entry
from vilau_jax.data.pieces import Piece

BATCH = 64  # rows in memory at once: they may hold pictures
# What pyarrow raises over damaged files beside its own errors.
_BREAKS = (OSError, ValueError, TypeError, LookupError, OverflowError, MemoryError)


class Group(NamedTuple):
  """Row group `index` of a file, whose first row is row `first` of the file."""

  path: str
  index: int
  first: int


def _open(path: epath.Path):
  import pyarrow as pa  # here, because few formats need it and it takes its time
  import pyarrow.parquet as pq

  try:
    return pq.ParquetFile(path.open("rb"))
  except (pa.ArrowException, *_BREAKS) as error:
    raise ValueError(f"{path} is not a Parquet file, or is cut off: {error!s:.500}") from error


def pieces(paths: Sequence[epath.Path]) -> Iterator[Piece]:
  """A piece a row group; a file that cannot be opened is a piece too, which then says so."""
  for path in paths:
    try:
      with _open(path) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    except ValueError:
      sizes = [1]
    first = 0
    for index, size in enumerate(sizes):
      share = size / max(sum(sizes), 1) / len(paths)
      yield Piece(f"{path.name}, from row {first}", Group(str(path), index, first), share)
      first += size


def rows(group: Group) -> Iterator[Entry]:
  """The rows as dicts.

  Raises:
    ValueError: if the file is damaged.
  """
  import pyarrow as pa

  path, number = epath.Path(group.path), group.first
  with _open(path) as file:
    try:
      for batch in file.iter_batches(BATCH, row_groups=[group.index]):
        for row in batch.to_pylist():
          yield Entry(f"{path.name}, row {number}", number, row)
          number += 1
    except (pa.ArrowException, *_BREAKS) as error:
      raise ValueError(f"{path} is damaged behind row {number - 1}: {error!s:.500}") from error


def column(path: epath.Path, name: str) -> Iterator[Any]:
  """One column; nothing if the file has none of that name.

  Raises:
    ValueError: if it is no Parquet file.
  """
  with _open(path) as file:
    if name in file.schema_arrow.names:
      for batch in file.iter_batches(columns=[name]):
        yield from batch.column(0).to_pylist()
