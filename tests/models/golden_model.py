"""Golden checkpoint a as a whole model, and the tiny preset with random weights."""

import dataclasses
import functools

import flax.linen as nn
import golden_lm
import golden_tower
import jax
import numpy as np

from vilau_jax.checkpoint import LoadedModel
from vilau_jax.config import VilaUConfig
from vilau_jax.data.sequence import Sequence
from vilau_jax.models import vilau
from vilau_jax.models.tower import Tower

TOKENIZER = str(golden_lm.A / "checkpoint" / "llm" / "tokenizer.model")
GREEDY = dict(temperature=0.0)
pool_codes = functools.cache(lambda: golden_lm.load("02_vision_tower")["pool_codes"])


@functools.cache
def golden() -> LoadedModel:
  """Tower, language model, projector and depth transformer of golden a."""
  tower_config, tower = golden_tower.siglip_tower()
  config = dataclasses.replace(
    golden_lm.config(), tower=tower_config, video_frames=2, markers="release"
  )
  params = golden_lm.params() | {"tower": tower["params"]}
  variables = {"params": params, "quantizer": tower["quantizer"]}
  return LoadedModel(config, variables, TOKENIZER, None, "golden a")


@functools.cache
def tiny(**overrides) -> LoadedModel:
  """The tiny preset with random weights; the golden tokenizer fits its vocabulary."""
  config = VilaUConfig.from_preset("tiny", **overrides)

  def init(key):
    side = config.tower.image_size
    tower = Tower(config.tower).init(key, np.zeros((1, side, side, 3), np.float32))
    params = vilau.init(config, key) | {"tower": tower["params"]}
    return nn.unbox({"params": params, "quantizer": tower["quantizer"]})

  return LoadedModel(config, jax.jit(init)(jax.random.key(0)), TOKENIZER, TOKENIZER, "tiny")


def prompt(ids, mask=None, images=()) -> Sequence:
  """Golden prompt ids, with -200 where the images (indices into the pool) stand."""
  ids = np.asarray(ids)[np.asarray(mask)] if mask is not None else np.asarray(ids)
  tokens, places, codes, images = [], [], [], iter(images)
  for token in ids:
    if token == -200:
      new = pool_codes()[next(images)].reshape(-1, 4)
      places += range(len(tokens), len(tokens) + len(new))
      tokens += [0] * len(new)
      codes.append(new)
    else:
      tokens.append(int(token))
  codes = np.concatenate(codes) if codes else np.zeros((0, 0), np.int32)
  return Sequence(
    tokens=np.array(tokens, np.int32),
    text_target=np.full(len(tokens), -1, np.int32),
    visual_position=np.array(places, np.int32),
    codes=codes,
    visual_target=np.zeros(len(places), bool),
  )
