"""A folder of pictures with captions.

Captions stand in NAME.txt beside NAME.png, or in captions.csv, captions.jsonl or captions.parquet
in the folder, with the columns (keys) `file` and `caption`; `file` is relative to the folder.
Without such a list, every picture in the folder and its subfolders is taken, ordered by path.
"""

import functools
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from vilau_jax.data import imports, media, pieces
from vilau_jax.data.formats import entries, parquet, ranges
from vilau_jax.data.formats.ranges import Entry
from vilau_jax.data.pieces import Piece

LISTS = ("captions.csv", "captions.jsonl", "captions.parquet")
COLUMNS = ("file", "caption")
FILES = 500  # pictures of a piece


def plan(source: str | os.PathLike | None, *, size: int = 0) -> imports.Plan:
  """Records of kind "pair".

  Args:
    source: the folder.
    size: pictures are squeezed to size x size (bicubic); 0 keeps them, encoded as they are where
      they are PNG, JPEG or WebP.

  Raises:
    ValueError: if there is no folder, it holds no pictures, or its list lacks a column.
  """
  root = entries.folder(source, "FOLDER with pictures and captions")
  lists = [root / name for name in LISTS if (root / name).is_file()]
  if len(lists) > 1:
    raise ValueError(f"{root} holds both {lists[0].name} and {lists[1].name}; keep one")
  if lists:
    made, files = _list_pieces(lists[0]), pieces.fingerprint(root, lists)
  else:
    made, files = functools.partial(_file_pieces, root), _listing(root)
  return imports.Plan(
    format="folder",
    settings={"size": size},
    source=root.name,
    files=files,
    pieces=made,
    convert=functools.partial(_convert, str(root), size),
    unique="record",  # a picture may have several captions
  )


def _list_pieces(path: epath.Path):
  if path.suffix == ".parquet":
    return functools.partial(parquet.pieces, [path])
  if path.suffix == ".csv":
    next(ranges.split_csv(path, COLUMNS), None)  # the header, before anything is written
    return lambda: entries.range_pieces(path, ranges.split_csv(path, COLUMNS))
  return functools.partial(entries.json_pieces, path)


def _pictures(root: epath.Path) -> Iterator[str]:
  """Paths relative to root, in the order of the whole paths."""

  def below(folder: str, prefix: str):
    if "://" in folder:
      names = sorted(p.name + "/" * p.is_dir() for p in epath.Path(folder).iterdir())
    else:
      with os.scandir(folder) as found:
        names = sorted(entry.name + "/" * entry.is_dir() for entry in found)
    for name in names:
      if name.endswith("/"):
        yield from below(os.path.join(folder, name[:-1]), prefix + name)
      elif name.lower().endswith(media.IMAGE_SUFFIXES):
        yield prefix + name

  return below(str(root), "")


def _listing(root: epath.Path) -> dict[str, str]:
  """One digest of all pictures and captions: they are too many to name them one by one.

  Raises:
    ValueError: if there are none.
  """
  names = list(_pictures(root))
  if not names:
    raise ValueError(f"{root} holds no pictures ({', '.join(media.IMAGE_SUFFIXES)})")
  captions = (root / text for text in dict.fromkeys(map(_caption_file, names)))
  files = (*(root / name for name in names), *(path for path in captions if path.exists()))
  prints = pieces.fingerprint(root, files)
  lines = "\n".join(f"{name} {value}" for name, value in sorted(prints.items()))
  return {"the pictures and their captions": f"{len(names)}:{pieces.digest(lines.encode())}"}


def _caption_file(name: str) -> str:
  return os.path.splitext(name)[0] + ".txt"


def _file_pieces(root: epath.Path) -> Iterator[Piece]:
  names = list(_pictures(root))
  for start in range(0, len(names), FILES):
    part = names[start : start + FILES]
    yield Piece(f"{part[0]} .. {part[-1]}", part, len(part) / len(names))


def _convert(root: str, size: int, payload: Any) -> Iterator[pieces.Converted]:
  if isinstance(payload, ranges.Range):
    found = ranges.read_range(payload)
  elif isinstance(payload, parquet.Group):
    found = parquet.rows(payload)
  else:
    found = (_beside(root, name) for name in payload)
  return entries.convert(found, functools.partial(_record, root, size), key="file")


def _beside(root: str, name: str) -> Entry:
  """A picture and the caption in the text file beside it."""
  text = _caption_file(name)
  value = {"file": name}
  try:
    data = entries.read_file(os.path.join(root, text))
    return Entry(name, 0, {**value, "caption": data.decode("utf-8-sig")})
  except FileNotFoundError:
    return Entry(name, 0, {**value, "missing": os.path.basename(text)})
  except UnicodeDecodeError as error:
    return Entry(name, 0, {**value, "wrong": f"{text} is not UTF-8 (byte {error.start})"})


def _record(root: str, size: int, value: dict[str, Any], number: int) -> dict[str, Any]:
  if value.get("missing"):
    raise ValueError(f"no caption: {value['missing']} is missing")
  if value.get("wrong"):
    raise ValueError(value["wrong"])
  lacking = [name for name in COLUMNS if name not in value]
  if lacking:
    raise ValueError(f'expected {{"file": .., "caption": ..}}, it lacks {lacking}')
  return {
    "kind": "pair",
    "id": value["file"],
    "source": "folder",
    "caption": entries.text(value["caption"]),
    **entries.images([entries.read(root, value["file"])], size),
  }
