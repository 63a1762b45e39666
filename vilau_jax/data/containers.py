"""Frames out of video files, and whether a file is whole.

A decoder reads what is there of a file that was cut off, and conceals the rest. So the sizes that
the container states are compared with the file's first: the boxes and the index of MP4 and MOV, the
segment of Matroska and WebM, the list of AVI. Streams that were made to be cut (MPEG-TS, WebM of
unknown length, fragmented MP4 between two fragments) state none.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from etils import epath
from PIL import Image

from vilau_jax.data import mp4_index

MOST_FRAMES = 2**20  # of a video: ten hours at 29 frames a second
LARGEST_INDEX = 2**28  # bytes of the box 'moov': of an hour it has about two million
# What FFmpeg may take a file for, and nothing else: it knows playlists that name other files, on
# this machine or behind an address, and would open them.
FORMATS = (
  "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "mpegts", "mpeg", "flv", "ogg", "asf", "gif"
)  # fmt: skip
OPTIONS = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
_DATA = {b"mdat", b"moof"}
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp")


class Clip(NamedTuple):
  """Frames of a video: which they are, of how many, at how many a second (0 = unknown)."""

  frames: list[Image.Image]
  indices: list[int]
  total: int
  fps: float


def read(
  path: epath.Path,
  choose: Callable[[int], list[int]],
  max_pixels: int,
  max_frames: int = MOST_FRAMES,
) -> Clip:
  """Some frames of a video file.

  Args:
    choose: number of frames -> indices of the wanted ones, in order.
    max_pixels: of a frame.
    max_frames: of the video; a longer one is refused before it is decoded.

  Raises:
    ValueError: if the file is empty, cut off or damaged, holds no frame, or too large ones.
  """
  import av  # here, because only videos in files need it

  if not path.stat().length:
    raise ValueError(f"{path} is an empty file")
  try:
    with path.open("rb") as file:
      check_whole(file, str(path))
      with opened(file, str(path), max_pixels) as container:
        stream = container.streams.video[0]
        _check_size(stream, max_pixels, str(path))
        fps = float(stream.average_rate or 0)
        expected = _count_packets(container, str(path), max_frames)
      # Reported counts are unreliable, packets are nearly always frames; if not, decode again.
      for _ in range(2):
        wanted, total, taken = choose(max(expected, 1)), 0, {}
        file.seek(0)
        with opened(file, str(path), max_pixels) as container:
          for index, frame in enumerate(container.decode(video=0)):
            total += 1
            _check_size(frame, max_pixels, str(path))
            if total > max_frames:
              raise ValueError(f"{path} has more than {max_frames} frames")
            if index in wanted:
              if frame.is_corrupt:
                raise ValueError(f"{path} is damaged in frame {index}")
              image = frame.to_image()  # as the phone held it, unless its angle is heeded
              angle = frame.rotation
              taken[index] = image.rotate(angle, expand=True) if angle else image
        if total == expected or not total:
          break
        expected = total
  except av.error.FFmpegError as error:
    raise ValueError(f"{path} is not a video that can be read: {error}") from error
  if not taken:
    raise ValueError(f"{path} holds no frame")
  return Clip([taken[i] for i in wanted], wanted, total, fps)


@contextlib.contextmanager
def opened(file: BinaryIO | str, name: str, max_pixels: int) -> Iterator[Any]:
  """PyAV's container of a file, with a video that can be decoded. FFmpeg itself refuses frames of
  more than four times max_pixels, before it makes room for them; who says less has better words.

  Raises:
    ValueError: if there is none.
    av.error.FFmpegError: if it is no container.
  """
  import av

  limit = {"max_pixels": str(4 * max_pixels)}
  # Titles need not be UTF-8. PyAV 19 reads them as they are, and knows this argument no more.
  titles = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
  with av.open(file, options=OPTIONS | limit, **titles) as container:
    if not container.streams.video:
      raise ValueError(f"{name} holds no video")
    codec = container.streams.video[0].codec_context
    if codec is None:
      raise ValueError(f"{name} holds a video of an unknown kind")
    codec.options = limit
    yield container


def _check_size(shown, max_pixels: int, name: str) -> None:
  """Of a stream, whose header says it, or of a frame: the size may change within a video."""
  if shown.width * shown.height > max_pixels:
    raise ValueError(
      f"{name} has frames of {shown.width}x{shown.height} pixels; at most {max_pixels} are read"
    )


def _count_packets(container, name: str, most: int) -> int:
  stream, count = container.streams.video[0], 0
  for packet in container.demux(stream):
    count += packet.size > 0
    if count > most:
      raise ValueError(f"{name} has more than {most} frames")
    if packet.is_corrupt:
      raise ValueError(f"{name} is cut off or damaged in frame {count - 1}")
  return count


def check_whole(file: BinaryIO, name: str) -> None:
  """Leaves the file at its beginning.

  Raises:
    ValueError: if the file ends before its container does, or an MP4 has no index or no data.
  """
  size = file.seek(0, os.SEEK_END)
  file.seek(0)
  head = file.read(12)
  if head[4:8] in _FIRST_BOXES:
    _check_boxes(file, size, name)
  elif head[:4] == b"RIFF":
    _check_end("list", 8 + int.from_bytes(head[4:8], "little"), size, name)
  elif head[:4] == b"\x1a\x45\xdf\xa3":
    _check_segment(file, size, name)
  file.seek(0)


def _check_end(what: str, end: int, size: int, name: str) -> None:
  if end > size:
    raise ValueError(f"{name} is cut off: its {what} ends at byte {end}, the file has {size}")


def _check_boxes(file: BinaryIO, size: int, name: str) -> None:
  """MP4 and MOV: boxes of a size and a kind, one after the other."""
  place, kinds, end = 0, set(), 0
  while place + 8 <= size:
    file.seek(place)
    head = file.read(16)
    length, kind = int.from_bytes(head[:4], "big"), head[4:8]
    length = int.from_bytes(head[8:], "big") if length == 1 else length or size - place
    if length < 8 or not kind.isalnum():
      break
    complete = b"moov" in kinds and kinds & _DATA
    if complete and kind not in _DATA and place + length > size:
      break  # notes behind the last box
    _check_end(f"box {kind.decode()!r}", place + length, size, name)
    kinds.add(kind)
    if kind == b"moov":
      if length > LARGEST_INDEX:
        raise ValueError(f"{name} has an index of {length} bytes; at most {LARGEST_INDEX} are read")
      file.seek(place)
      end = mp4_index.end_of_video(file.read(length))
    place += length
  if b"moov" not in kinds:
    raise ValueError(f"{name} is cut off, or was never finished: it has no index (box 'moov')")
  if not kinds & _DATA:
    raise ValueError(f"{name} is cut off: it has an index, but no data (box 'mdat')")
  if end > size:  # the data box may say "to the end of the file"
    raise ValueError(f"{name} is cut off: its index has frames up to byte {end}, it has {size}")


def _check_segment(file: BinaryIO, size: int, name: str) -> None:
  """Matroska and WebM: a header, then one segment, whose size may be unknown (all ones)."""
  file.seek(4)
  header, _ = _number(file)
  file.seek(header + 4, os.SEEK_CUR)  # over the header and the segment's name
  length, unknown = _number(file)
  if not unknown:
    _check_end("segment", file.tell() + length, size, name)


def _number(file: BinaryIO) -> tuple[int, bool]:
  """A number of 1 to 8 bytes, as many as its first byte has leading zeros and one; and whether all
  of its bits are set."""
  first = file.read(1) or b"\x01"
  more = 8 - first[0].bit_length()
  value = (first[0] & (1 << first[0].bit_length() >> 1) - 1) << 8 * more
  value |= int.from_bytes(file.read(more), "big")
  return value, value == (1 << 7 * (more + 1)) - 1
