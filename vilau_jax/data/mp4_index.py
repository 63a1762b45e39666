"""Where the video of an MP4 or MOV ends by its index (the box 'moov', ISO/IEC 14496-12). PyAV below
16, which lmms-eval asks for, does not tell it."""

from collections.abc import Iterator

import numpy as np


def end_of_video(moov: bytes) -> int:
  """The place behind the last frame of the video tracks; 0 where the index has no frames, or makes
  no sense.

  Args:
    moov: the box with its head of 8 bytes.
  """
  return max(
    (
      _end_of_track(table)
      for track in _boxes(moov, b"trak")
      for media in _boxes(track, b"mdia")
      if any(handler[16:20] == b"vide" for handler in _boxes(media, b"hdlr"))
      for info in _boxes(media, b"minf")
      for table in _boxes(info, b"stbl")
    ),
    default=0,
  )


def _end_of_track(table: bytes) -> int:
  """Frames lie in chunks: `stco` has their starts, `stsc` runs of chunks with as many frames,
  `stsz` the sizes of the frames."""
  starts = _rows(table, b"stco", ">u4")[:, 0]
  starts = starts if len(starts) else _rows(table, b"co64", ">u8")[:, 0]
  runs = _rows(table, b"stsc", ">u4", 3)
  lengths = np.diff(runs[:, 0], append=len(starts) + 1)
  if not len(starts) or not len(runs) or runs[0, 0] != 1 or lengths.min() < 0:
    return 0
  last = np.cumsum(np.repeat(runs[:, 1], lengths))  # frames up to the end of each chunk
  sizes = _rows(table, b"stsz", ">u4", at=20)[:, 0]
  same = next((int.from_bytes(box[12:16], "big") for box in _boxes(table, b"stsz")), 0)
  if same:
    bytes_up_to = last * same
  else:
    bytes_up_to = np.concatenate([[0], np.cumsum(sizes)])[np.minimum(last, len(sizes))]
  return int((starts + np.diff(bytes_up_to, prepend=0)).max())


def _boxes(parent: bytes, kind: bytes) -> Iterator[bytes]:
  """The boxes of a kind directly inside of a box."""
  place = 8
  while place + 8 <= len(parent):
    length = int.from_bytes(parent[place : place + 4], "big")
    if length < 8:
      return
    if parent[place + 4 : place + 8] == kind:
      yield parent[place : place + length]
    place += length


def _rows(parent: bytes, kind: bytes, number: str, columns: int = 1, at: int = 16) -> np.ndarray:
  """The rows [n, columns] of the first table of a kind: as many as it says, and has."""
  for box in _boxes(parent, kind):
    if len(box) > at:
      whole = (len(box) - at) // (np.dtype(number).itemsize * columns)
      count = min(int.from_bytes(box[at - 4 : at], "big"), whole)
      values = np.frombuffer(box, number, count * columns, at)
      return values.reshape(-1, columns).astype(np.int64)
  return np.zeros((0, columns), np.int64)
