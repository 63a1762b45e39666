"""A folder of pictures with captions.

Captions stand in NAME.txt beside NAME.png, or in captions.csv or captions.jsonl in the folder with
the columns (keys) `file` and `caption`; `file` is relative to the folder. Without such a list,
every picture in the folder and its subfolders is taken, ordered by path.
"""

import csv
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from vilau_jax.data import media, records

LISTS = ("captions.csv", "captions.jsonl")
REJECTS = "rejects.jsonl"


class Entry(NamedTuple):
  """A picture's path relative to the folder, and its caption as far as there is one."""

  file: str
  caption: str | None


def convert(
  source: str | os.PathLike | None,
  output: str | os.PathLike,
  *,
  size: int = 0,
  records_per_shard: int = 10_000,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
  """Writes the records of a folder and `rejects.jsonl` (file, reason) beside the shards.

  The same folder and arguments give byte-identical shards. Interrupted, nothing is left and it can
  be run again.

  Args:
    source: the folder.
    size: pictures are squeezed to size x size (bicubic); 0 keeps them as they are, encoded as they
      are where they are PNG, JPEG or WebP.
    records_per_shard: the last shard may hold fewer.
    progress: called with the number of finished files and of all.

  Returns:
    {"accepted": .., "rejected": ..}.

  Raises:
    ValueError: if there is no folder, its list of captions is broken, or nothing was accepted.
  """
  if source is None:
    raise ValueError("the folder format needs --source=FOLDER with pictures and captions")
  root, output = pathlib.Path(source), pathlib.Path(output)
  if not root.is_dir():
    raise ValueError(f"no folder at {root}")
  entries = list(read_entries(root))
  if not entries:
    raise ValueError(f"{root} holds no pictures ({', '.join(media.IMAGE_SUFFIXES)})")
  rejects: list[dict[str, str]] = []
  info = {"format": "folder", "size": size, "source": root.name}
  with records.Writer(output, "data", records_per_shard=records_per_shard, info=info) as writer:
    for number, entry in enumerate(entries, 1):
      try:
        writer.write(_record(root, entry, size))
      except ValueError as error:
        rejects.append({"file": entry.file, "reason": str(error)})
      progress(number, len(entries))
    if not writer.count:
      raise ValueError(
        f"none of {len(entries)} pictures in {root} was accepted; the first: "
        f"{rejects[0]['file']}: {rejects[0]['reason']}"
      )
    accepted = writer.count
  lines = "".join(json.dumps(reject, ensure_ascii=False) + "\n" for reject in rejects)
  (output / REJECTS).write_text(lines, encoding="utf-8")
  return {"accepted": accepted, "rejected": len(rejects)}


def read_entries(root: pathlib.Path) -> Iterator[Entry]:
  """Pictures and captions in their order.

  Raises:
    ValueError: if the list of captions cannot be read or lacks a column; names the line.
  """
  lists = [root / name for name in LISTS if (root / name).is_file()]
  if len(lists) > 1:
    raise ValueError(f"{root} holds both {LISTS[0]} and {LISTS[1]}; keep one")
  if lists:
    yield from (_from_csv if lists[0].suffix == ".csv" else _from_jsonl)(lists[0])
    return
  paths = (p for p in root.rglob("*") if p.suffix.lower() in media.IMAGE_SUFFIXES and p.is_file())
  for path in sorted(paths, key=lambda p: p.relative_to(root).as_posix()):
    text = path.with_suffix(".txt")
    caption = text.read_text(encoding="utf-8", errors="replace") if text.is_file() else None
    yield Entry(path.relative_to(root).as_posix(), caption)


def _from_csv(path: pathlib.Path) -> Iterator[Entry]:
  with open(path, encoding="utf-8-sig", newline="") as f:
    rows = csv.DictReader(f)
    missing = {"file", "caption"} - set(rows.fieldnames or [])
    if missing:
      raise ValueError(f"{path} lacks the columns {sorted(missing)}; it has {rows.fieldnames}")
    for row in rows:
      yield Entry(row["file"], row["caption"])


def _from_jsonl(path: pathlib.Path) -> Iterator[Entry]:
  for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
      yield Entry(str(row["file"]), row.get("caption"))
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
      raise ValueError(
        f'{path}, line {number}: expected {{"file": .., "caption": ..}}, got {line[:80]!r}'
      ) from error


def _record(root: pathlib.Path, entry: Entry, size: int) -> dict[str, Any]:
  """The record of an entry; a ValueError says why it is rejected."""
  path = root / entry.file
  if not path.resolve().is_relative_to(root.resolve()):
    raise ValueError("the file is outside of the folder")
  if not path.is_file():
    raise ValueError("no image: the file is missing")
  if entry.caption is None:
    raise ValueError(f"no caption: {path.with_suffix('.txt').name} is missing")
  caption = str(entry.caption).strip()
  if not caption:
    raise ValueError("the caption is empty")
  data = path.read_bytes()
  image = media.open_image(data)
  if size:
    data = media.encode_png(media.to_square(image, size))
  elif path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
    data = media.encode_png(image)
  width, height = (size, size) if size else image.size
  return {
    "kind": "pair",
    "id": entry.file,
    "source": "folder",
    "caption": caption,
    "images": [data],
    "width": [width],
    "height": [height],
  }
