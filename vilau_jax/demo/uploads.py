"""What visitors of the page hand in: checked against limits before anything is decoded."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import av
import numpy as np
from PIL import Image, UnidentifiedImageError

from vilau_jax.data import media

VIDEO_SUFFIXES = (".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v")


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
  try:
    with Image.open(path) as opened:  # reads the header only
      width, height = opened.size
  except Image.DecompressionBombError as error:  # Pillow's own limit
    most = limits.megapixels
    raise ValueError(f"{name} has too many pixels; at most {most:g} million are taken") from error
  except (UnidentifiedImageError, OSError, SyntaxError) as error:
    raise ValueError(f"{name} is not a picture that can be read; try a PNG or a JPEG") from error
  _check_pixels(name, width, height, limits)
  try:
    return media.to_square(path.read_bytes(), side)
  except ValueError as error:
    raise ValueError(str(error).replace("the given bytes", name)) from error


def video(path: str | os.PathLike, side: int, frames: int, limits: Limits) -> Sequence[np.ndarray]:
  """`frames` frames of an uploaded video as the tower sees them, each uint8 [S, S, 3].

  Raises:
    ValueError: see picture.
  """
  name, path = _sized(path, limits)
  try:
    with av.open(str(path)) as container:
      if not container.streams.video:
        raise ValueError(f"{name} holds no video")
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
    return [media.to_square(frame, side) for frame in media.read_video(path, frames)]
  except ValueError as error:
    raise ValueError(str(error).replace(str(path), name)) from error


def text(words: str | None, limits: Limits, what: str = "prompt") -> str:
  """The words, stripped.

  Raises:
    ValueError: if there are none, or too many.
  """
  words = (words or "").strip()
  if not words:
    raise ValueError(f"the {what} is empty: write something first")
  if len(words) > limits.characters:
    raise ValueError(
      f"the {what} has {len(words)} characters; at most {limits.characters} are taken"
    )
  return words


def _sized(path: str | os.PathLike, limits: Limits) -> tuple[str, pathlib.Path]:
  path = pathlib.Path(path)
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
