"""Batches for the tower: pictures with captions, from a weighted mixture of records."""

import zlib
from collections.abc import Mapping
from typing import Any

import grain
import numpy as np
from etils import epath

from vilau_jax.data import media, scanned
from vilau_jax.data.pipeline import mixture, named, steps
from vilau_jax.data.records import Records, read_info
from vilau_jax.data.tokenizer import TowerTokenizer

CACHE_BYTES = 2**30
AUGMENTS = {"mix": media.random_square, "crop_flip": media.random_crop}


def tower_dataset(
  data: Mapping[str, Any],
  tokenizer: TowerTokenizer | None,
  *,
  image_size: int,
  batch_size: int,
  seed: int,
  process_index: int | None = None,
  process_count: int | None = None,
  cache: epath.PathLike | None = None,
  wrong: bool = False,
) -> grain.MapDataset:
  """Pictures with captions for the vision tower.

  Args:
    data: `mixture`, a sequence of dict(path, weight); `augment`, "none" (squeezed to the square) or
      "mix" (half of them random squares), or "crop_flip" (all of them, half mirrored); `cache`,
      keep decoded pictures in memory, up to 1 GiB (default True).
    tokenizer: of the tower's text encoder; None leaves out the texts.
    cache: directory that remembers which records were looked through; None remembers nothing.
    wrong: also a wrong caption of each record that has some, drawn at every visit.

  Returns:
    element i: image uint8 [b,S,S,3]; text int32 [b,length]; caption_id int32 [b], equal for equal
    captions; with `wrong`, wrong_text int32 [b,length] and has_wrong bool [b]. Of a video, or of
    several pictures, one is drawn at every visit.

  Raises:
    ValueError: for records without pictures, or without captions when a tokenizer is given; if
      `wrong` finds no wrong caption at all.
  """
  augment = data.get("augment", "none")
  if augment != "none" and augment not in AUGMENTS:
    raise ValueError(f"data.augment must be one of {['none', *AUGMENTS]}, got {augment!r}")
  entries = data["mixture"]
  decoded = PictureCache(image_size, CACHE_BYTES if data.get("cache", True) else 0)
  sources = [Records(entry["path"]) for entry in entries]
  for source in sources:
    _check_pictures(source, captions=tokenizer is not None, cache=cache)
  if wrong and not any(record.get("wrong_captions") for s in sources for record in s):
    raise ValueError(
      "loss.wrong_captions wants records with wrong captions, and those of data.mixture have none: "
      + ", ".join(str(s.path) for s in sources)
    )
  stream = mixture([range(len(s)) for s in sources], [e["weight"] for e in entries], seed)

  def sample(index: int) -> dict[str, np.ndarray]:
    which, number = stream[index]
    rng = np.random.default_rng((seed, index))
    record = sources[which][number]
    _check_record(record, sources[which], tokenizer is not None)
    pictures = record.get("images") or record["frames"]
    place = int(rng.integers(len(pictures)))
    if augment in AUGMENTS:
      image = AUGMENTS[augment](pictures[place], image_size, rng)
    else:
      image = decoded.get((which, number, place), pictures[place])
    out = {"image": image}
    if tokenizer is not None:
      out["text"] = tokenizer.encode(record["caption"])
      out["caption_id"] = np.int32(zlib.crc32(record["caption"].strip().lower().encode()) >> 1)
      if wrong:
        captions = record.get("wrong_captions") or []
        drawn = captions[int(rng.integers(len(captions)))] if captions else record["caption"]
        out["wrong_text"] = tokenizer.encode(drawn)
        out["has_wrong"] = np.bool_(len(captions) > 0)
    return out

  return steps(sample, batch_size, process_index, process_count)


def tower_records(
  data: Mapping[str, Any], *, batch_size: int, seed: int, step: int
) -> list[list[dict[str, Any]]]:
  """Which records one batch of tower_dataset holds: path, number and id of each, row by row."""
  sources = [Records(entry["path"]) for entry in data["mixture"]]
  weights = [entry["weight"] for entry in data["mixture"]]
  stream = mixture([range(len(s)) for s in sources], weights, seed)
  visits = (stream[i] for i in range(step * batch_size, (step + 1) * batch_size))
  return [[named(sources[which], number)] for which, number in visits]


class PictureCache:
  """Decoded square pictures by key, until `limit` bytes are held; then they are decoded anew."""

  def __init__(self, side: int, limit: int):
    self.side, self.limit, self.held = side, limit, 0
    self._images: dict[Any, np.ndarray] = {}

  def get(self, key, encoded: bytes) -> np.ndarray:
    image = self._images.get(key)
    if image is None:
      image = media.to_square(encoded, self.side)
      if self.held + image.nbytes <= self.limit:
        self._images[key] = image
        self.held += image.nbytes
    return image


def _check_pictures(records: Records, *, captions: bool, cache: epath.PathLike | None) -> None:
  """Looks through all records, unless the import that wrote them counted what they have: of
  hundreds of millions it takes hours."""
  facts = ["pictures", captions]
  counts = read_info(records.path).get("features", {})
  whole = {name for name, count in counts.items() if count == len(records)}
  counted = whole & {"images", "frames"} and ("caption" in whole or not captions)
  if counted or scanned.load(cache, records, facts) is not None:
    return
  for record in records:
    _check_record(record, records, captions)
  scanned.save(cache, records, facts, np.ones(len(records), bool))


def _check_record(record: Mapping[str, Any], records: Records, captions: bool) -> None:
  if not (record.get("images") or record.get("frames")):
    raise ValueError(f"{records.path}: record {record.get('id')!r} has no pictures")
  if captions and not record.get("caption", "").strip():
    raise ValueError(f"{records.path}: record {record.get('id')!r} has an empty caption")
