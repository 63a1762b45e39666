"""The model card of the page: what the model is made of, and how good its tower is."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from vilau_jax.api import VilaU
from vilau_jax.cli import describe
from vilau_jax.data import media
from vilau_jax.data.formats import emoji
from vilau_jax.evaluate.picture_metrics import psnr

PICTURES = 24  # of the tower's check


def components(model: VilaU) -> list[list[str]]:
  """Rows of component, parameters, size as float32."""
  return [
    [name, f"{count:,}", f"{count * 4 / 2**20:,.1f} MiB"]
    for name, count in describe.counts(model.config).items()
  ]


def geometry(model: VilaU) -> list[list[str]]:
  """Rows of a name and its value."""
  rows = []
  for name, value in describe.geometry(model.config).items():
    shown = " x ".join(map(str, value)) if isinstance(value, list) else f"{value:,}"
    rows.append([name.replace("_", " "), shown])
  return rows


def config(model: VilaU) -> str:
  """The architecture as JSON."""
  return json.dumps(model.config.to_dict(), indent=2)


def tower_quality(model: VilaU) -> tuple[list[list[Any]], np.ndarray]:
  """The tower on bundled pictures: emoji scenes that no quickstart was trained on.

  Returns:
    Rows of depth, PSNR in dB of reconstructions from so many codes, codes of the codebook in use
    and their perplexity at that depth; and a sheet of some reconstructions, uint8 [H, W, 3].

  Raises:
    ValueError: for a model without a tower that makes codes.
  """
  side = model.runtime.tower.image_size
  scenes = [emoji.render(scene, side) for scene in emoji.pictures(PICTURES, "test", 0)]
  squares = np.stack([media.to_square(scene, side) for scene in scenes])
  codes = model.encode_images(squares)
  rows, shown = [], [squares[:6]]
  for d in range(codes.shape[-1]):
    drawn = model.decode_codes(codes[..., : d + 1])
    used, perplexity = usage(codes[..., d])
    near = float(psnr(squares / 255, drawn / 255).mean())
    rows.append([d + 1, round(near, 2), used, round(perplexity, 1)])
    shown.append(drawn[:6])
  captions = ["picture", "1 code"] + [f"{i} codes" for i in range(2, len(shown))]
  return rows, sheet(shown, captions, max(1, 96 // side))


def usage(codes: np.ndarray) -> tuple[int, float]:
  """Different codes, and e to the entropy of their frequencies."""
  counts = np.unique(codes, return_counts=True)[1]
  share = counts / counts.sum()
  return len(counts), float(np.exp(-(share * np.log(share)).sum()))


def sheet(rows: Sequence[np.ndarray], captions: Sequence[str], scale: int) -> np.ndarray:
  """Rows of pictures, the first of each row with its caption."""
  flat = [picture for row in rows for picture in row]
  words = [
    caption if i == 0 else "" for row, caption in zip(rows, captions) for i in range(len(row))
  ]
  return media.contact_sheet(flat, len(rows[0]), words, scale=scale)
