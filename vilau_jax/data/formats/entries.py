"""What the formats share: entries of a source -> parts of records, or the reason why not."""

import base64
import binascii
import io
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from etils import epath
from PIL import Image

from vilau_jax.data import media
from vilau_jax.data.formats import ranges
from vilau_jax.data.formats.ranges import Entry, Range
from vilau_jax.data.pieces import Converted, Piece, Reject


def convert(
  entries: Iterator[Entry], record: Callable[[Any, int], dict[str, Any]], key: str = "id"
) -> Iterator[Converted]:
  """Entries -> records; an entry that `record(value, number)` refuses is rejected alone.

  Args:
    key: the field by which people know an entry.
  """
  for entry in entries:
    name = ""
    if isinstance(entry.value, dict) and isinstance(entry.value.get(key), str | int):
      name = str(entry.value[key])
    try:
      if entry.problem:
        raise ValueError(entry.problem)
      if not isinstance(entry.value, dict):
        raise ValueError(f"an entry must be an object, it is {entry.value!r:.60}")
      yield record(entry.value, entry.number)
    except ValueError as error:
      yield Reject(name, str(error), entry.where)


def listed(path: epath.Path, values: Sequence[Any]) -> Iterator[Entry]:
  """The values of a list that was read from a file."""
  for number, value in enumerate(values):
    yield Entry(f"{path.name}, entry {number}", number, value)


def range_pieces(path: epath.Path, parts: Iterator[Range]) -> Iterator[Piece]:
  size = max(path.stat().length, 1)
  for part in parts:
    yield Piece(part.name, part, (part.stop - part.start) / size)


def file_pieces(paths: Sequence[epath.Path]) -> Iterator[Piece]:
  """A piece a file; its share is by size."""
  sizes = [path.stat().length for path in paths]
  total = max(sum(sizes), 1)
  for path, size in zip(paths, sizes):
    yield Piece(path.name, str(path), size / total)


def json_pieces(path: epath.Path) -> Iterator[Piece]:
  return range_pieces(path, ranges.split_json(path))


def text(value: Any, what: str = "caption") -> str:
  """A stripped string.

  Raises:
    ValueError: if it is none, empty, or cannot be UTF-8.
  """
  if not isinstance(value, str):
    raise ValueError(f"the {what} is not a string: {value!r:.60}")
  value = value.strip()
  if not value:
    raise ValueError(f"the {what} is empty")
  try:
    value.encode()
  except UnicodeEncodeError as error:
    raise ValueError(f"the {what} is not Unicode text: {error}") from error
  return value


def images(encoded: Sequence[bytes], size: int = 0) -> dict[str, Any]:
  """Pictures as a record has them.

  Raises:
    ValueError: for one that is no picture; names it if there are several.
  """
  stored = []
  for number, data in enumerate(encoded):
    try:
      stored.append(media.store(data, size))
    except ValueError as error:
      raise ValueError(f"image {number}: {error}" if len(encoded) > 1 else str(error)) from error
  return {
    "images": [s.data for s in stored],
    "width": [s.width for s in stored],
    "height": [s.height for s in stored],
  }


def video(path: str, count: int, fps: float | None = None) -> dict[str, Any]:
  """`count` frames of a video file as a record has them (JPEG of quality 95).

  Raises:
    ValueError: if there is no video to read.
  """
  clip = media.read_clip(path, count)
  return {
    "frames": [_jpeg(frame) for frame in clip.frames],
    "frame_index": clip.indices,
    "n_frames": clip.total,
    "fps": float(fps or clip.fps),
    "width": [frame.width for frame in clip.frames],
    "height": [frame.height for frame in clip.frames],
  }


def _jpeg(frame: Image.Image) -> bytes:
  buffer = io.BytesIO()
  frame.save(buffer, format="JPEG", quality=95)
  return buffer.getvalue()


def inside(root: str | os.PathLike, name: Any, what: str = "image") -> str:
  """The path of a file named by an entry, which must lie below root.

  Raises:
    ValueError: if the name is none, leads out of root, or there is no such file.
  """
  if not isinstance(name, str) or not name:
    raise ValueError(f"the {what} is not the name of a file: {name!r:.60}")
  if name.startswith("/") or "://" in name or ".." in name.split("/"):
    raise ValueError(f"the {what} {name} is outside of the folder")
  path = os.path.join(root, name)
  local = "://" not in path
  if not (os.path.isfile(path) if local else epath.Path(path).is_file()):
    raise ValueError(f"no {what}: the file {name} is missing")
  return path


def read(root: str | os.PathLike, name: Any) -> bytes:
  """The bytes of a picture's file, see inside."""
  return read_file(inside(root, name))


def read_file(path: str) -> bytes:
  """Local files without the detour through the layer for object stores, which takes as long as
  decoding a small picture."""
  if "://" in path:
    return epath.Path(path).read_bytes()
  with open(path, "rb") as f:
    return f.read()


def from_base64(value: Any) -> bytes:
  """Raises: ValueError if it is no base64."""
  try:
    value = value.decode("ascii") if isinstance(value, bytes) else value
    return base64.b64decode("".join(value.split()), validate=True)  # MIME breaks its lines
  except (binascii.Error, AttributeError, TypeError, ValueError) as error:
    raise ValueError(f"the image is not base64: {error}") from error


def folder(source: str | os.PathLike | None, what: str) -> epath.Path:
  """Raises: ValueError if --source is missing or no folder."""
  if source is None:
    raise ValueError(f"say where the raw data is: --source={what}")
  root = epath.Path(source)
  if not root.is_dir():
    raise ValueError(f"no folder at {root}; --source={what}")
  return root


def file(source: str | os.PathLike | None, what: str) -> epath.Path:
  """Raises: ValueError if --source is missing or no file."""
  if source is None:
    raise ValueError(f"say where the raw data is: --source={what}")
  path = epath.Path(source)
  if not path.is_file():
    raise ValueError(f"no file at {path}; --source={what}")
  return path


def beside(images: str | os.PathLike | None) -> dict[str, str]:
  """What an import's settings say of a folder of pictures that is not the source's own: its name,
  since records do not depend on the place."""
  return {} if images is None else {"images": epath.Path(images).name}


def found(root: epath.Path, *patterns: str) -> list[epath.Path]:
  """Files of a folder in the order of their names.

  Raises:
    ValueError: if there is none.
  """
  paths = sorted({path for pattern in patterns for path in root.glob(pattern)})
  if not paths:
    raise ValueError(f"{root} holds no {' or '.join(patterns)}")
  return paths
