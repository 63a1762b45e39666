"""The sprite atlas: 1,244 Fluent emoji of 64x64 pixels (data/assets/NOTICE.txt says whose)."""

import functools
import hashlib
import importlib.resources
import io
import json

import numpy as np
from PIL import Image


@functools.lru_cache(maxsize=4096)
def sprite(label: str, size: int) -> np.ndarray:
  """The sprite with a label or name of the atlas, uint8 [size,size,4].

  Raises:
    ValueError: if there is none.
  """
  index, atlas = _atlas()
  if label not in index:
    raise ValueError(f"the sprite atlas has no {label!r}")
  column, row, side = index[label]
  box = (column * side, row * side, (column + 1) * side, (row + 1) * side)
  return np.asarray(atlas.crop(box).resize((size, size), Image.Resampling.LANCZOS))


def digest() -> str:
  """Of the atlas: what tells another edition of the sprites apart."""
  labels, pictures = _files()
  return hashlib.sha256(labels + pictures).hexdigest()[:16]


def _files() -> tuple[bytes, bytes]:
  assets = importlib.resources.files("vilau_jax.data") / "assets"
  return tuple((assets / f"fluent_flat_64.{kind}").read_bytes() for kind in ("json", "webp"))


@functools.cache
def _atlas() -> tuple[dict[str, tuple[int, int, int]], Image.Image]:
  labels, pictures = _files()
  content, image = json.loads(labels), Image.open(io.BytesIO(pictures)).convert("RGBA")
  index: dict[str, tuple[int, int, int]] = {}
  for number, item in enumerate(content["items"]):
    row, column = divmod(number, content["cols"])
    for label in (item["label"], item["name"]):
      index.setdefault(label, (column, row, content["size"]))
  return index, image
