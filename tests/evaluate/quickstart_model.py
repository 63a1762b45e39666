"""A model of a quickstart's shape with random weights, and small records by the real importers."""

import dataclasses
import pathlib

import flax.linen as nn
import jax
import numpy as np

from vilau_jax import checkpoint
from vilau_jax.config import VilaUConfig
from vilau_jax.data import imports
from vilau_jax.data.formats import easy_vqa, emoji_import
from vilau_jax.data.records import Records
from vilau_jax.data.tokenizer import Tokenizer, TowerTokenizer, train_tokenizer
from vilau_jax.models import vilau
from vilau_jax.models.tower import Tower


def write_data(root: pathlib.Path) -> None:
  scenes = emoji_import.plans(scenes=60, videos=8, test_scenes=12, test_videos=6)
  imports.run_parts(scenes, root / "emoji")
  imports.run_parts(easy_vqa.plans(limit=8), root / "easy_vqa")


def write_model(path: pathlib.Path, data: pathlib.Path, preset: str = "tiny", **overrides) -> None:
  """Random weights behind tokenizers trained on the records."""
  texts = set()
  for part in ("emoji/train_scenes", "emoji/train_videos", "easy_vqa/train"):
    for record in Records(data / part):
      texts |= {record["caption"], *record["conversations_value"]}
  write_random(path, texts, preset, **overrides)


def write_random(path: pathlib.Path, texts, preset: str = "tiny", **overrides) -> None:
  """Random weights behind a tokenizer that is trained on these texts."""
  tokenizer = train_tokenizer(texts, path / "texts" / "tokenizer.model")
  config = VilaUConfig.from_preset(preset, **overrides)
  words = Tokenizer(tokenizer).vocab_size
  tower_words = TowerTokenizer(tokenizer).vocab_size
  replace = dataclasses.replace
  config = replace(
    config,
    llm=replace(config.llm, vocab_size=words),
    tower=replace(config.tower, text=replace(config.tower.text, vocab_size=tower_words)),
  )

  def init(key):
    side = config.tower.image_size
    text = np.zeros((1, config.tower.text.length), np.int32)
    tower = Tower(config.tower).init(key, np.zeros((1, side, side, 3), np.float32), text)
    params = vilau.init(config, key) | {"tower": tower["params"]}
    return nn.unbox({"params": params, "quantizer": tower["quantizer"]})

  variables = jax.jit(init)(jax.random.key(0))
  checkpoint.save_model(path, config, variables, tokenizer, tokenizer)
