"""OpenVid-1M: videos with captions.

SOURCE/data/train/OpenVid-1M.csv with the columns `video` (a file's name) and `caption` first, and
the videos in SOURCE/video. Another CSV file of the same two columns can be given as the source,
with --images for the folder of videos.
"""

import functools
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from vilau_jax.data import imports, pieces
from vilau_jax.data.formats import entries, ranges

CSV, VIDEOS = "data/train/OpenVid-1M.csv", "video"


def plan(
  source: str | os.PathLike | None,
  *,
  images: str | os.PathLike | None = None,
  frames: int = 8,
) -> imports.Plan:
  """Records of kind "t2v".

  Args:
    source: the data set's folder, or a CSV file.
    images: folder of the videos; None takes SOURCE/video.
    frames: of a video, evenly spread from the first to the last.

  Raises:
    ValueError: if there is no such file, or it has no header of at least two columns.
  """
  path = epath.Path(source) if source is not None else None
  if path is None or not path.is_file():
    path = entries.folder(source, "FOLDER of OpenVid-1M, or a CSV file") / CSV
    if not path.is_file():
      raise ValueError(f"no file at {path}: give OpenVid-1M's folder, or a CSV file, as --source")
    videos = epath.Path(images or epath.Path(source) / VIDEOS)
  else:
    videos = epath.Path(images or path.parent / VIDEOS)
  if not videos.is_dir():
    raise ValueError(f"no folder of videos at {videos}; say where they are with --images")
  return imports.Plan(
    format="openvid",
    settings={"frames": frames, **entries.beside(images)},
    source=path.name,
    files=pieces.fingerprint(path.parent, [path]),
    pieces=functools.partial(_pieces, path),
    convert=functools.partial(_convert, str(videos), frames),
  )


def _pieces(path: epath.Path) -> Iterator[pieces.Piece]:
  return entries.range_pieces(path, ranges.split_csv(path, rows=200))


def _convert(videos: str, frames: int, part: ranges.Range) -> Iterator[pieces.Converted]:
  if len(part.columns) < 2:
    raise ValueError(f"{part.path} needs a video and a caption column, it has {part.columns}")
  name, caption = part.columns[:2]
  record = functools.partial(_record, videos, frames, name, caption)
  return entries.convert(ranges.read_range(part), record, key=name)


def _record(videos: str, frames: int, name: str, caption: str, row: dict[str, Any], number: int):
  return {
    "kind": "t2v",
    "id": row[name],
    "source": "openvid",
    "caption": entries.text(row[caption]),
    **entries.video(entries.inside(videos, row[name], "video"), frames),
  }
