"""SigLIP checkpoints of big_vision (.npz) <-> params/tower/{vision, text, logit_*}. Layouts are as
here; layers stand alone ("encoderblock_3") or stacked ("encoderblock").
"""

import pathlib
import re

from vilau_jax.config import TextConfig, TowerConfig, VilaUConfig, VisionConfig
from vilau_jax.convert.plan import Row
from vilau_jax.convert.siglip import AT, tower_of
from vilau_jax.convert.sources import Tensors
from vilau_jax.convert.transforms import LEADING_1, SAME


def read_config(path: pathlib.Path, tensors: Tensors) -> VilaUConfig:
  """The architecture of a big_vision .npz, which carries no config: it follows from the shapes, and
  the image side (384 has 27 x 27 patches of 14 and a rest) from the file's name where it fits.

  Raises:
    ValueError: if the shapes it follows from are missing.
  """
  shape = {name: info.shape for name, info in tensors.infos.items()}
  try:
    patch, _, _, width = shape["img/embedding/kernel"]
    grid = round(shape["img/pos_embedding"][1] ** 0.5)
    vocabulary, _ = shape["txt/Embed_0/embedding"]
    length = shape["txt/pos_embedding"][1]
    sizes = [_sizes(shape, at) for at in ("img/Transformer", "txt/Encoder_0")]
  except (KeyError, ValueError, StopIteration) as error:
    raise ValueError(f"{path}: no big_vision SigLIP, there is no {error}") from error
  named = [int(n) for n in re.findall(r"(?<!\d)\d{3}(?!\d)", path.stem)]
  image = next((n for n in named if n // patch == grid), grid * patch)
  vision = VisionConfig(image_size=image, patch_size=patch, width=width, **sizes[0])
  text = TextConfig(vocab_size=vocabulary, length=length, width=width, **sizes[1])
  return VilaUConfig(name=path.stem, tower=tower_of(vision, text), llm=None, depth=None)


def _sizes(shape: dict[str, tuple[int, ...]], at: str) -> dict[str, int]:
  stacked = f"{at}/encoderblock/MlpBlock_0/Dense_0/kernel"
  if stacked in shape:
    depth, _, hidden = shape[stacked]
  else:
    depth = sum(bool(re.fullmatch(rf"{at}/encoderblock_\d+/LayerNorm_0/scale", n)) for n in shape)
    hidden = shape[f"{at}/encoderblock_0/MlpBlock_0/Dense_0/kernel"][1]
  query = "MultiHeadDotProductAttention_0/query/kernel"
  heads = next(s for n, s in shape.items() if n.startswith(f"{at}/") and n.endswith(query))[-2]
  return dict(hidden=hidden, depth=depth, heads=heads)


def rows(tower: TowerConfig, tensors: Tensors) -> list[Row]:
  """The table for big_vision's names; its layouts are ours."""
  vision, text, last = f"{AT}/vision", f"{AT}/text", tower.vision.depth - 1
  head = "img/MAPHead_0"
  table = [
    Row(f"{vision}/embed/kernel", ("img/embedding/kernel",), SAME),
    Row(f"{vision}/embed/bias", ("img/embedding/bias",), SAME),
    Row(f"{vision}/embed/position", ("img/pos_embedding",), LEADING_1),
    Row(f"{vision}/head/probe", (f"{head}/probe",), SAME),
    Row(f"{text}/token", ("txt/Embed_0/embedding",), SAME),
    Row(f"{text}/position", ("txt/pos_embedding",), LEADING_1),
    Row(f"{AT}/logit_scale", ("t",), SAME),
    Row(f"{AT}/logit_bias", ("b",), SAME),
    *_leaves(f"{text}/head", "txt/head", ("kernel", "bias")),
    *_leaves(f"{vision}/post_norm", "img/Transformer/encoder_norm", ("scale", "bias")),
    *_leaves(f"{text}/final_norm", "txt/Encoder_0/encoder_norm", ("scale", "bias")),
    *_block(f"{vision}/head", head, ("attention", "layer_norm", None)),
  ]
  block = ("self_attn", "layer_norm1", "layer_norm2")
  for our, at, depth in ((vision, "img/Transformer", last + 1),
                         (text, "txt/Encoder_0", tower.text.depth)):  # fmt: skip
    stacked = any(n.startswith(f"{at}/encoderblock/") for n in tensors.infos)
    for i in range(depth):
      target, layer = (
        (f"{our}/layers", i) if our == text or i < last else (f"{our}/last_layer", None)
      )
      name, part = (
        (f"{at}/encoderblock", (i, depth)) if stacked else (f"{at}/encoderblock_{i}", None)
      )
      table += _block(target, name, block, layer, part)
  return table


def _leaves(target, name, leaves, layer=None, part=None) -> list[Row]:
  how, part = (LEADING_1, part) if part else (SAME, (0, 1))
  return [Row(f"{target}/{leaf}", (f"{name}/{leaf}",), how, part, layer) for leaf in leaves]


def _block(target, name, ours, layer=None, part=None) -> list[Row]:
  """Attention, norms and MLP of a block or of the pooling head, whose parts are called `ours`."""
  attention, first, second = ours
  dense_leaves, where = ("kernel", "bias"), dict(layer=layer, part=part)
  table = []
  for projection in ("query", "key", "value", "out"):
    at = f"{name}/MultiHeadDotProductAttention_0/{projection}"
    table += _leaves(f"{target}/{attention}/{projection}", at, dense_leaves, **where)
  for i, our in enumerate((first, second)):
    if our:
      table += _leaves(f"{target}/{our}", f"{name}/LayerNorm_{i}", ("scale", "bias"), **where)
  for i in range(2):
    at = f"{name}/MlpBlock_0/Dense_{i}"
    table += _leaves(f"{target}/mlp/fc{i + 1}", at, dense_leaves, **where)
  return table
