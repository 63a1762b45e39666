"""A piece of a source -> its shard files; what one worker of an import does.

Piece 12 leaves `000012-000.records`, `000012-001.records`, .. (at most records_per_shard each),
`000012.keys` (8 bytes a record, by which repetitions are found) and, last, `000012.json`: what
it holds and what was rejected. Without that last file the piece is not done.
"""

import collections
import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from vilau_jax.data import records, shards

SAMPLE = 64 * 1024  # bytes of both ends of a file that tell contents apart


class Reject(NamedTuple):
  """An entry that becomes no record.

  Attributes:
    id: of the entry in the source, as far as it has one.
    reason: for people.
    where: file and position.
    damaged: the source cannot be read behind it, so an unknown number of entries is lost.
  """

  id: str
  reason: str
  where: str = ""
  damaged: bool = False


class Note(NamedTuple):
  """Something to count in dataset_info.json, for example a caption that was filled in."""

  text: str


Converted = dict[str, Any] | Reject | Note


class Piece(NamedTuple):
  """A part of a source; the unit of work and of resuming.

  Attributes:
    name: for people: a file, or a file and which entries.
    payload: what Plan.convert takes; small, it goes to another process or machine.
    share: its part of the whole, for the progress (0..1).
  """

  name: str
  payload: Any
  share: float = 0.0


@dataclasses.dataclass(frozen=True)
class Task:
  """What a worker needs to know beside the piece; see imports.run."""

  convert: Callable[[Any], Iterator[Converted]]
  directory: str
  writer: str
  records_per_shard: int
  unique: str


@dataclasses.dataclass(frozen=True)
class Done:
  """What became of a piece: its files (name, records, bytes), counts, rejects."""

  name: str
  share: float
  files: list[tuple[str, int, int]]
  kinds: dict[str, int]
  features: dict[str, int]
  notes: dict[str, int]
  rejects: list[dict[str, Any]]

  @property
  def records(self) -> int:
    return sum(count for _, count, _ in self.files)


def should_stop() -> bool:
  """Replaced in worker processes, so that an interrupted import ends within a record."""
  return False


def convert_piece(task: Task, index: int, piece: Piece) -> Done:
  """Writes a piece's files."""
  files = _Shards(task, index)
  keys: list[int] = []
  kinds, features, notes = (collections.Counter() for _ in range(3))
  rejects: list[dict[str, Any]] = []
  with files:
    for item in _guarded(task.convert, piece):
      if should_stop():
        raise KeyboardInterrupt
      if isinstance(item, Note):
        notes[item.text] += 1
      elif isinstance(item, Reject):
        rejects.append(listed(item))
      elif isinstance(data := _encoded(item), Reject):
        rejects.append(listed(data))
      else:
        files.write(data)
        keys.append(_key(task, item, data))
        kinds[item["kind"]] += 1
        features.update(name for name, value in item.items() if value is not None)
  root = epath.Path(task.directory)
  with shards.replacing(root / f"{index:06}.keys") as temporary:
    np.array(keys, "<u8").tofile(temporary)
  done = Done(
    piece.name, piece.share, files.files, dict(kinds), dict(features), dict(notes), rejects
  )
  _write_done(task, index, done)
  return done


def _guarded(convert, piece: Piece) -> Iterator[Converted]:
  """A file that cannot be read costs its own piece only."""
  try:
    yield from convert(piece.payload)
  except ValueError as error:
    yield Reject("", str(error), piece.name, damaged=True)


def _encoded(record: dict[str, Any]) -> bytes | Reject:
  try:
    return records.encode_checked(record)
  except ValueError as error:
    return Reject(str(record.get("id", "")), str(error))


def listed(reject: Reject) -> dict[str, Any]:
  """A line of rejects.jsonl; half a surrogate pair, which JSON can carry, is written out."""
  texts = (reject.id, reject.reason, reject.where)
  found = {name: text.encode("utf-8", "backslashreplace").decode()
           for name, text in zip(("id", "reason", "where"), texts)}  # fmt: skip
  return found | ({"damaged": True} if reject.damaged else {})


def _key(task: Task, record: Mapping[str, Any], data: bytes) -> int:
  # Equal keys only suggest a repetition, so both ends of a record with its size are enough.
  ends = data[:1024] + data[-1024:] + str(len(data)).encode()
  seen = ends if task.unique == "record" else record["id"].encode()
  return int.from_bytes(hashlib.blake2b(seen, digest_size=8).digest(), "little")


class _Shards:
  """Context manager: one file after the other, each under its name only when it is whole."""

  def __init__(self, task: Task, index: int):
    self.task, self.index = task, index
    self.files: list[tuple[str, int, int]] = []
    self._stack, self._writer, self._count = contextlib.ExitStack(), None, 0

  def __enter__(self) -> "_Shards":
    return self

  def write(self, data: bytes) -> None:
    if self._writer is None:
      self._name = f"{self.index:06}-{len(self.files):03}.records"
      path = epath.Path(self.task.directory) / self._name
      self._temporary = self._stack.enter_context(shards.replacing(path))
      self._writer = shards.open_writer(self._temporary, self.task.writer)
    self._writer.write(data)
    self._count += 1
    if self._count == self.task.records_per_shard:
      self._close()

  def _close(self) -> None:
    self._writer.close()
    self.files.append((self._name, self._count, os.path.getsize(self._temporary)))
    self._writer, self._count = None, 0
    self._stack.close()

  def __exit__(self, kind, error, trace) -> None:
    if self._writer is not None and kind is None:
      self._close()
    elif self._writer is not None:
      self._writer.close()
    self._stack.__exit__(kind, error, trace)


def _write_done(task: Task, index: int, done: Done) -> None:
  path = epath.Path(task.directory) / f"{index:06}.json"
  shards.write_text(path, json.dumps(dataclasses.asdict(done), sort_keys=True))


def read_done(task: Task, index: int) -> Done | None:
  """What became of a piece; None if it, or one of its files, is not there or of another size."""
  root = epath.Path(task.directory)
  path = root / f"{index:06}.json"
  if not path.exists() or not (root / f"{index:06}.keys").exists():
    return None
  content = json.loads(path.read_text())
  content["files"] = [tuple(file) for file in content["files"]]
  done = Done(**content)
  for name, _, size in done.files:
    if not (root / name).exists() or (root / name).stat().length != size:
      return None
  return done


def read_keys(task: Task, index: int) -> np.ndarray:
  data = (epath.Path(task.directory) / f"{index:06}.keys").read_bytes()
  return np.frombuffer(data, "<u8")


def drop(task: Task, index: int, repeated: Mapping[int, tuple[int, int]]) -> int:
  """Takes repetitions out of a piece: number in it -> (piece, number) of what came before.

  Returns the number of those whose id (or bytes) are really equal, not only their keys.
  """
  done, keys = read_done(task, index), read_keys(task, index)
  kinds, features = collections.Counter(done.kinds), collections.Counter(done.features)
  # Read before anything is rewritten: they may be of this very piece.
  earlier = {number: _raw(task, *before) for number, before in repeated.items()}
  files, kept_keys, rejects, number = [], [], list(done.rejects), 0
  for name, _, _ in done.files:
    kept = []
    for data in _read(task, name):
      if number in earlier and _same(task, data, earlier[number]):
        record, (piece, place) = records.decode(data), repeated[number]
        reason = f"it came before: {read_done(task, piece).name}, record {place}"
        rejects.append({"id": record["id"], "reason": reason, "where": done.name})
        kinds[record["kind"]] -= 1
        features.subtract(list(record))
      else:
        kept.append(data)
        kept_keys.append(keys[number])
      number += 1
    files += _rewrite(task, name, kept)
  with shards.replacing(epath.Path(task.directory) / f"{index:06}.keys") as temporary:
    np.array(kept_keys, "<u8").tofile(temporary)
  new = dataclasses.replace(
    done, files=files, rejects=rejects, kinds=dict(+kinds), features=dict(+features)
  )
  _write_done(task, index, new)
  return done.records - new.records


def _rewrite(task: Task, name: str, kept: list[bytes]) -> list[tuple[str, int, int]]:
  path = epath.Path(task.directory) / name
  if not kept:
    path.unlink()
    return []
  with shards.replacing(path) as temporary:
    writer = shards.open_writer(temporary, task.writer)
    for data in kept:
      writer.write(data)
    writer.close()
    return [(name, len(kept), os.path.getsize(temporary))]


def _same(task: Task, data: bytes, earlier: bytes) -> bool:
  if task.unique == "record":
    return data == earlier
  return records.decode(data)["id"] == records.decode(earlier)["id"]


def _raw(task: Task, index: int, number: int) -> bytes:
  """The bytes of a piece's record."""
  for name, count, _ in read_done(task, index).files:
    if number < count:
      with shards.local(epath.Path(task.directory) / name) as path:
        return shards.read_one(path, number, task.writer)
    number -= count
  raise AssertionError(f"piece {index} has no record {number}")


def _read(task: Task, name: str) -> list[bytes]:
  with shards.local(epath.Path(task.directory) / name) as path:
    return list(shards.read_shard(path, task.writer))


def digest(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()[:16]


def fingerprint(root: epath.Path, files: Iterable[epath.Path]) -> dict[str, str]:
  """File, relative to root -> its size and a digest of its two ends, which a copy keeps."""
  found = {}
  for path in files:
    size = path.stat().length
    with path.open("rb") as f:
      ends = f.read(SAMPLE)
      if size > SAMPLE:
        f.seek(max(SAMPLE, size - SAMPLE))
        ends += f.read(SAMPLE)
    name = os.path.relpath(path, root) if path != root else path.name
    found[name] = f"{size}:{digest(ends)}"
  return found
