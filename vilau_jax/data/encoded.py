"""Pictures as bytes from outside: opened with limits, and refused in words.

Pillow reads some fifty formats. Those that pictures of data sets and visitors come in are tried and
no others: one hands its files to Ghostscript, and hardly anybody looks after the rest.
"""

import contextlib
import functools
import io
import struct
import zlib
from collections.abc import Iterator

from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 64 * 2**20
WANTED = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "ICO", "AVIF", "JPEG2000")
# What Pillow raises over damaged files, most of it from deep inside of a format's reader.
_BREAKS = (
  OSError, SyntaxError, EOFError, ValueError, TypeError, LookupError, ArithmeticError,
  AttributeError, NotImplementedError, AssertionError, MemoryError, RecursionError, struct.error,
  zlib.error,
)  # fmt: skip


class BadPicture(ValueError):
  """What is wrong with a picture, in words for people."""


@functools.cache
def _formats() -> tuple[str, ...]:
  """Those of WANTED that this Pillow was built with."""
  Image.init()
  return tuple(name for name in WANTED if name in Image.OPEN)


@contextlib.contextmanager
def opened(data: bytes, name: str) -> Iterator[Image.Image]:
  """The picture, not decoded yet; what goes wrong with it inside the block is a ValueError."""
  try:
    with Image.open(io.BytesIO(data), formats=_formats()) as image:
      yield image
  except BadPicture:
    raise
  except UnidentifiedImageError as error:
    raise BadPicture(f"{name} is not a picture that can be read") from error
  except Image.DecompressionBombError as error:  # Pillow's own limit, far above ours
    raise BadPicture(
      f"{name} has too many pixels, at most {MAX_PIXELS} are read: {error}"
    ) from error
  except _BREAKS as error:
    raise BadPicture(f"{name} is a broken or cut-off picture: {error!s:.300}") from error


def size_of(data: bytes) -> tuple[int, int]:
  """(width, height) of an encoded picture by its header; nothing is decoded.

  Raises:
    BadPicture: if it is no picture.
  """
  with opened(data, "the given bytes") as image:
    return image.size


def check_size(image: Image.Image, name: str) -> None:
  """Raises BadPicture for one without pixels, or with too many."""
  width, height = image.size
  if width < 1 or height < 1:
    raise BadPicture(f"{name} is empty: {width}x{height} pixels")
  if width * height > MAX_PIXELS:
    raise BadPicture(
      f"{name} has {width}x{height} pixels; at most {MAX_PIXELS} are read (make it smaller)"
    )
