"""Finished parts of an evaluation on disk, so that an interrupted one continues."""

import contextlib
import dataclasses
import json
import os
import pathlib
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from absl import logging


@dataclasses.dataclass(frozen=True)
class Part:
  """What one part found: `values` is JSON, `arrays` are pictures, codes and the like."""

  values: dict[str, Any]
  arrays: dict[str, np.ndarray]
  seconds: float


class Parts:
  """A directory of parts that belong together.

  Args:
    directory: made when absent.
    stamp: what the parts depend on (model, data, seed, sizes); parts with another stamp are
      computed again.
    say: gets one line a part.
  """

  def __init__(
    self, directory: str | os.PathLike, stamp: dict[str, Any], say: Callable[[str], None] = print
  ):
    self.directory = pathlib.Path(directory)
    self.directory.mkdir(parents=True, exist_ok=True)
    self.stamp = json.loads(json.dumps(stamp))
    self.say = say
    self.computed_seconds = 0.0  # in this process
    self.all_seconds = 0.0  # of every part asked for, whenever it was computed

  def get(
    self, name: str, compute: Callable[[], tuple[dict[str, Any], dict[str, np.ndarray]]]
  ) -> Part:
    """The part `name`: read when finished with this stamp, else computed and kept."""
    part = self._read(name)
    if part is not None:
      self.say(f"  {name}: kept from before ({part.seconds:.0f} s)")
    else:
      began = time.monotonic()
      values, arrays = compute()
      part = self._write(name, values, arrays, time.monotonic() - began)
      self.computed_seconds += part.seconds
      self.say(f"  {name}: {part.seconds:.0f} s")
    self.all_seconds += part.seconds
    return part

  def _read(self, name: str) -> Part | None:
    return read(self.directory, name, self.stamp)

  def _write(self, name: str, values, arrays, seconds: float) -> Part:
    values = json.loads(json.dumps(values))  # the same types, fresh or read again
    arrays = {key: np.asarray(value) for key, value in arrays.items()}
    path = self.directory / f"{name}.json"
    with replacing(path.with_suffix(".npz")) as temporary:
      with open(temporary, "wb") as f:
        np.savez_compressed(f, **arrays)
    with replacing(path) as temporary:  # last: its presence says that the part is whole
      stored = {"stamp": self.stamp, "seconds": seconds, "values": values}
      temporary.write_text(json.dumps(stored, indent=1), encoding="utf-8")
    return Part(values, arrays, seconds)


def read(
  directory: str | os.PathLike, name: str, stamp: dict[str, Any] | None = None
) -> Part | None:
  """A part if it is there and whole; with a stamp, if that is its own."""
  path = pathlib.Path(directory) / f"{name}.json"
  if not path.exists():
    return None
  try:
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stamp is not None and stored["stamp"] != stamp:
      return None
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
      return Part(stored["values"], dict(arrays), stored["seconds"])
  except (ValueError, KeyError, TypeError, EOFError, FileNotFoundError, zipfile.BadZipFile):
    logging.warning("%s or %s is damaged, and left out", path, path.with_suffix(".npz").name)
    return None  # half-written by something else than us: compute it again


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """A temporary path that takes the place of `path` when the block succeeds."""
  path = pathlib.Path(path)
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    yield temporary
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
