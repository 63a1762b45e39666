"""COYO-700M: pictures with alternative texts, once they have been downloaded.

The published Parquet files hold addresses, no pictures. What is read here: VILA's crawl (.pkl lists
of {"id", "url", "text", "clip_sim", "image": base64}, NAME.count beside NAME.pkl), and the Parquet
files with a picture in a column, or as ID.jpg (.png, .webp) in a folder. What img2dataset
downloaded is imported with the format img2dataset.
"""

import functools
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from vilau_jax.data import imports, pieces
from vilau_jax.data.formats import entries, parquet, pickles

SCORES = (
  "clip_similarity_vitb32",
  "clip_similarity_vitl14",
  "watermark_score",
  "aesthetic_score_laion_v2",
)
COLUMNS = ("image", "jpg", "image_bytes")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def plan(
  source: str | os.PathLike | None, *, images: str | os.PathLike | None = None
) -> imports.Plan:
  """Records of kind "pair"; `scores` are SCORES, or the crawl's clip_sim alone.

  Args:
    source: folder of .pkl or of .parquet files.
    images: folder of the pictures ID.jpg of .parquet files.

  Raises:
    ValueError: if there are no such files.
  """
  root = entries.folder(source, "FOLDER of .pkl or .parquet files")
  paths = sorted(root.glob("*.pkl")) or entries.found(root, "*.parquet", "*.pkl")
  pickled = paths[0].suffix == ".pkl"
  return imports.Plan(
    format="coyo",
    settings=entries.beside(images),
    source=root.name,
    files=pieces.fingerprint(root, paths),
    pieces=functools.partial(entries.file_pieces if pickled else parquet.pieces, paths),
    convert=functools.partial(_convert, None if images is None else str(images)),
  )


def _convert(images: str | None, payload: str | parquet.Group) -> Iterator[pieces.Converted]:
  if isinstance(payload, str):
    path = epath.Path(payload)
    found = entries.listed(path, pickles.load_list(path))
  else:
    path = epath.Path(payload.path)
    found = parquet.rows(payload)
  return entries.convert(found, functools.partial(_record, images, path.stem))


def _record(images: str | None, name: str, value: dict[str, Any], number: int) -> dict[str, Any]:
  given = value.get("id")
  return {
    "kind": "pair",
    "id": str(given) if isinstance(given, str | int) else f"{name}#{number}",
    "source": "coyo",
    "caption": entries.text(value.get("text"), "text"),
    "scores": scores(value),
    **entries.images([_image(images, value)]),
  }


def scores(value: dict[str, Any]) -> list[float] | None:
  """The quality scores of an entry that has them all, else its clip_sim."""
  for names in (SCORES, ("clip_sim",)):
    found = [value.get(name) for name in names]
    if all(isinstance(score, int | float) for score in found):
      return [float(score) for score in found]
  return None


def _image(images: str | None, value: dict[str, Any]) -> bytes:
  given = next((value[name] for name in COLUMNS if value.get(name) is not None), None)
  if isinstance(given, dict):  # {"bytes": .., "path": ..}, as Hugging Face stores them
    given = given.get("bytes")
  if isinstance(given, bytes) and given[:4] not in (b"/9j/", b"iVBO", b"UklG"):
    return given
  if given is not None:
    return entries.from_base64(given)
  if images is None:
    raise ValueError(
      "no picture: download them first (img2dataset, then the format img2dataset), or give a "
      "folder of ID.jpg with --images"
    )
  name = str(value.get("id"))
  if "/" in name or "\0" in name:
    raise ValueError(f"no picture: the id {name!r:.80} is no name of a file")
  for suffix in SUFFIXES:
    path = epath.Path(images) / f"{name}{suffix}"
    if path.is_file():
      return path.read_bytes()
  raise ValueError(f"no picture: {images} holds no {name:.80}.jpg")
