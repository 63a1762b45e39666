"""Writes a tower's codes into records, shard by shard."""

import concurrent.futures
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from etils import epath

from vilau_jax.data import media, records, shards
from vilau_jax.data.records import Records

STAMP = "unfinished.json"

Encode = Callable[[np.ndarray], np.ndarray]


def add_codes(
  source: str | os.PathLike,
  output: str | os.PathLike,
  encode: Encode,
  tower_id: str,
  *,
  image_size: int,
  batch_size: int = 64,
  keep_images: bool = True,
  process: tuple[int, int] = (0, 1),
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> Records | None:
  """Copies records with the codes of their pictures or frames added.

  Understanding sees a picture squeezed to the square, generation learns from its square crop. Codes
  of the first go into `codes`; those of the second into `codes_crop`, where the two differ (a
  picture that is not square, in a record with a caption).

  Interrupted, it goes on with the first unfinished shard; finished with this tower and these
  records, it returns at once. Several processes, on one machine or many that share a disk, take
  turns at the shards; whoever finds all of them written finishes the directory.

  Args:
    source: a directory of records with images or frames.
    output: a directory for records; made when absent.
    encode: uint8 [B,S,S,3] -> int [B,T,R]; always called with B = batch_size, the last batch is
      filled up with zeros.
    tower_id: goes into every record.
    image_size: S.
    keep_images: False leaves pictures out of the copy; training on codes does not read them.
    process: (index, count) of the processes that work on this output.
    progress: called with the number of finished records and of all.

  Returns:
    the copy; None if other processes have yet to write their shards.

  Raises:
    ValueError: if output holds something else, or a record has no pictures.
  """
  index, count = process
  if not 0 <= index < count:
    raise ValueError(f"process {index} of {count}: the index must be in 0..{count - 1}")
  source, output = Records(source), epath.Path(output)
  stamp = {
    "tower_id": tower_id,
    "image_size": image_size,
    "keep_images": keep_images,
    "records": _fingerprint(source),
  }
  if _is_finished(output, stamp):
    progress(len(source), len(source))
    return Records(output)
  output.mkdir(parents=True, exist_ok=True)
  own = list(source.shard_ranges().items())[index::count]
  for file, _ in own:
    for stale in output.glob(f".{file}.*"):  # what kill -9 leaves
      stale.unlink()
  shards.write_text(output / STAMP, json.dumps(stamp))
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    coder = _Coder(encode, tower_id, image_size, batch_size, keep_images, pool)
    for file, numbers in own:
      if not (output / file).exists():
        coded = coder.run(source, numbers, progress)
        records.write_shard(output / file, map(records.encode, coded))
      progress(numbers.stop, len(source))
  if not all((output / file).exists() for file in source.shards):
    return None
  info = {**source.info, "codes": stamp}
  records.write_info(output, source.name, source.shards, source.kinds, info)
  (output / STAMP).unlink(missing_ok=True)
  return Records(output)


def _fingerprint(source: Records) -> str:
  """What the records are, so that another import under the same path is noticed."""
  content = {"shards": source.shards, "kinds": source.kinds, "info": source.info}
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _is_finished(output: epath.Path, stamp: dict[str, Any]) -> bool:
  found = None
  if (output / records.INFO).exists():
    found, finished = records.read_info(output)["info"].get("codes"), True
  elif (output / STAMP).exists():
    found, finished = json.loads((output / STAMP).read_text()), False
  elif not output.exists() or not any(output.iterdir()):
    return False
  if found == stamp:
    return finished
  made_by = f"codes of tower {found['tower_id']}" if found else "something else"
  raise ValueError(
    f"{output} holds {made_by}, or of other records or another picture size; remove it or choose "
    "another --output"
  )


class _Coder:
  def __init__(self, encode, tower_id, image_size, batch_size, keep_images, pool):
    self.encode, self.tower_id, self.pool = encode, tower_id, pool
    self.image_size, self.batch_size, self.keep_images = image_size, batch_size, keep_images

  def run(self, source: Records, numbers: range, progress) -> Iterator[dict[str, Any]]:
    """Records of one shard with their codes, read and encoded a few batches at a time."""
    chunk: list[dict[str, Any]] = []
    jobs: list[tuple[bytes, str]] = []
    for number in numbers:
      record = source[number]
      jobs += self._jobs(record, source)
      chunk.append(record)
      if len(jobs) >= 8 * self.batch_size or number == numbers[-1]:
        codes = iter(self._codes(jobs))
        for done in chunk:
          yield self._coded(done, codes)
        progress(number + 1, len(source))
        chunk, jobs = [], []

  def _jobs(self, record, source: Records) -> list[tuple[bytes, str]]:
    """(picture, geometry) of everything that has to be encoded for a record."""
    pictures = record.get("images") or record.get("frames")
    if not pictures:
      if record["kind"] in ("text", "sft"):  # may be text only
        return []
      raise ValueError(f"{source.path}: record {record.get('id')!r} has no pictures to encode")
    jobs = [(picture, "resize") for picture in pictures]
    widths, heights = record.get("width"), record.get("height")
    if widths is None or heights is None:
      sizes = [media.open_image(picture).size for picture in pictures]
      widths, heights = zip(*sizes)
    if record.get("caption") and list(widths) != list(heights):
      jobs += [(picture, "crop") for picture in pictures]
      record["_both"] = True
    return jobs

  def _codes(self, jobs: list[tuple[bytes, str]]) -> np.ndarray:
    """[len(jobs),T,R]."""
    square = list(self.pool.map(lambda job: media.to_square(job[0], self.image_size, job[1]), jobs))
    found = [np.zeros((0, 1, 1), np.int32)] if not jobs else []
    for start in range(0, len(square), self.batch_size):
      images = np.stack(square[start : start + self.batch_size])
      room = self.batch_size - len(images)
      codes = np.asarray(self.encode(np.pad(images, ((0, room), (0, 0), (0, 0), (0, 0)))))
      if codes.ndim != 3 or len(codes) != self.batch_size:
        raise ValueError(f"the tower gave codes of shape {codes.shape}, not [batch,T,R]")
      found.append(codes[: len(images)])
    return np.concatenate(found)

  def _coded(self, record: dict[str, Any], codes: Iterator[np.ndarray]) -> dict[str, Any]:
    count = len(record.get("images") or record.get("frames") or [])
    if not count:
      return record
    both = record.pop("_both", False)
    for name in ("codes", "codes_crop")[: 1 + both]:
      records.put_codes(record, np.stack([next(codes) for _ in range(count)]), self.tower_id, name)
    if not self.keep_images:
      record.pop("images", None)
      record.pop("frames", None)
    return record
