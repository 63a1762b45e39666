"""Inputs that are nearly right: valid files bent in the ways in which files go wrong.

Everything comes out of the random generator that is handed in, so an input is known by its number.
"""

import json
import random
import struct
import zlib
from collections.abc import Sequence
from typing import Any

# Sizes and counts at which readers break: signs, widths, one too many.
NUMBERS = (
  0, 1, 2, 3, 7, 8, 15, 16, 127, 128, 255, 256, 2**15 - 1, 2**15, 2**16 - 1, 2**16, 2**24, 2**28,
  2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1,
)  # fmt: skip
# What parsers of text stumble over.
WORDS = tuple(
  word.encode("utf-8", "surrogatepass")
  for word in (
    "\0", "\ufeff", "\ud800", "\U0001f98a", "\u2028", "<image>", "</s>", "<im_start>", "<unk>",
    "\u2581", "../", "/etc/passwd", "://", "file:///", "null", "true", "NaN", "-Infinity", "1e999",
    "9" * 5000, "[" * 3000, '{"a":' * 1500, '"', "'", "\\", "\\u", "\\ud800", ",", "\r", "\n", ";",
    "*&", "!!python/object", "&a [*a]", "%s", "{0}", "-1", "0x", "1_0", " " * 300,
  )
)  # fmt: skip
# What stands in the place of a value in JSON.
VALUES = (
  None, True, False, 0, 1, -1, 2, 7, 2**31, 2**63, 2**64, 10**30, -0.0, 0.5, 1e-320, 1e308,
  float("inf"), float("nan"), "", " ", "a", "\0", "\ud800", "0", "-1", "1e999", "../../a",
  "/etc/passwd", "gs://x/y", "file:///etc/passwd", "<image>", "x" * 5000, [], {}, [[]], [None],
  {"": None}, [0] * 300, {"a": {"a": {"a": {}}}},
)  # fmt: skip


def mutated(
  rng: random.Random, seeds: Sequence[bytes], *, tree: bool = False, png: bool = False
) -> bytes:
  """One input: mostly a seed with one to eight changes, now and then plain noise.

  Args:
    rng: decides on everything.
    seeds: valid files.
    tree: the seeds are JSON, or lines of JSON: half of the time values change instead of bytes.
    png: half of the time, checksums of the chunks of a PNG are made right again.
  """
  if rng.random() < 0.03:
    return rng.randbytes(rng.choice((0, 1, 4, 16, 100, 1000)))
  seed = rng.choice(seeds)
  if tree and rng.random() < 0.6:
    seed = _json(rng, seed)
    if rng.random() < 0.8:
      return seed
  data = bytearray(seed)
  for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
    rng.choice(_CHANGES)(rng, data, seeds)
  if png and rng.random() < 0.5:
    data = _sealed(data)
  return bytes(data)


def _flip(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
  if data:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _byte(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
  if data:
    data[rng.randrange(len(data))] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))


def _number(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
  """A field of 1 to 8 bytes gets another value, mostly near the head where sizes stand."""
  width = rng.choice((1, 2, 4, 4, 8))
  if len(data) >= width:
    most = len(data) - width
    place = rng.randrange(most + 1) if rng.random() < 0.6 else rng.randrange(min(most, 64) + 1)
    value = rng.choice((*NUMBERS, len(data), len(data) + 1)) % 2 ** (8 * width)
    data[place : place + width] = value.to_bytes(width, rng.choice(("little", "big")))


def _cut(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
  del data[rng.randrange(len(data) + 1) :]


def _remove(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
  place = rng.randrange(len(data) + 1)
  del data[place : place + rng.choice((1, 2, 4, 8, 64, 512))]


def _repeat(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
  place = rng.randrange(len(data) + 1)
  part = data[place : place + rng.choice((1, 4, 8, 64, 512))]
  data[place:place] = part * rng.choice((1, 2, 16, 200))


def _splice(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
  """The rest of another seed from some place on."""
  other = rng.choice(seeds)
  data[rng.randrange(len(data) + 1) :] = other[rng.randrange(len(other) + 1) :]


def _insert(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
  place = rng.randrange(len(data) + 1)
  data[place:place] = rng.choice((rng.choice(WORDS), rng.randbytes(rng.choice((1, 4, 40)))))


def _swap(rng: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
  """Two stretches change places."""
  size = rng.choice((1, 4, 16, 128))
  if len(data) >= 2 * size:
    a, b = (rng.randrange(len(data) - size + 1) for _ in range(2))
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]


_CHANGES = (_flip, _byte, _number, _number, _cut, _remove, _repeat, _splice, _insert, _swap)


def _json(rng: random.Random, seed: bytes) -> bytes:
  try:
    values = [json.loads(seed)]
  except ValueError:
    try:  # lines of JSON
      values = [json.loads(line) for line in seed.splitlines() if line.strip()]
    except ValueError:  # another seed
      return seed
  for _ in range(rng.choice((1, 1, 2, 4))):
    values = tree(rng, values)
  return b"\n".join(json.dumps(value, ensure_ascii=rng.random() < 0.9).encode(
    "utf-8", "surrogatepass") for value in values)  # fmt: skip


def tree(rng: random.Random, values: list[Any]) -> list[Any]:
  """Values of JSON in which one place has changed: another value, gone, or there twice."""
  values = json.loads(json.dumps(values))
  places: list[tuple[Any, Any]] = []

  def walk(node: Any) -> None:
    keys = list(node) if isinstance(node, dict) else range(len(node))
    for key in keys:
      places.append((node, key))
      if isinstance(node[key], dict | list):
        walk(node[key])

  for number, value in enumerate(values):
    places.append((values, number))
    if isinstance(value, dict | list):
      walk(value)
  if not places:
    return [rng.choice(VALUES)]
  node, key = rng.choice(places)
  kind = rng.random()
  if kind < 0.6:
    node[key] = rng.choice(VALUES)
  elif kind < 0.75:
    del node[key]
  elif kind < 0.85:
    node[key] = [node[key]] * rng.choice((1, 2, 50))
  elif isinstance(node, dict):
    node[rng.choice((f"{key}x", "", key.upper(), "a"))] = node.pop(key)
  else:
    node += [node[key]] * rng.choice((1, 2, 50))
  return values


def _sealed(data: bytearray) -> bytearray:
  """A PNG whose chunks have the checksums of what they hold now."""
  place = 8
  while place + 12 <= len(data):
    (length,) = struct.unpack_from(">I", data, place)
    end = place + 8 + length
    if end + 4 > len(data):
      break
    struct.pack_into(">I", data, end, zlib.crc32(data[place + 4 : end]))
    place = end + 4
  return data
