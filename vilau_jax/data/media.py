"""Pictures and videos: opened with limits, made square, written, laid out in sheets."""

import fractions
import io
import numbers
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from vilau_jax import paths
from vilau_jax.data import containers, encoded, shards

MAX_CANVAS = 2**13  # side of a square that a picture is put on; longer ones are reduced before
GEOMETRIES = ("resize", "crop", "pad")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
GRAY = (127, 127, 127)

Source = bytes | str | os.PathLike | np.ndarray | Image.Image


def open_image(source: Source) -> Image.Image:
  """Any picture as RGB.

  The size is read from the header before anything is decoded. Transparent pictures are put on
  white. EXIF orientation is ignored, as the released code does.

  Args:
    source: encoded bytes, a path, an array uint8 [H,W], [H,W,3] or [H,W,4], or a PIL image.

  Raises:
    ValueError: if it is no picture, is cut off, or has more than 64 Mpixel (2**26).
  """
  if isinstance(source, Image.Image):
    return _rgb(source, "the given image")
  if isinstance(source, bytearray | memoryview):
    source = bytes(source)
  if hasattr(source, "__array__"):  # numpy's, jax's, torch's
    return _from_array(np.asarray(source))
  if not isinstance(source, bytes | str | os.PathLike):
    raise ValueError(
      f"a picture is a path, encoded bytes, an array or a PIL image, not a {type(source).__name__}"
    )
  name = "the given bytes" if isinstance(source, bytes) else os.fspath(source)
  if not isinstance(source, bytes):
    source = read_file(source)
  with encoded.opened(source, name) as image:
    return _rgb(image, name)


def read_file(path: str | os.PathLike) -> bytes:
  """The bytes of a picture's file.

  Raises:
    ValueError: if there is no such file.
  """
  try:
    return epath.Path(path).read_bytes()
  except OSError as error:  # not there, a folder, a name that is too long, ..
    raise ValueError(f"no image file at {os.fspath(path)!s:.500} ({error.strerror})") from error


class Stored(NamedTuple):
  """A picture as records keep it."""

  data: bytes
  width: int
  height: int


def store(data: bytes, size: int = 0) -> Stored:
  """What to keep of an encoded picture, once it has been decoded to its end.

  JPEG, PNG and WebP stay as they are, with their EXIF, everything else becomes PNG.

  Args:
    size: squeeze it to size x size (bicubic), as PNG; 0 keeps it.

  Raises:
    ValueError: see open_image.
  """
  name = "the picture"
  with encoded.opened(data, name) as image:
    if size:
      return Stored(encode_png(to_square(_rgb(image, name), size)), size, size)
    encoded.check_size(image, name)
    if image.format in ("JPEG", "MPO", "PNG", "WEBP"):  # MPO: a JPEG with a second view behind it
      image.load()
      return Stored(data, *image.size)
    image = _rgb(image, name)
  return Stored(encode_png(image), *image.size)


def _rgb(image: Image.Image, name: str) -> Image.Image:
  encoded.check_size(image, name)
  if image.mode in ("I", "I;16", "I;16B", "I;16L", "F"):  # first: PIL would cut off its values
    return _from_array(_to_8_bit(np.asarray(image)))
  if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")
  return image.convert("RGB")


def _to_8_bit(values: np.ndarray) -> np.ndarray:
  """Gray values of more than 8 bits; the range is that of 16 bits unless they fit into 8."""
  values = np.nan_to_num(values.astype(np.float64), copy=False)  # a TIFF may hold any float
  values *= 1.0 if values.max(initial=0) <= 255 else 255 / 65535
  return np.clip(values, 0, 255, out=values).astype(np.uint8)


def _from_array(array: np.ndarray) -> Image.Image:
  if array.dtype != np.uint8:
    raise ValueError(f"an image array must be uint8 in 0..255, got {array.dtype}")
  if array.ndim == 3 and array.shape[-1] == 1:
    array = array[..., 0]
  if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
    raise ValueError(f"an image array must be [H,W], [H,W,3] or [H,W,4], got {array.shape}")
  if 0 in array.shape:
    raise ValueError(f"an image array is empty: {array.shape}")
  return _rgb(Image.fromarray(array), "the given array")


def to_square(image: Source, side: int, geometry: str = "resize") -> np.ndarray:
  """A picture as the tower sees it, bit-equal to the released preprocessing.

  Args:
    image: see open_image.
    side: S.
    geometry: "resize" squeezes (understanding); "crop" takes the centre square of a landscape and
      the top square of a portrait (generation); "pad" puts it on gray.

  Returns:
    uint8 [S,S,3], resized with PIL's bicubic filter.

  Raises:
    ValueError: for an unknown geometry or what open_image refuses.
  """
  image = open_image(image)
  width, height = image.size
  short = min(width, height)
  if geometry == "crop":
    # Python's round is half to even, as in the reference.
    left, top = (0, 0) if width < height else (round((width - short) / 2), 0)
    image = image.crop((left, top, left + short, top + short))
  elif geometry == "pad":
    long = max(width, height)
    if long > MAX_CANVAS:  # the square of a long strip would be larger than any memory
      image = image.reduce(-(-long // MAX_CANVAS))
      (width, height), long = image.size, max(image.size)
    canvas = Image.new("RGB", (long, long), GRAY)
    canvas.paste(image, ((long - width) // 2, (long - height) // 2))
    image = canvas
  elif geometry != "resize":
    raise ValueError(f"geometry must be one of {GEOMETRIES}, got {geometry!r}")
  if image.size != (side, side):
    image = image.resize((side, side), Image.Resampling.BICUBIC)
  return np.asarray(image)


def random_square(image: Source, side: int, rng: np.random.Generator) -> np.ndarray:
  """Augmentation of tower training: half of the pictures squeezed, of the others a random square of
  the short side. No flips: they break writing and the words left and right. uint8 [S,S,3]."""
  image = open_image(image)
  width, height = image.size
  if width != height and rng.random() < 0.5:
    short = min(width, height)
    left, top = (int(rng.integers(0, side + 1)) for side in (width - short, height - short))
    image = image.crop((left, top, left + short, top + short))
  return to_square(image, side)


def random_crop(image: Source, side: int, rng: np.random.Generator) -> np.ndarray:
  """RQ-VAE's augmentation for ImageNet, which has no captions to contradict: a random square of the
  short side, mirrored half of the time. uint8 [S,S,3]."""
  image = open_image(image)
  short = min(image.size)
  left, top = (int(rng.integers(0, length - short + 1)) for length in image.size)
  square = to_square(image.crop((left, top, left + short, top + short)), side)
  return square[:, ::-1] if rng.random() < 0.5 else square


def frame_indices(count: int, frames: int) -> list[int]:
  """Which of `count` frames to take: evenly spread with both ends (rounded half to even)."""
  if count < 1:
    raise ValueError("a video must have at least one frame")
  return [int(i) for i in np.round(np.linspace(0, count - 1, frames))]


def frame_indices_opencv(count: int, frames: int) -> list[int]:
  """Which frames VILA's scripts of 2024 took, with which videos were judged: the last frame is left
  out, and places are truncated. Videos of fewer than `frames` are read as frame_indices says."""
  if count < frames:
    return frame_indices(count, frames)
  return [int(i) for i in np.linspace(0, count - 2, frames)]


Choose = Callable[[int, int], list[int]]  # of how many frames how many -> which


def read_video(
  source: str | os.PathLike | Sequence[Source], count: int, choose: Choose = frame_indices
) -> list[Image.Image]:
  """`count` frames of a video, see read_clip."""
  return read_clip(source, count, choose).frames


def read_clip(
  source: str | os.PathLike | Sequence[Source], count: int, choose: Choose = frame_indices
) -> containers.Clip:
  """`count` frames of a video, evenly spread from the first to the last.

  Args:
    source: a video file, a folder of pictures (in the order of their names), or the frames.
    count: frames to return; a shorter video repeats some.
    choose: another way to spread them.

  Raises:
    ValueError: if there is no frame to read, or a file is cut off.
  """
  if count < 1:
    raise ValueError(f"at least one frame must be taken from a video, got {count}")
  if isinstance(source, str | os.PathLike):
    path = epath.Path(source)
    if path.is_file():
      return containers.read(path, lambda total: choose(total, count), encoded.MAX_PIXELS)
    if not path.is_dir():
      raise ValueError(f"no video file or folder of frames at {path}")
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
      raise ValueError(f"the folder {path} holds no pictures to read as frames")
    source = found
  if not len(source):
    raise ValueError("a video must have at least one frame")
  wanted = choose(len(source), count)
  return containers.Clip([open_image(source[i]) for i in wanted], wanted, len(source), 0.0)


def write_video(frames: np.ndarray, path: str | os.PathLike, fps: float = 8) -> pathlib.Path:
  """Writes uint8 [F,S,S,3] as MP4 (H.264, which every player and browser has).

  An odd side is extended by its last row or column, because the codecs need even ones.

  Raises:
    ValueError: for another shape or type, a rate below 0.01 or above 1000, or a PyAV that cannot
      write H.264.
  """
  import av

  if "libx264" not in av.codecs_available:
    raise ValueError("this PyAV cannot write H.264 (it was built without libx264): pip install av")

  frames = np.asarray(frames)
  check_fps(fps)
  if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
    raise ValueError(f"frames must be uint8 [F,S,S,3], got {frames.dtype} {frames.shape}")
  path = _prepared(path)
  height, width = frames.shape[1:3]
  frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
  with shards.replacing(path) as temporary, av.open(temporary, "w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=fractions.Fraction(fps).limit_denominator(1001))
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = "yuv420p"
    stream.options = {"crf": "12"}
    for frame in frames:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode(None))
  return path


def check_fps(fps: float) -> None:
  """Raises ValueError unless a video can have this rate."""
  number = isinstance(fps, numbers.Real) and not isinstance(fps, bool)
  if not number or not 0.01 <= fps <= 1000:
    raise ValueError(f"a video has 0.01 to 1000 frames a second, got {fps!r:.200}")


def write_gif(frames: np.ndarray, path: str | os.PathLike, fps: float = 4) -> pathlib.Path:
  """Writes uint8 [F,S,S,3] as an endless GIF, which every browser plays inside a page."""
  path = _prepared(path)
  images = [Image.fromarray(frame) for frame in np.asarray(frames)]
  write = dict(format="GIF", save_all=True, append_images=images[1:], loop=0)
  with shards.replacing(path) as temporary:
    images[0].save(temporary, duration=round(1000 / fps), **write)
  return path


def write_image(
  image: Source, path: str | os.PathLike, metadata: dict[str, Any] | None = None
) -> pathlib.Path:
  """Writes a PNG; metadata goes into its text chunks."""
  path = _prepared(path)
  info = PngImagePlugin.PngInfo()
  for key, value in (metadata or {}).items():
    info.add_itxt(str(key), str(value))
  with shards.replacing(path) as temporary:
    open_image(image).save(temporary, format="PNG", pnginfo=info)
  return path


def encode_png(image: Source) -> bytes:
  """A picture as the bytes of a PNG; the same picture gives the same bytes."""
  buffer = io.BytesIO()
  open_image(image).save(buffer, format="PNG")
  return buffer.getvalue()


def contact_sheet(
  images: Iterable[Source],
  columns: int = 8,
  captions: Sequence[str] | None = None,
  *,
  scale: int = 1,
  gap: int = 4,
) -> np.ndarray:
  """Pictures in rows on light gray, each with its caption below, uint8 [H,W,3].

  Args:
    images: of any sizes; every cell is as large as the largest.
    captions: one a picture; wrapped to its width.
    scale: whole factor by which pictures are enlarged, pixels kept sharp.

  Raises:
    ValueError: without pictures, or with another number of captions.
  """
  opened = [open_image(image) for image in images]
  if not opened:
    raise ValueError("a contact sheet needs pictures")
  if captions is not None and len(captions) != len(opened):
    raise ValueError(f"{len(captions)} captions for {len(opened)} pictures")
  opened = [i.resize((i.width * scale, i.height * scale), Image.Resampling.NEAREST) for i in opened]
  width, height = max(i.width for i in opened), max(i.height for i in opened)
  font = ImageFont.load_default(size=11)
  wrapped = [_wrap(text, font, width) for text in captions] if captions is not None else []
  line = 13
  room = line * max((len(lines) for lines in wrapped), default=0)
  columns = min(columns, len(opened))
  rows = -(-len(opened) // columns)
  size = (columns * (width + gap) + gap, rows * (height + room + gap) + gap)
  sheet = Image.new("RGB", size, (236, 236, 236))
  draw = ImageDraw.Draw(sheet)
  for index, image in enumerate(opened):
    y, x = divmod(index, columns)
    x, y = gap + x * (width + gap), gap + y * (height + room + gap)
    sheet.paste(image, (x, y))
    for number, text in enumerate(wrapped[index] if wrapped else []):
      draw.text((x, y + height + number * line), text, (0, 0, 0), font)
  return np.asarray(sheet)


def _wrap(text: str, font, width: int) -> list[str]:
  lines = [""]
  for word in text.split():
    longer = f"{lines[-1]} {word}".strip()
    if lines[-1] and font.getlength(longer) > width:
      lines.append(word)
    else:
      lines[-1] = longer
  return lines


def _prepared(path: str | os.PathLike) -> pathlib.Path:
  path = epath.Path(path) if paths.is_remote(path) else pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  return path
