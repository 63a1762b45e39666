"""Golden checkpoint a (tests/golden/a) as our trees: language model, projector, depth transformer,
codebook; and its 06 batches as our batch dicts."""

import functools
import json
import pathlib
from collections.abc import Callable

import numpy as np
from golden_tower import release

from vilau_jax.config import (
  CnnConfig,
  DepthConfig,
  LlamaConfig,
  QuantizerConfig,
  TextConfig,
  TowerConfig,
  VilaUConfig,
  VisionConfig,
)
from vilau_jax.convert import formats

# One compiled program serves all golden batches: rows, positions and slots are padded to these.
ROWS, LENGTH, SLOTS = 6, 213, 144

A = pathlib.Path(__file__).parents[1] / "golden" / "a"
TOWER = "vision_tower.vision_tower."


def config() -> VilaUConfig:
  return VilaUConfig(
    name="golden_a",
    tower=TowerConfig(
      vision=VisionConfig(image_size=32, patch_size=8, width=64, hidden=128, depth=4, heads=4),
      text=TextConfig(vocab_size=256, length=16, width=64, hidden=96, depth=2, heads=4),
      quantizer=QuantizerConfig(depth=4, entries=64, width=64, shared=False),
      decoder=CnnConfig(channels=32, multipliers=(1, 1, 2, 1), blocks=1, latent_channels=48,
                        resolution=32, attention_resolutions=(4,)),
    ),
    llm=LlamaConfig(vocab_size=516, width=96, hidden=192, depth=3, heads=4, kv_heads=4),
    depth=DepthConfig(width=64, hidden=256, depth=2, heads=4),
  )  # fmt: skip


def load(name: str) -> dict[str, np.ndarray]:
  with np.load(A / f"{name}.npz") as file:
    return dict(file)


def grad_norms() -> dict[str, dict[str, list[float]]]:
  return json.loads((A / "07_grad_norms.json").read_text())


@functools.cache
def names() -> dict[str, tuple[tuple[str, ...], int | None, Callable]]:
  """Torch name, as the gradients spell it -> (our path, layer, what turns torch's array), from the
  importer's table."""
  table = {}
  plan = formats.open_checkpoint("vila-u", A / "checkpoint").plan
  for target, piece in plan.pieces():
    path = tuple(target.split("/")[1:])
    if target.startswith(("params/llm/", "params/projector/", "params/depth/")):
      name = piece.names[0].replace("vision_tower/", TOWER).replace("/", ".")
      table[name] = path, piece.layer, piece.to_ours
  return table


def params() -> dict:
  """{"llm", "projector", "depth"} with stacked layers."""
  return {k: v for k, v in release().variables["params"].items() if k != "tower"}


def codebook() -> np.ndarray:
  """[4, 64, 64]; the padding row is dropped."""
  return release().variables["quantizer"]["codebook"]


def rows(arrays: dict[str, np.ndarray], pad_left: bool = False) -> dict[str, np.ndarray]:
  """The padded (evaluation) layout of a 06 batch as our batch dict."""
  t, vocab = config().tower.image_tokens, config().llm.vocab_size
  pool = load("02_vision_tower")["pool_codes"].reshape(-1, t, 4)
  labels = arrays["exp_labels"]
  b, length = labels.shape[:2]
  images = iter(arrays["image_index"])
  samples = []
  for r in range(b):
    tokens, places, codes = [], [], []
    for token in arrays["input_ids"][r][arrays["attention_mask"][r]]:
      if token == -200:
        places += range(len(tokens), len(tokens) + t)
        codes.append(pool[next(images)])
        tokens += [0] * t
      else:
        tokens.append(int(token))
    tokens, places = tokens[:length], [p for p in places if p < length]
    codes = np.concatenate(codes)[: len(places)] if codes else np.zeros((0, 4), np.int32)
    shift = length - len(tokens) if pad_left else 0
    label = labels[r, shift : shift + len(tokens)]
    samples.append((tokens, places, codes, label, shift))
  return stack([[s] for s in samples], length, vocab)


def packed(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The packed (training) layout: longest sample first, next fit into rows of the padded width."""
  length = arrays["exp_labels"].shape[1]
  whole, bins, free = rows(arrays), [], 0
  lengths = whole["segment_ids"].sum(1)
  for r in np.argsort(-lengths):
    n = int(lengths[r])
    slots = whole["visual_position"][r]
    sample = (
      list(whole["tokens"][r, :n]), list(slots[slots >= 0]), whole["codes"][r][slots >= 0],
      arrays["exp_labels"][r, :n], 0,
    )  # fmt: skip
    if n > free:
      bins.append([])
      free = length
    bins[-1].append(sample)
    free -= n
  return stack(bins, length, config().llm.vocab_size)


def stack(bins: list[list[tuple]], length: int, vocab: int) -> dict[str, np.ndarray]:
  """Rows of samples (tokens, visual places, codes, expanded labels, padding on the left)."""
  b = len(bins)
  slots = max(1, max(sum(len(s[1]) for s in row) for row in bins))
  batch = {
    k: np.zeros((b, length), np.int32) for k in ("tokens", "segment_ids", "positions")
  } | {
    "text_target": np.full((b, length), -1, np.int32),
    "visual_position": np.full((b, slots), -1, np.int32),
    "visual_target": np.zeros((b, slots), bool),
    "codes": np.zeros((b, slots, 4), np.uint16),
  }  # fmt: skip
  for r, samples in enumerate(bins):
    at, slot = 0, 0
    for segment, (tokens, places, codes, label, shift) in enumerate(samples):
      at, n, m = at + shift, len(tokens), len(places)
      batch["tokens"][r, at : at + n] = tokens
      batch["segment_ids"][r, at : at + n] = segment + 1
      batch["positions"][r, at : at + n] = np.arange(n)
      batch["visual_position"][r, slot : slot + m] = np.asarray(places, np.int32) + at
      batch["codes"][r, slot : slot + m] = codes
      text = np.where((label[:, 0] >= 0) & (label[:, 0] < vocab), label[:, 0], -1)
      batch["text_target"][r, at : at + n - 1] = text[1:]
      target = label[places, 0] >= vocab if m else np.zeros(0, bool)
      batch["visual_target"][r, slot : slot + m] = target
      assert np.array_equal(label[places][target] - vocab, codes[target])
      at, slot = at + n, slot + m
  return batch


def widen(batch):
  """Pads a batch dict to [ROWS, LENGTH] and SLOTS with padding values."""
  fill = {"text_target": -1, "visual_position": -1}
  size = dict.fromkeys(("tokens", "segment_ids", "positions", "text_target"), LENGTH)
  return {
    k: np.pad(
      v,
      [(0, ROWS - v.shape[0]), (0, size.get(k, SLOTS) - v.shape[1])] + [(0, 0)] * (v.ndim - 2),
      constant_values=fill.get(k, 0),
    )
    for k, v in batch.items()
  }
