"""Records: samples as stored, in ArrayRecord shards of tf.train.Example messages.

A directory holds `NAME-00000-of-00010.array_record` ... and `dataset_info.json`, which is written
last: a directory without it is unfinished. The messages are those of TensorFlow, so other tools
can read them; no TensorFlow is needed here.
"""

import contextlib
import difflib
import json
import math
import os
import pathlib
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath
from google.protobuf import message

from vilau_jax import jsons
from vilau_jax.data.example import Example
from vilau_jax.data.shards import (
  open_writer,
  random_access,
  replacing,
  shard_name,
  write_text,
  writer_of,
)

SCHEMA_VERSION = 1
INFO = "dataset_info.json"
# How each is given and returned: "text" is str, "blob" bytes; "texts" ... are lists.
FEATURES = {
  "kind": "text",
  "id": "text",
  "source": "text",
  "caption": "text",
  "wrong_captions": "texts",  # each says one thing that is not so: hard negatives
  "images": "blobs",
  "frames": "blobs",
  "frame_index": "ints",
  "n_frames": "int",
  "fps": "float",
  "conversations_from": "texts",
  "conversations_value": "texts",
  "sentences": "texts",
  "image_sentence_index": "ints",
  "no_system_prompt": "int",
  "width": "ints",
  "height": "ints",
  "codes": "blob",
  "codes_shape": "ints",
  "codes_crop": "blob",
  "codes_crop_shape": "ints",
  "tower_id": "text",
  "scores": "floats",
  "scene": "text",
}
KINDS = ("pair", "i2t", "t2i", "t2v", "interleaved", "sft", "text")


def encode(record: Mapping[str, Any]) -> bytes:
  """A record as bytes; the same record always gives the same bytes.

  Args:
    record: features named in FEATURES; those that are None are left out.

  Raises:
    ValueError: for an unknown feature, or a value of another type.
  """
  example = Example()
  for name, value in record.items():
    if name not in FEATURES:
      near = difflib.get_close_matches(name, FEATURES, n=1)
      hint = f" (did you mean {near[0]!r}?)" if near else ""
      raise ValueError(f"unknown record feature {name!r}{hint}; known: {sorted(FEATURES)}")
    if value is None:
      continue
    kind = FEATURES[name]
    values = [value] if not kind.endswith("s") else list(value)
    feature = example.features.feature[name]
    try:
      if kind.startswith("text"):
        feature.bytes_list.value.extend([v.encode() for v in values])
      elif kind.startswith("blob"):
        blobs = [v if isinstance(v, bytes) else bytes(memoryview(v)) for v in values]
        feature.bytes_list.value.extend(blobs)
      elif kind.startswith("int"):
        feature.int64_list.value.extend([int(v) for v in np.asarray(values, np.int64)])
      else:
        feature.float_list.value.extend([float(v) for v in values])
      feature.SetInParent()
    except (TypeError, AttributeError, ValueError, OverflowError) as error:
      raise ValueError(f"record feature {name!r} must be {kind}, got {value!r:.80}") from error
  return example.SerializeToString(deterministic=True)


def encode_checked(record: Mapping[str, Any]) -> bytes:
  """Like encode, for a whole record.

  Raises:
    ValueError: also for an unknown kind.
  """
  if record.get("kind") not in KINDS:
    raise ValueError(f"a record's kind must be one of {KINDS}, got {record.get('kind')!r:.200}")
  return encode(record)


def decode(data: bytes) -> dict[str, Any]:
  """Inverse of encode; features that this version does not know are left out.

  Raises:
    ValueError: if the bytes are no record.
  """
  example = Example()
  try:
    example.ParseFromString(data)
  except message.DecodeError as error:
    raise ValueError("the bytes are not a record") from error
  record: dict[str, Any] = {}
  for name, feature in example.features.feature.items():
    kind = FEATURES.get(name)
    if kind is None:
      continue
    if kind.startswith(("text", "blob")):
      values = list(feature.bytes_list.value)
      try:
        values = [v.decode() for v in values] if kind.startswith("text") else values
      except UnicodeDecodeError as error:
        raise ValueError(f"record feature {name!r} is not UTF-8") from error
    else:
      values = list((feature.int64_list if kind.startswith("int") else feature.float_list).value)
    if kind.endswith("s"):
      record[name] = values
    elif len(values) == 1:
      record[name] = values[0]
    else:
      raise ValueError(f"record feature {name!r} must hold one value, it holds {len(values)}")
  return record


def put_codes(record: dict[str, Any], codes: np.ndarray, tower_id: str, name: str = "codes"):
  """Writes codes [images or frames,T,R] into a record, as uint16.

  Raises:
    ValueError: if a code needs more than 16 bits.
  """
  codes = np.asarray(codes)
  if codes.ndim != 3 or (codes.size and not 0 <= codes.min() <= codes.max() < 2**16):
    raise ValueError(f"codes must be [images,T,R] of 0..65535, got shape {codes.shape}")
  record[name] = codes.astype("<u2").tobytes()
  record[f"{name}_shape"] = list(codes.shape)
  record["tower_id"] = tower_id


def get_codes(record: Mapping[str, Any], name: str = "codes") -> np.ndarray:
  """The codes of a record, uint16 [images or frames,T,R].

  Raises:
    ValueError: if it has none, or other ones than it says.
  """
  if name not in record:
    raise ValueError(f"record {record.get('id')!r:.200} has no codes: run `vilau tokenize` first")
  shape, data = record.get(f"{name}_shape") or [], record[name]
  if len(shape) != 3 or min(shape) < 0 or math.prod(shape) * 2 != len(data):
    said = f"is damaged: {len(data)} bytes of codes of the shape {shape!r:.80}"
    raise ValueError(f"record {record.get('id')!r:.80} {said}")
  return np.frombuffer(data, "<u2").reshape(shape)


def write_shard(path: str | os.PathLike, encoded: Iterable[bytes]) -> int:
  """Writes one shard, which appears under its name only when it is whole; returns its records."""
  count = 0
  with replacing(epath.Path(path)) as temporary:
    writer = open_writer(temporary, writer_of(path))
    try:
      for data in encoded:
        writer.write(data)
        count += 1
    finally:
      writer.close()
  return count


def write_info(
  directory: os.PathLike,
  name: str,
  shards: Mapping[str, int],
  kinds: Mapping[str, int],
  info: Mapping[str, Any] | None,
  features: Mapping[str, int] | None = None,
) -> None:
  """Writes dataset_info.json, which makes a directory of records complete.

  Args:
    shards: file -> records.
    kinds: kind -> records.
    info: see Writer.
    features: feature -> how many records have it, where that was counted.
  """
  content = {
    "schema_version": SCHEMA_VERSION,
    "name": name,
    "records": sum(shards.values()),
    "kinds": dict(sorted(kinds.items())),
    "shards": [{"file": file, "records": count} for file, count in shards.items()],
    "info": dict(info or {}),
    **({"features": dict(features)} if features else {}),
  }
  write_text(epath.Path(directory) / INFO, json.dumps(content, indent=2, sort_keys=True) + "\n")


class Writer:
  """Context manager that writes a directory of records.

  Everything goes into `DIRECTORY.partial`, which takes the directory's name when the block ends
  well; an interrupted writer leaves nothing under that name and can be run again.

  Args:
    directory: must not hold records yet.
    name: of the shards.
    records_per_shard: the last shard may hold fewer.
    info: kept in dataset_info.json under "info".

  Raises:
    ValueError: if the directory exists, or nothing was written.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    name: str,
    *,
    records_per_shard: int = 10_000,
    info: Mapping[str, Any] | None = None,
  ):
    self.directory = pathlib.Path(directory)
    self.name, self.records_per_shard, self.info = name, records_per_shard, info
    self._partial = self.directory.with_name(self.directory.name + ".partial")
    self._counts: list[int] = []
    self._kinds: Counter[str] = Counter()
    self._writer = None

  def __enter__(self) -> "Writer":
    if self.directory.exists() and any(self.directory.iterdir()):
      raise ValueError(f"{self.directory} is not empty; remove it or choose another output")
    shutil.rmtree(self._partial, ignore_errors=True)
    self._partial.mkdir(parents=True)
    return self

  @property
  def count(self) -> int:
    """Records written so far."""
    return sum(self._counts)

  def write(self, record: Mapping[str, Any]) -> None:
    """Appends a record.

    Raises:
      ValueError: for an unknown kind or feature.
    """
    data = encode_checked(record)
    if self._writer is None:
      path = self._partial / f"{len(self._counts):05}"
      self._writer = open_writer(path)
      self._counts.append(0)
    self._writer.write(data)
    self._counts[-1] += 1
    self._kinds[record["kind"]] += 1
    if self._counts[-1] == self.records_per_shard:
      self._close_shard()

  def _close_shard(self) -> None:
    if self._writer is not None:
      self._writer.close()
      self._writer = None

  def __exit__(self, kind, error, trace) -> None:
    self._close_shard()
    if kind is not None or not self._counts:
      shutil.rmtree(self._partial, ignore_errors=True)
      if kind is None:
        raise ValueError(f"nothing was written to {self.directory}: no record was accepted")
      return
    shards = {}
    for index, count in enumerate(self._counts):
      file = shard_name(self.name, index, len(self._counts))
      os.replace(self._partial / f"{index:05}", self._partial / file)
      shards[file] = count
    write_info(self._partial, self.name, shards, self._kinds, self.info)
    if self.directory.exists():
      self.directory.rmdir()
    os.replace(self._partial, self.directory)


class Records:
  """Random access to a directory of records: `len(records)`, `records[i]`, iteration.

  Attributes:
    info: what the writer was given, for example the import's settings or the tower's id.
    path: the directory; gs:// is read at random too, a request a record.

  Raises:
    ValueError: if the directory is unfinished or of another schema version.
  """

  def __init__(self, directory: str | os.PathLike):
    self.path = epath.Path(directory)
    content = read_info(self.path)
    self.name: str = content["name"]
    self.kinds: dict[str, int] = content["kinds"]
    self.info: dict[str, Any] = content["info"]
    self.shards: dict[str, int] = shard_files(self.path, content)
    for file in self.shards:
      if not (self.path / file).is_file():
        raise ValueError(f"the shard {file} of {self.path} is missing; write the records again")
    with self._named():
      self._source = random_access([str(self.path / file) for file in self.shards])
      count = len(self._source)
    if count != content["records"]:
      said = f"{self.path} holds {count} records, {INFO} says {content['records']}"
      raise ValueError(f"{said}; write the records again")

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int) -> dict[str, Any]:
    if not -len(self) <= index < len(self):
      raise IndexError(f"record {index} of {self.path}, which holds {len(self)}")
    with self._named():
      return decode(self._source[index % len(self)])

  @contextlib.contextmanager
  def _named(self) -> Iterator[None]:
    """What array_record says of a damaged shard, with the place where to look."""
    try:
      yield
    except (RuntimeError, IndexError) as error:
      raise ValueError(f"a shard of {self.path} is damaged: {error!s:.500}") from error

  def __iter__(self) -> Iterator[dict[str, Any]]:
    return (self[i] for i in range(len(self)))

  def shard_ranges(self) -> dict[str, range]:
    """File name -> the indices of its records."""
    ranges, start = {}, 0
    for file, count in self.shards.items():
      ranges[file] = range(start, start + count)
      start += count
    return ranges


def read_info(directory: str | os.PathLike) -> dict[str, Any]:
  """dataset_info.json of a directory of records.

  Raises:
    ValueError: see Records.
  """
  path = epath.Path(directory) / INFO
  if not path.exists():
    raise ValueError(
      f"{directory} holds no records ({INFO} is missing): give a directory that `vilau data "
      "import` or `vilau tokenize` has finished"
    )
  try:
    content = jsons.parse_object(path.read_bytes())
  except ValueError as error:
    raise ValueError(f"{path} is damaged: {error}") from error
  version = content.get("schema_version")
  if version != SCHEMA_VERSION:
    raise ValueError(
      f"{path} has schema version {version!r:.80}; this vilau_jax reads {SCHEMA_VERSION}. Import "
      "the data again, or use the version that wrote it."
    )
  kinds = {"name": str, "records": int, "kinds": dict, "shards": list, "info": dict}
  wrong = [key for key, kind in kinds.items() if not isinstance(content.get(key), kind)]
  if wrong:
    raise ValueError(f"{path} is damaged: without a proper {', '.join(wrong)}")
  return content


def shard_files(directory: epath.Path, content: Mapping[str, Any]) -> dict[str, int]:
  """File -> records, by dataset_info.json; a shard lies in the directory, wherever its name says.

  Raises:
    ValueError: if a shard is described otherwise, or lies elsewhere.
  """
  found: dict[str, int] = {}
  for shard in content["shards"]:
    file, count = (shard.get("file"), shard.get("records")) if isinstance(shard, dict) else (0, 0)
    if not isinstance(file, str) or not isinstance(count, int):
      raise ValueError(f"{directory / INFO} is damaged: {shard!r:.80} describes no shard")
    if "/" in file or file in ("", ".", ".."):
      raise ValueError(f"{directory / INFO} names the shard {file!r:.200}, outside of its folder")
    found[file] = count
  return found
