"""What visitors of the page hand in: checked against limits before anything is decoded."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import av
import numpy as np
from etils import epath

from vilau_jax.data import containers, encoded, media

FRAMES_A_SECOND = 240  # that a video may have: its header need not tell how long it is
LARGEST_SEED = 2**32 - 1
SETTINGS = ("cfg_scale", "temperature", "top_k", "top_p")
VIDEO_SUFFIXES = (
  ".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v", ".mpg", ".mpeg", ".3gp", ".3g2", ".wmv", ".asf",
  ".flv", ".ogv", ".ogg", ".ts", ".m2ts",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Limits:
  """What one visitor may ask for.

  Attributes:
    megabytes: of a file.
    megapixels: of a picture, or of a frame of a video.
    seconds: of a video.
    outputs: pictures or videos of one request.
    characters: of a prompt or question.
  """

  megabytes: float = 20
  megapixels: float = 16
  seconds: float = 60
  outputs: int = 16
  characters: int = 2000


def is_video(path: str | os.PathLike) -> bool:
  """By the name's end."""
  return pathlib.Path(path).suffix.lower() in VIDEO_SUFFIXES


def picture(path: str | os.PathLike, side: int, limits: Limits) -> np.ndarray:
  """An uploaded picture as the tower sees it, uint8 [S, S, 3].

  Raises:
    ValueError: in words for the visitor, who knows the file's name and not where it lies.
  """
  name, path = _sized(path, limits)
  data = path.read_bytes()
  try:
    width, height = encoded.size_of(data)
    _check_pixels(name, width, height, limits)
    return media.to_square(data, side)
  except encoded.BadPicture as error:
    words = str(error).replace("the given bytes", name)
    raise ValueError(words.replace("can be read", "can be read; try a PNG or a JPEG")) from error


def video(path: str | os.PathLike, side: int, frames: int, limits: Limits) -> Sequence[np.ndarray]:
  """`frames` frames of an uploaded video as the tower sees them, each uint8 [S, S, 3].

  Raises:
    ValueError: see picture.
  """
  name, path = _sized(path, limits)
  path = epath.Path(path)
  try:
    with containers.opened(str(path), name, int(limits.megapixels * 1e6)) as container:
      stream = container.streams.video[0]
      width, height = stream.width, stream.height
      seconds = (container.duration or 0) / av.time_base
  except av.error.FFmpegError as error:
    raise ValueError(f"{name} is not a video that can be read; try an MP4") from error
  _check_pixels(name, width, height, limits)
  if seconds > limits.seconds:
    raise ValueError(
      f"{name} is {seconds:.0f} seconds long; at most {limits.seconds:g} are taken: cut it"
    )
  try:
    most = int(limits.megapixels * 1e6), int(limits.seconds * FRAMES_A_SECOND)
    shown = containers.read(path, lambda total: media.frame_indices(total, frames), *most)
    return [media.to_square(frame, side) for frame in shown.frames]
  except ValueError as error:
    raise ValueError(str(error).replace(str(path), name)) from error


def text(words: str | None, limits: Limits, what: str = "prompt") -> str:
  """The words, stripped.

  Raises:
    ValueError: if there are none, or too many.
  """
  if words is not None and not isinstance(words, str):
    raise ValueError(f"the {what} must be a text")
  words = (words or "").strip()
  if not words:
    raise ValueError(f"the {what} is empty: write something first")
  if len(words) > limits.characters:
    raise ValueError(
      f"the {what} has {len(words)} characters; at most {limits.characters} are taken"
    )
  try:
    words.encode()
  except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can carry
    raise ValueError(f"the {what} is not Unicode text") from error
  return words


def whole(value: Any, least: int, most: int, what: str) -> int:
  """A whole number of the page's fields, which a client can fill with anything.

  Raises:
    ValueError: for what is no whole number, or outside of least..most.
  """
  number = _number(value, what)
  if number != int(number):
    raise ValueError(f"the {what} must be a whole number")
  if not least <= number <= most:
    raise ValueError(f"the {what} must be in {least} to {most}, got {int(number)}")
  return int(number)


def settings(given: Any) -> dict[str, float | int]:
  """How to draw, of fields that are filled; sampling.Sampling knows their ranges.

  Raises:
    ValueError: for an unknown one, or what is no number.
  """
  if not isinstance(given, Mapping) or not set(given) <= set(SETTINGS):
    raise ValueError(f"settings must be of {', '.join(SETTINGS)}")
  found: dict[str, float | int] = {}
  for name, value in given.items():
    if value is not None:
      top_k = name == "top_k"
      found[name] = whole(value, 1, LARGEST_SEED, name) if top_k else _number(value, name)
  return found


def _number(value: Any, what: str) -> float:
  if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e15:
    raise ValueError(f"the {what} must be a number")
  if not math.isfinite(value):
    raise ValueError(f"the {what} must be a finite number")
  return float(value)


def _sized(path: str | os.PathLike, limits: Limits) -> tuple[str, pathlib.Path]:
  path = pathlib.Path(path)
  if not path.exists():
    raise ValueError(f"{path.name} is no longer here: upload it again")
  size = path.stat().st_size
  if not size:
    raise ValueError(f"{path.name} is an empty file")
  if size > limits.megabytes * 1e6:
    raise ValueError(f"{path.name} has {size / 1e6:.3g} MB; at most {limits.megabytes:g} are taken")
  return path.name, path


def _check_pixels(name: str, width: int, height: int, limits: Limits) -> None:
  if width * height > limits.megapixels * 1e6:
    raise ValueError(
      f"{name} has {width}x{height} pixels; at most {limits.megapixels:g} million are taken: "
      "make it smaller"
    )
