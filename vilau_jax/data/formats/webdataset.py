"""Pictures with captions in tar files: webdataset, wids and img2dataset.

wids (VILA's form of a text-to-image set): tars with an index wids-meta.json; a sample is a picture
and a .json with the long caption "sharegpt4v", else "prompt"; without either the released code
trains on "An image.", which is kept and counted. img2dataset: NNNNN.tar of .jpg, .txt and .json
("caption"), or NNNNN.parquet with the pictures inside; sidecar .parquet files of tars tell what
could not be downloaded.
"""

import functools
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from vilau_jax import jsons, paths
from vilau_jax.data import imports, pieces
from vilau_jax.data.formats import coyo, entries, parquet, tars
from vilau_jax.data.pieces import Note, Piece, Reject

INDEX = "wids-meta.json"
STORES = ("gs://", "s3://")
NO_CAPTION = "An image."
PICTURES = ("jpg", "png", "webp", "image")  # img2dataset's names of the picture's column


def plan_wids(source: str | os.PathLike | None, *, kind: str = "t2i") -> imports.Plan:
  """Records of kind "t2i", or "pair" for the tower.

  Args:
    source: a folder of tars with wids-meta.json or without an index, or the index file.

  Raises:
    ValueError: if there are no tars, or the index is broken or names one that is missing.
  """
  index = epath.Path(source) if source is not None else None
  if index is None or not index.is_file():
    index = entries.folder(source, "FOLDER of .tar files, or its wids-meta.json") / INDEX
  root = index.parent
  shards = _indexed(index) if index.is_file() else dict.fromkeys(entries.found(root, "*.tar"))
  if kind not in ("t2i", "pair"):
    raise ValueError(f"wids samples are imported as kind 't2i' or 'pair', got {kind!r}")
  return imports.Plan(
    format="wids",
    settings={"kind": kind},
    source=root.name,
    files=pieces.fingerprint(root, shards),
    pieces=functools.partial(_counted, shards),
    convert=functools.partial(_convert_wids, kind),
  )


def _indexed(index: epath.Path) -> dict[epath.Path, int]:
  """Tar -> its number of samples."""
  try:
    content = jsons.parse_object(index.read_bytes())
    lists = [content.get("shardlist") or []]
    for part in content.get("datasets") or []:
      lists.append(part.get("shardlist") or _nested(index, part))
    shards = {_below(index, s["url"]): int(s["nsamples"]) for shard in lists for s in shard}
  except (KeyError, TypeError, AttributeError, ValueError, OverflowError, OSError) as error:
    raise ValueError(f"{index} is no wids index: {error!r:.500}") from error
  for path in shards:
    try:
      there = path.is_file()
    except (OSError, ImportError, ValueError) as error:  # a store that cannot be asked
      raise ValueError(f"{index} names {path!s:.200}, which cannot be read: {error}") from error
    if not there:
      raise ValueError(f"{index} names {path!s:.200}, which is missing")
  if not shards:
    raise ValueError(f"{index} names no shards")
  return shards


def _below(index: epath.Path, name: str) -> epath.Path:
  """A file that an index names: below the index's folder, or in an object store.

  Raises:
    ValueError: if it lies elsewhere.
  """
  if name.startswith(STORES):
    return epath.Path(name)
  root = paths.absolute(index.parent)
  if name.startswith(f"{root}/") and ".." not in name.split("/"):
    return epath.Path(name)
  if name.startswith("/") or "://" in name or ".." in name.split("/") or "\0" in name:
    raise ValueError(f"{name!r:.200} is outside of the folder of the index")
  return index.parent / name


def _nested(index: epath.Path, part: dict[str, Any]) -> list[dict[str, Any]]:
  """The shards of an index that another one refers to, their paths relative to it."""
  other = _below(index, part["source_url"])
  base = part.get("base") or os.path.relpath(other.parent, index.parent)
  shards = jsons.parse_object(other.read_bytes())["shardlist"]
  return [{**s, "url": os.path.join(base, s["url"])} for s in shards]


def _counted(shards: dict[epath.Path, int | None]) -> Iterator[Piece]:
  for piece, count in zip(entries.file_pieces(list(shards)), shards.values()):
    yield piece._replace(payload=(piece.payload, count))


def _convert_wids(kind: str, payload: tuple[str, int | None]) -> Iterator[pieces.Converted]:
  path, said = epath.Path(payload[0]), payload[1]
  count = 0
  for sample in tars.samples(path):
    if isinstance(sample, Reject):
      yield sample
      continue
    count += 1
    name = f"{path.stem}/{sample.key}"
    try:
      caption = _long_caption(sample)
      picture = entries.images([sample.image()])
    except ValueError as error:
      yield Reject(name, str(error), sample.where)
      continue
    if caption is None:
      yield Note("captions that are missing, no text or empty, replaced by 'An image.'")
    record = {"kind": kind, "id": name, "source": "wids", "caption": caption or NO_CAPTION}
    yield {**record, **picture}
  if said is not None and said != count:
    reason = f"the index says {said} samples, the tar has {count}"
    yield Reject("", reason, path.name, damaged=count < said)


def _long_caption(sample: tars.Sample) -> str | None:
  about = _json(sample)
  caption = about["sharegpt4v"] if "sharegpt4v" in about else about.get("prompt")
  if not isinstance(caption, str) or not caption.strip():
    return None
  return entries.text(caption)


def _json(sample: tars.Sample) -> dict[str, Any]:
  data = sample.parts.get(".json")
  try:
    about = jsons.parse(data) if data is not None else {}
  except ValueError as error:
    raise ValueError(f"its .json is broken: {error}") from error
  if not isinstance(about, dict):
    raise ValueError(f"its .json is no object: {about!r:.60}")
  return about


def plan_img2dataset(source: str | os.PathLike | None) -> imports.Plan:
  """Records of kind "pair", with COYO's scores where img2dataset was told to keep them.

  Args:
    source: a folder of NNNNN.tar, or of NNNNN.parquet with the pictures inside.

  Raises:
    ValueError: if there is neither.
  """
  root = entries.folder(source, "FOLDER of img2dataset's .tar or .parquet files")
  paths = sorted(root.glob("*.tar")) or entries.found(root, "*.parquet", "*.tar")
  is_tar = paths[0].suffix == ".tar"
  return imports.Plan(
    format="img2dataset",
    settings={},
    source=root.name,
    files=pieces.fingerprint(root, paths),
    pieces=functools.partial(entries.file_pieces if is_tar else parquet.pieces, paths),
    convert=_convert_tar if is_tar else _convert_parquet,
  )


def _convert_tar(payload: str) -> Iterator[pieces.Converted]:
  path = epath.Path(payload)
  for sample in tars.samples(path):
    if isinstance(sample, Reject):
      yield sample
      continue
    try:
      about = _json(sample)
      caption = about["caption"] if "caption" in about else sample.parts[".txt"].decode()
      yield _pair(sample.key, caption, sample.image(), about)
    except KeyError:
      yield Reject(sample.key, "no caption: neither .txt nor .json has one", sample.where)
    except ValueError as error:
      yield Reject(sample.key, str(error), sample.where)
  sidecar = path.with_suffix(".parquet")
  if sidecar.is_file():
    for status in parquet.column(sidecar, "status"):
      if status != "success":
        yield Note("pictures that img2dataset could not download")


def _convert_parquet(payload: parquet.Group) -> Iterator[pieces.Converted]:
  for entry in parquet.rows(payload):
    row = entry.value
    key = str(row.get("key", entry.number))
    if row.get("status", "success") != "success":
      yield Note("pictures that img2dataset could not download")
      continue
    try:
      data = next((row[name] for name in PICTURES if row.get(name) is not None), None)
      if data is None:
        raise ValueError(f"no picture: none of the columns {PICTURES} holds one")
      yield _pair(key, row.get("caption"), data, row)
    except ValueError as error:
      yield Reject(key, str(error), entry.where)


def _pair(key: str, caption: Any, data: bytes, about: dict[str, Any]) -> dict[str, Any]:
  return {
    "kind": "pair",
    "id": key,
    "source": "img2dataset",
    "caption": entries.text(caption),
    "scores": coyo.scores(about),
    **entries.images([data]),
  }
