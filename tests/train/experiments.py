"""Tiny experiments and batches for the tests of training."""

import numpy as np
from ml_collections import ConfigDict

from vilau_jax.config import VilaUConfig
from vilau_jax.train import defaults


def tower(**model) -> tuple[ConfigDict, VilaUConfig]:
  """A tower experiment on the tiny model: 4 steps, batch 8, no warm-up."""
  c = defaults.tower()
  c.steps, c.batch_size = 6, 8
  c.model = dict(preset="tiny", **model)
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
  c.model = dict(preset="tiny", **model)
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
    batch["text"] = draw.integers(0, text.vocab_size, (size, text.length)).astype(np.int32)
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
