"""Shard files: ArrayRecord, which training reads at random, and TFRecord for other tools."""

import contextlib
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Protocol

import numpy as np
from array_record.python import array_record_module
from etils import epath

# Random access reads single records; PNG and JPEG do not compress further. One thread, because a
# pool would hold many records in memory that are not written yet, which costs more than it saves.
ARRAY_RECORD_OPTIONS = "group_size:1,uncompressed,max_parallelism:1"
WRITERS = {"array_record": ".array_record", "tfrecord": ".tfrecord"}


class Writer(Protocol):
  def write(self, data: bytes) -> object: ...
  def close(self) -> None: ...


def shard_name(name: str, index: int, count: int, writer: str = "array_record") -> str:
  return f"{name}-{index:05}-of-{count:05}{WRITERS[writer]}"


def writer_of(path: str | os.PathLike) -> str:
  """Which writer a shard's name tells of."""
  return next((w for w, suffix in WRITERS.items() if str(path).endswith(suffix)), "array_record")


def open_writer(path: str | os.PathLike, writer: str = "array_record") -> Writer:
  """A writer of one local file, which is unreadable until it is closed.

  Raises:
    ValueError: for an unknown writer.
  """
  if writer == "tfrecord":
    return TfRecordWriter(path)
  if writer != "array_record":
    raise ValueError(f"records are written as one of {sorted(WRITERS)}, got {writer!r}")
  return array_record_module.ArrayRecordWriter(os.fspath(path), ARRAY_RECORD_OPTIONS)


def read_shard(path: str | os.PathLike, writer: str = "array_record") -> Iterator[bytes]:
  """The records of one local file in their order."""
  yield from _TfRecordSource([path]) if writer == "tfrecord" else _array_records(path)


def _array_records(path: str | os.PathLike) -> Iterator[bytes]:
  with _reader(path) as reader:
    for _ in range(reader.num_records()):
      yield reader.read()


@contextlib.contextmanager
def _reader(path: str | os.PathLike) -> Iterator[array_record_module.ArrayRecordReader]:
  """Of one ArrayRecord file; damage, which may show only when it is closed, is a ValueError."""
  try:
    reader = array_record_module.ArrayRecordReader(os.fspath(path))
    try:
      yield reader
    finally:
      reader.close()
  except (RuntimeError, IndexError, OverflowError, MemoryError) as error:
    raise ValueError(f"{path} is damaged, or is no ArrayRecord file: {error!s:.500}") from error


def read_one(path: str | os.PathLike, number: int, writer: str = "array_record") -> bytes:
  """Record `number` of one local file."""
  if writer == "tfrecord":
    return _TfRecordSource([path])[number]
  with _reader(path) as reader:
    return reader.read([number])[0]


def random_access(paths: Sequence[str]) -> Sequence[bytes]:
  """All records of some files of one kind, by number; ArrayRecord itself reads gs:// at random.

  Raises:
    ValueError: for a TFRecord file that is cut off.
  """
  if paths and writer_of(paths[0]) == "tfrecord":
    return _TfRecordSource(paths)
  import grain  # here, because it takes jax along, which imports have no use for

  return grain.sources.ArrayRecordDataSource(list(paths))


def _checksum(data: bytes) -> int:
  """TFRecord's masked CRC-32C."""
  try:
    import google_crc32c
  except ImportError as error:
    raise ValueError(
      "TFRecord files need a checksum: pip install -e '.[tfrecord]' (google-crc32c)"
    ) from error
  crc = google_crc32c.value(data)
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _open(path: str) -> BinaryIO:
  """Local files without the detour through the layer for object stores."""
  return epath.Path(path).open("rb") if "://" in path else open(path, "rb")


@contextlib.contextmanager
def replacing(path: epath.Path) -> Iterator[str]:
  """A local file to write, which takes the path's place when the block ends well."""
  if "://" in str(path):
    with tempfile.TemporaryDirectory() as folder:
      temporary = os.path.join(folder, path.name)
      yield temporary
      epath.Path(temporary).copy(path, overwrite=True)
    return
  temporary = os.fspath(path.parent / f".{path.name}.{os.getpid()}")
  try:
    yield temporary
    os.replace(temporary, path)
  finally:
    if os.path.exists(temporary):
      os.unlink(temporary)


def write_text(path: epath.Path, text: str) -> None:
  """Writes a file that appears under its name only when it is whole."""
  with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
    f.write(text)


@contextlib.contextmanager
def local(path: epath.Path) -> Iterator[str]:
  """The path itself, or of an object store a copy."""
  if "://" not in str(path):
    yield os.fspath(path)
    return
  with tempfile.TemporaryDirectory() as folder:
    copy = epath.Path(folder) / path.name
    path.copy(copy)
    yield os.fspath(copy)


class TfRecordWriter:
  """Length, its checksum, the data, its checksum; and so on."""

  def __init__(self, path: str | os.PathLike):
    self._file = open(path, "wb")

  def write(self, data: bytes) -> None:
    length = struct.pack("<Q", len(data))
    self._file.write(length + struct.pack("<I", _checksum(length)))
    self._file.write(data + struct.pack("<I", _checksum(data)))

  def close(self) -> None:
    self._file.close()


class _TfRecordSource:
  """Finds the records by their lengths when it is opened, 16 bytes of memory a record."""

  def __init__(self, paths: Sequence[str | os.PathLike]):
    self._paths, places = [os.fspath(path) for path in paths], []
    for which, path in enumerate(self._paths):
      offset, end = 0, epath.Path(path).stat().length
      with _open(path) as f:
        while offset < end:
          f.seek(offset)
          head = f.read(8)
          length = struct.unpack("<Q", head)[0] if len(head) == 8 else end
          if offset + 16 + length > end:
            raise ValueError(f"{path} is cut off in the record at byte {offset}")
          places.append((which, offset))
          offset += 16 + length
    self._places = np.array(places, np.int64).reshape(-1, 2)

  def __len__(self) -> int:
    return len(self._places)

  def __getitem__(self, index: int) -> bytes:
    which, offset = self._places[index]
    with _open(self._paths[which]) as f:
      f.seek(offset)
      (length,) = struct.unpack("<Q", f.read(8))
      f.seek(4, os.SEEK_CUR)
      data, (crc,) = f.read(length), struct.unpack("<I", f.read(4))
    if crc != _checksum(data):
      raise ValueError(f"{self._paths[which]}: the record at byte {offset} is damaged")
    return data

  def __iter__(self) -> Iterator[bytes]:
    return (self[index] for index in range(len(self)))
