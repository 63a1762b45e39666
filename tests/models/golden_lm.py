"""Golden checkpoint a (tests/golden/a) as our trees: language model, projector, depth transformer,
codebook; and its 06 batches as our batch dicts."""

import json
import pathlib

import numpy as np
from safetensors.numpy import load_file

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


def names() -> dict[str, tuple[tuple[str, ...], int | None, str]]:
  """Torch name, as the gradients spell it -> (our path, layer, how to turn torch's array)."""
  table = {
    "llm.model.embed_tokens.weight": (("llm", "embed_tokens"), None, "same"),
    "llm.model.norm.weight": (("llm", "norm", "scale"), None, "same"),
    "llm.lm_head.weight": (("llm", "lm_head"), None, "transpose"),
  }
  for i in range(3):
    at = f"llm.model.layers.{i}."
    for norm in ("input_layernorm", "post_attention_layernorm"):
      table[f"{at}{norm}.weight"] = (("llm", "layers", norm, "scale"), i, "same")
    for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
      turn = "heads_out" if part == "o_proj" else "heads_in"
      table[f"{at}self_attn.{part}.weight"] = _dense(("llm", "layers", "self_attn", part), i, turn)
    for part in ("gate_proj", "up_proj", "down_proj"):
      table[f"{at}mlp.{part}.weight"] = _dense(("llm", "layers", "mlp", part), i, "transpose")
  for i in (0, 2):
    table[f"mm_projector.layers.{i}.weight"] = _dense(("projector", f"layers_{i}"), None)
    table[f"mm_projector.layers.{i}.bias"] = (("projector", f"layers_{i}", "bias"), None, "same")
  depth = f"{TOWER}rqtransformer."
  table[f"{depth}pos_emb_d"] = (("depth", "pos_emb_d"), None, "first")
  for torch, ours in (
    ("in_mlp_1", "in_mlp_1"),
    ("in_mlp_2", "in_mlp_2"),
    ("classifier_mlp.linear", "classifier"),
  ):
    table[f"{depth}{torch}.weight"] = _dense(("depth", ours), None)
    table[f"{depth}{torch}.bias"] = (("depth", ours, "bias"), None, "same")
  for torch, ours in (("weight", "scale"), ("bias", "bias")):
    where = ("depth", "classifier_norm", ours)
    table[f"{depth}classifier_mlp.layer_norm.{torch}"] = (where, None, "same")
  for i in range(2):
    table |= _depth_block(f"{depth}head_transformer.blocks.{i}.", i)
  return table


def _depth_block(at: str, i: int) -> dict:
  table = {}
  block = ("depth", "layers")
  for norm in ("ln1", "ln2"):
    table[f"{at}{norm}.weight"] = ((*block, norm, "scale"), i, "same")
    table[f"{at}{norm}.bias"] = ((*block, norm, "bias"), i, "same")
  for torch, ours in (("query", "query"), ("key", "key"), ("value", "value"), ("proj", "out")):
    turns = ("heads_out", "same") if ours == "out" else ("heads_in", "heads")
    table[f"{at}attn.{torch}.weight"] = _dense((*block, "attn", ours), i, turns[0])
    table[f"{at}attn.{torch}.bias"] = ((*block, "attn", ours, "bias"), i, turns[1])
  for torch, ours in (("mlp.0", "fc1"), ("mlp.2", "fc2")):
    table[f"{at}{torch}.weight"] = _dense((*block, "mlp", ours), i)
    table[f"{at}{torch}.bias"] = ((*block, "mlp", ours, "bias"), i, "same")
  return table


def _dense(path: tuple[str, ...], layer: int | None, turn: str = "transpose"):
  return (*path, "kernel"), layer, turn


def turn(array: np.ndarray, how: str, heads: int = 4) -> np.ndarray:
  """A torch array in our layout; golden a has 4 heads everywhere."""
  if how == "heads_in":
    return array.T.reshape(array.shape[1], heads, -1)
  if how == "heads_out":
    return array.T.reshape(heads, -1, array.shape[0])
  return {
    "same": array, "first": array[0] if array.ndim > 1 else array, "transpose": array.T,
    "heads": array.reshape(heads, -1) if array.ndim == 1 else array,
  }[how]  # fmt: skip


def tensors() -> dict[str, np.ndarray]:
  """All tensors under the names that the gradients use."""
  parts = {
    "llm.": A / "checkpoint" / "llm",
    "mm_projector.": A / "checkpoint" / "mm_projector",
    TOWER: A / "checkpoint" / "vision_tower",
  }
  return {
    prefix + name: array
    for prefix, folder in parts.items()
    for name, array in load_file(folder / "model.safetensors").items()
  }


def params() -> dict:
  """{"llm", "projector", "depth"} with stacked layers."""
  source = tensors()
  leaves: dict[tuple[str, ...], list[np.ndarray]] = {}
  for name, (path, _, how) in names().items():
    leaves.setdefault(path, []).append(turn(source[name], how))
  layered = {path for path, layer, _ in names().values() if layer is not None}
  tree: dict = {}
  for path, arrays in leaves.items():
    node = tree
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = np.stack(arrays) if path in layered else arrays[0]
  return tree


def codebook() -> np.ndarray:
  """[4, 64, 64]; the padding row is dropped."""
  source = tensors()
  at = f"{TOWER}rqvaesiglip.quantizer.codebooks"
  return np.stack([source[f"{at}.{d}.weight"][:-1] for d in range(4)])


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
