"""What records hold, for people to look at: a summary, a contact sheet, a packed row in colours."""

import collections
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vilau_jax.data import forms, media, packing, sequence
from vilau_jax.data.records import Records
from vilau_jax.data.tokenizer import Tokenizer

CELL = (58, 18)
COLORS = {
  "text": (228, 228, 228),
  "text, supervised": (170, 225, 160),
  "picture": (178, 208, 245),
  "picture, supervised": (250, 190, 110),
  "padding": (255, 255, 255),
}


def summary(records: Records, samples: int = 5) -> str:
  """Counts by kind, picture sizes, captions and questions, as text."""
  sizes: collections.Counter[str] = collections.Counter()
  frames, words, questions, coded = 0, set(), 0, 0
  captions: collections.Counter[str] = collections.Counter()
  lengths = []
  for record in records:
    lengths.append(sum(len(text.split()) for text in _texts(record)))
    pictures = record.get("images") or record.get("frames") or []
    frames += len(pictures)
    # Not every writer stores the sizes.
    for data, width, height in zip(pictures, *_sizes(record, pictures)):
      sizes[f"{width}x{height}"] += bool(data)
    caption = record.get("caption", "")
    captions[caption] += bool(caption)
    words.update(caption.split())
    questions += len(record.get("conversations_from") or []) // 2
    coded += "codes" in record
  captions.pop("", None)
  lines = [
    f"{records.path}: {len(records)} records in {len(records.shards)} shards",
    f"  kinds      {_counts(records.kinds)}",
    f"  pictures   {frames} ({_counts(dict(sizes.most_common(6))) or 'none'})",
    f"  captions   {sum(captions.values())}, {len(captions)} different, {len(words)} words",
    f"  questions  {questions}",
    f"  codes      {coded} records" + (f" by {_tower(records)}" if coded else ""),
    f"  info       {records.info}",
    *histogram(lengths),
  ]
  for index in spread(len(records), samples):
    record = records[index]
    lines.append(f"  [{index}] {record.get('caption', '')!r} {_first_question(record)}")
  return "\n".join(lines)


def _texts(record: dict[str, Any]) -> list[str]:
  """All that is said in a record."""
  said = [*(record.get("conversations_value") or []), *(record.get("sentences") or [])]
  return [record["caption"], *said] if record.get("caption") else said


def histogram(lengths: list[int], bins: int = 8, width: int = 40) -> list[str]:
  """Lines with a bar for every range of words a record."""
  counts, edges = np.histogram(lengths, bins=min(bins, int(np.ptp(lengths)) + 1))
  lines = []
  for count, low, high in zip(counts, edges, edges[1:]):
    bar = "#" * -(-int(count) * width // max(int(counts.max()), 1))
    lines.append(f"    {low:6.0f} .. {high:<6.0f} {count:8} {bar}")
  return ["  lengths    words a record", *lines]


def _sizes(record, pictures):
  if record.get("width") and record.get("height"):
    return record["width"], record["height"]
  return tuple(zip(*(media.open_image(data).size for data in pictures))) or ((), ())


def _counts(counts: dict[str, int]) -> str:
  return ", ".join(f"{count} {name}" for name, count in counts.items())


def _tower(records: Records) -> str:
  return next(r["tower_id"] for r in records if "codes" in r)


def _first_question(record: dict[str, Any]) -> str:
  values = record.get("conversations_value") or []
  return f"| {values[0]} -> {values[1]}" if len(values) > 1 else ""


def spread(total: int, count: int) -> list[int]:
  """Up to `count` different indices, evenly over `total`."""
  return sorted({int(i) for i in np.linspace(0, total - 1, min(count, total))})


def sheet(records: Records, count: int = 40, columns: int = 8) -> np.ndarray:
  """Pictures of records spread over all of them, with captions; a video's frames stand in a row,
  uint8 [H,W,3].

  Raises:
    ValueError: if no record has pictures.
  """
  images, captions = [], []
  for index in spread(len(records), count):
    record = records[index]
    pictures = [media.open_image(p) for p in record.get("images") or record.get("frames") or []]
    for place, picture in enumerate(pictures):
      picture.thumbnail((192, 192))
      images.append(picture)
      captions.append("" if place else next(iter(_texts(record)), ""))
  if not images:
    raise ValueError(f"{records.path} holds no pictures to show")
  scale = max(1, 120 // max(image.width for image in images))
  return media.contact_sheet(images, columns, captions, scale=scale)


def default_form(records: Records) -> str:
  """A form that these records can give."""
  kind = next(iter(records.kinds))
  return "t2i" if kind == "pair" else kind


def first_row(
  records: Records,
  form: str,
  tokenizer: Tokenizer,
  settings: forms.SequenceSettings,
  length: int,
) -> dict[str, np.ndarray]:
  """A row of `length` positions filled with the first samples that fit (packing.pack).

  Raises:
    ValueError: if none fits, or the records do not give the form.
  """
  samples, used = [], 0
  for record in records:
    sample = sequence.from_record(record, form, tokenizer, settings)
    if used + len(sample.tokens) <= length:
      samples.append(sample)
      used += len(sample.tokens)
    elif samples:
      break
  if not samples:
    raise ValueError(f"no {form} sample of {records.path} fits into {length} positions")
  sizes = np.sum([sample.size for sample in samples], axis=0)
  depth = max(sample.codes.shape[-1] for sample in samples)
  return packing.pack(samples, packing.RowShape(length, int(sizes[1]), int(sizes[2]), depth))


def draw_row(row: dict[str, np.ndarray], tokenizer: Tokenizer, columns: int = 16) -> np.ndarray:
  """A packed row (packing.pack) as cells with their text, coloured by what they are; a bar marks
  where a sample begins, uint8 [H,W,3]."""
  length = len(row["tokens"])
  kinds = np.full(length, "text", object)
  kinds[row["segment_ids"] == 0] = "padding"
  used = row["visual_position"] >= 0
  kinds[row["visual_position"][used]] = "picture"
  kinds[row["visual_position"][used & row["visual_target"]]] = "picture, supervised"
  labels = np.append(-1, row["text_target"][:-1])  # the id AT a place is predicted before it
  kinds[(labels >= 0) & (kinds == "text")] = "text, supervised"
  codes = dict(zip(row["visual_position"][used].tolist(), row["codes"][used]))
  width, height = CELL
  image = Image.new("RGB", (columns * width, (-(-length // columns) + 2) * height), (255, 255, 255))
  draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=10)
  for place, (kind, color) in enumerate(COLORS.items()):
    draw.rectangle((place * 140, 2, place * 140 + 12, 14), color, (120, 120, 120))
    draw.text((place * 140 + 18, 2), kind, (0, 0, 0), font)
  starts = np.flatnonzero(np.diff(row["segment_ids"], prepend=0) > 0)
  for index in range(length):
    y, x = divmod(index, columns)
    x, y = x * width, (y + 2) * height
    draw.rectangle((x, y, x + width - 1, y + height - 1), COLORS[kinds[index]], (255, 255, 255))
    if kinds[index] != "padding":
      text = (
        "-".join(map(str, codes[index])) if index in codes
        else repr(tokenizer.decode([row["tokens"][index]], special=True))[1:-1] or "\u00b7"
      )  # fmt: skip
      draw.text((x + 3, y + 3), text[:10], (0, 0, 0), font)
    if index in starts:
      draw.rectangle((x, y, x + 1, y + height), (200, 0, 0))
  return np.asarray(image)
