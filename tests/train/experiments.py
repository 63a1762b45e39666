"""Tiny experiments and batches for the tests of training."""

import copy
import pathlib

import numpy as np
from ml_collections import ConfigDict

from vilau_jax.config import VilaUConfig
from vilau_jax.data import media, records
from vilau_jax.train import defaults

# Less to compile than the preset "tiny": every kind of part once.
SMALL = dict(
  vision=dict(depth=2),
  text=dict(depth=1),
  decoder=dict(multipliers=(1, 2), blocks=0, attention_resolutions=(), pixel_shuffle=4),
)
COLOURS = ("red", "green", "blue", "white", "black", "grey")


def tower() -> tuple[ConfigDict, VilaUConfig]:
  """A tower experiment: 6 steps, batch 8, no warm-up."""
  c = defaults.tower()
  c.steps, c.batch_size = 6, 8
  c.model = dict(preset="tiny", dtype="float32", remat="none", tower=copy.deepcopy(SMALL))
  c.optim.update(dict(peak_lr=1e-3, warmup=0, clip=1.0))
  c.optim.freeze = ()
  c.mesh.data = -1
  c.ckpt.every, c.log.every, c.log.samples_every = 2, 1, 0
  c.data.threads = 1
  return c, VilaUConfig.from_preset(**c.model.to_dict())


def lm(**model) -> tuple[ConfigDict, VilaUConfig]:
  """A language-model experiment on the tiny model."""
  c = defaults.lm()
  c.steps, c.batch_size = 6, 8
  base = dict(preset="tiny", dtype="float32", remat="none", tower=copy.deepcopy(SMALL))
  c.model = base | model
  c.optim.update(dict(peak_lr=1e-3, warmup=0))
  c.data.row.update(dict(length=64, slots=40, targets=32, window=64))
  c.loss.text_chunk, c.loss.code_chunk = 64, 64
  c.ckpt.every, c.log.every, c.log.samples_every = 2, 1, 0
  c.data.threads = 1
  return c, VilaUConfig.from_preset(**c.model.to_dict())


def tower_batch(model: VilaUConfig, size: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
  draw = np.random.default_rng(seed)
  text = model.tower.text
  side = model.tower.image_size
  batch = {
    "image": draw.integers(0, 256, (size, side, side, 3)).astype(np.uint8),
    "caption_id": np.arange(size, dtype=np.int32) // 2,
  }
  if text is not None:
    for name in ("text", "wrong_text"):
      batch[name] = draw.integers(0, text.vocab_size, (size, text.length)).astype(np.int32)
    batch["has_wrong"] = np.arange(size) % 3 > 0
  return batch


def lm_batch(model: VilaUConfig, row: ConfigDict, size: int = 8, seed: int = 0) -> dict:
  """Rows of two segments: a drawing whose slots are supervised, and a question about a picture."""
  draw = np.random.default_rng(seed)
  t, depth = model.tower.image_tokens, model.tower.quantizer.depth
  length, slots = row.length, row.slots
  batch = {
    "tokens": draw.integers(0, model.llm.vocab_size, (size, length)).astype(np.int32),
    "visual_position": np.full((size, slots), -1, np.int32),
    "codes": draw.integers(0, model.tower.quantizer.entries, (size, slots, depth)).astype(
      np.uint16
    ),
    "visual_target": np.zeros((size, slots), bool),
    "segment_ids": np.zeros((size, length), np.int32),
    "positions": np.zeros((size, length), np.int32),
    "text_target": np.full((size, length), -1, np.int32),
  }
  for r in range(size):
    first = 4 + t + 2 + int(draw.integers(4))
    batch["visual_position"][r, :t] = 4 + np.arange(t)
    batch["visual_target"][r, :t] = True
    batch["visual_position"][r, t : 2 * t] = first + 3 + np.arange(t)
    end = first + 3 + t + 6 + int(draw.integers(4))
    batch["segment_ids"][r, :first], batch["segment_ids"][r, first:end] = 1, 2
    batch["positions"][r, :first] = np.arange(first)
    batch["positions"][r, first:end] = np.arange(end - first)
    batch["text_target"][r, 2:4] = draw.integers(0, model.llm.vocab_size, 2)
    answer = end - first - 3 - t - 1
    batch["text_target"][r, end - answer : end - 1] = draw.integers(
      0, model.llm.vocab_size, answer - 1
    )
  return batch


def write_pictures(path: pathlib.Path, side: int = 32, count: int = 24) -> None:
  """Records of plain pictures with a caption and two questions."""
  draw = np.random.default_rng(7)
  with records.Writer(path, "plain") as writer:
    for i in range(count):
      colour = i % len(COLOURS)
      pixels = draw.integers(0, 40, (side, side, 3)) + 35 * colour
      writer.write(
        {
          "kind": "sft",
          "id": f"{i}",
          "source": "tests",
          "caption": f"a {COLOURS[colour]} square",
          "images": [media.encode_png(pixels.astype(np.uint8))],
          "conversations_from": ["human", "gpt"] * 2,
          "conversations_value": ["Which colour?", COLOURS[colour], "Is it red?", "no"],
        }
      )


def write_codes(source: pathlib.Path, path: pathlib.Path, model: VilaUConfig, tower_id: str):
  """The records of `source` with drawn codes."""
  draw = np.random.default_rng(8)
  shape = (1, model.tower.image_tokens, model.tower.quantizer.depth)
  with records.Writer(path, "plain") as writer:
    for record in records.Records(source):
      codes = draw.integers(0, model.tower.quantizer.entries, shape)
      records.put_codes(record, codes, tower_id)
      writer.write(record)


def tower_run(root: pathlib.Path) -> ConfigDict:
  """A tower run on `root`/pictures, which is written when it is not there."""
  c, _ = tower()
  c.model.tower.text.vocab_size = 0
  if not (root / "pictures").exists():
    write_pictures(root / "pictures")
  c.data.root, c.data.mixture = str(root), (dict(path="pictures", weight=1.0),)
  c.data.tokenizer_size, c.data.augment = 300, "none"
  return c


def lm_run(root: pathlib.Path, tower_directory: pathlib.Path, tower_id: str) -> ConfigDict:
  """A language-model run on `root`/codes, which is written when it is not there."""
  c, model = lm(llm=dict(vocab_size=0))
  c.model.tower.text.vocab_size = 0
  if not (root / "codes").exists():
    write_codes(root / "pictures", root / "codes", model, tower_id)
  c.init_from = dict(tower=str(tower_directory))
  c.data.root = str(root)
  c.data.mixture = (
    dict(path="codes", form="t2i", weight=1.0),
    dict(path="codes", form="i2t", weight=1.0),
  )
  c.data.tokenizer_size = 300
  c.data.row.update(dict(length=96, slots=64, targets=48, window=16))
  c.model.system_prompt = ""
  return c
