"""The readers of pictures and videos, and what they are fed: every codec and mode that turns up."""

import functools
import io
import pathlib

import av
import numpy as np
from PIL import Image

from tests.fuzz.run import Target
from vilau_jax.data import media
from vilau_jax.demo import uploads

MEGABYTES = 2048  # a picture of 64 Mpixel, made RGB, beside itself and its layers
SIDE = 16
LIMITS = uploads.Limits(megapixels=4)


@functools.cache
def picture(width: int = 23, height: int = 17) -> Image.Image:
  noise = np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8)
  return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str, **options) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, format=form, **options)
  return buffer.getvalue()


def pngs(folder: pathlib.Path) -> list[bytes]:
  image, alpha = picture(), picture().convert("RGBA")
  alpha.putalpha(picture().convert("L"))
  deep = Image.fromarray(np.asarray(picture().convert("L"), np.uint16) * 257)
  frames = dict(save_all=True, append_images=[image.rotate(90), alpha.convert("RGB")])
  palette = image.quantize(9)
  modes = [image.convert(mode) for mode in ("L", "1", "LA", "P")]
  return [
    *(encoded(i, "PNG") for i in (image, alpha, deep, palette, *modes)),
    encoded(palette, "PNG", transparency=2), encoded(palette, "PNG", bits=4),
    encoded(image, "PNG", **frames), encoded(image, "PNG", dpi=(3, 3), icc_profile=b"x" * 200),
  ]  # fmt: skip


def jpegs(folder: pathlib.Path) -> list[bytes]:
  image = picture(40, 33)
  exif = image.getexif()
  exif[0x0112], exif[0x010E] = 6, "words"
  return [
    encoded(image, "JPEG"), encoded(image, "JPEG", progressive=True, quality=30),
    encoded(image.convert("CMYK"), "JPEG"), encoded(image.convert("L"), "JPEG", exif=exif),
    encoded(image, "JPEG", subsampling=0, restart_marker_blocks=2),
    encoded(image, "MPO", save_all=True, append_images=[image.rotate(180)]),
  ]  # fmt: skip


def webps(folder: pathlib.Path) -> list[bytes]:
  image = picture()
  frames = dict(save_all=True, append_images=[image.rotate(90)], duration=40)
  return [encoded(image, "WEBP", quality=40), encoded(image, "WEBP", lossless=True),
          encoded(image.convert("RGBA"), "WEBP", lossless=True),
          encoded(image, "WEBP", **frames)]  # fmt: skip


def others(folder: pathlib.Path) -> list[bytes]:
  image = picture()
  frames = dict(save_all=True, append_images=[image.rotate(90).convert("P"), image], loop=0)
  deep = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)
  real = Image.fromarray(np.asarray(image.convert("L"), np.float32))
  found = [encoded(image, "GIF"), encoded(image, "GIF", duration=30, **frames),
           encoded(image, "BMP"), encoded(image.convert("P"), "BMP"),
           encoded(image.convert("1"), "BMP")]  # fmt: skip
  for one in (image, image.convert("CMYK"), image.convert("RGBA"), image.convert("P"), deep, real):
    found.append(encoded(one, "TIFF"))
  for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
    found.append(encoded(image, "TIFF", compression=compression))
  found.append(encoded(image, "TIFF", save_all=True, append_images=[deep]))
  return found


def _read_picture(data: bytes, folder: pathlib.Path) -> object:
  """As an import stores it, and as a tower sees it."""
  kept = media.store(data)
  square = media.to_square(kept.data, SIDE, media.GEOMETRIES[len(data) % 3])
  assert square.shape == (SIDE, SIDE, 3) and square.dtype == np.uint8
  return kept


def _read_upload(data: bytes, folder: pathlib.Path) -> object:
  path = folder / "upload.png"
  path.write_bytes(data)
  try:
    return uploads.picture(path, SIDE, LIMITS)
  except ValueError as error:
    assert str(folder) not in str(error), error  # a visitor need not know where files lie
    raise


VIDEOS = {
  "a.mp4": dict(codec="mpeg4"),
  "first.mp4": dict(codec="mpeg4", options={"movflags": "faststart"}),
  "parts.mp4": dict(codec="mpeg4", options={"movflags": "frag_keyframe+empty_moov"}),
  "h264.mp4": dict(codec="libx264"),
  "a.mov": dict(codec="mjpeg", pixels="yuvj420p"),
  "a.mkv": dict(codec="libx264"),
  "a.webm": dict(codec="libvpx"),
  "a.avi": dict(codec="mpeg4"),
  "a.ts": dict(codec="mpeg2video"),
}


def videos(folder: pathlib.Path) -> list[tuple[str, bytes]]:
  """(suffix, file) of small videos in every container that is read."""
  found = []
  for name, options in VIDEOS.items():
    if options["codec"] in av.codecs_available:
      found.append((name.rpartition(".")[2], video(folder / name, **options)))
  return found


def video(path, codec="mpeg4", options=None, pixels="yuv420p", size=(32, 24)) -> bytes:
  rng = np.random.default_rng(0)
  with av.open(str(path), "w", options=options or {}) as container:
    stream = container.add_stream(codec, rate=8)
    stream.width, stream.height, stream.pix_fmt = *size, pixels
    stream.thread_count = 1
    for shade in range(6):
      shown = np.full((size[1], size[0], 3), 40 * shade, np.uint8)
      shown[:8, :8] = rng.integers(0, 256, (8, 8, 3))
      container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
    container.mux(stream.encode(None))
  return path.read_bytes()


def _video_seeds(suffixes: tuple[str, ...], folder: pathlib.Path) -> list[bytes]:
  av.logging.set_level(None)
  return [data for suffix, data in videos(folder) if suffix in suffixes]


def _read_video(data: bytes, folder: pathlib.Path) -> object:
  path = folder / "x.video"
  path.write_bytes(data)
  clip = media.read_clip(path, 3)
  assert len(clip.frames) == 3
  return clip.total


def _read_upload_video(data: bytes, folder: pathlib.Path) -> object:
  path = folder / "upload.mp4"
  path.write_bytes(data)
  try:
    frames = uploads.video(path, SIDE, 2, LIMITS)
  except ValueError as error:
    assert str(folder) not in str(error), error
    raise
  assert [f.shape for f in frames] == [(SIDE, SIDE, 3)] * 2
  return frames


def _media(name, seeds, read, **options) -> Target:
  return Target(name, seeds, read, kind="media", megabytes=MEGABYTES, **options)


MEDIA = (
  _media("png", pngs, _read_picture, png=True),
  _media("jpeg", jpegs, _read_picture),
  _media("webp", webps, _read_picture),
  _media("gif_bmp_tiff", others, _read_picture),
  _media("upload_picture", lambda f: [*pngs(f), *jpegs(f), *webps(f)], _read_upload, png=True),
  _media("mp4_mov", functools.partial(_video_seeds, ("mp4", "mov")), _read_video),
  _media("mkv_webm", functools.partial(_video_seeds, ("mkv", "webm")), _read_video),
  _media("avi_ts", functools.partial(_video_seeds, ("avi", "ts")), _read_video),
  _media("upload_video", functools.partial(_video_seeds, ("mp4", "mkv", "webm")),
         _read_upload_video),
)  # fmt: skip
