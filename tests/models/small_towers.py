"""Towers that are quick to compile, with random weights and inputs."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from golden_tower import random_variables

from vilau_jax.config import CnnConfig, TowerConfig, VilaUConfig
from vilau_jax.models.tower import Tower

TINY = VilaUConfig.from_preset("tiny").tower
# Every kind of block, quick to compile.
MINI = VilaUConfig.from_preset(
  "tiny",
  tower=dict(
    vision=dict(image_size=16),
    decoder=dict(multipliers=(1, 2), resolution=16, pixel_shuffle=4, attention_resolutions=(2,)),
  ),
).tower
# What the golden towers do not have: folded codes, resized latents, sub-pixels, no text encoder.
ODD = VilaUConfig.from_preset(
  "tiny",
  tower=dict(
    text=None,
    vision=dict(image_size=36, patch_size=9),
    quantizer=dict(fold=2, shared=False, depth=2),
    decoder=dict(multipliers=(1, 2), pixel_shuffle=3, resolution=36, attention_resolutions=()),
    latent_grid=6,
  ),
).tower
SEPARATE = dataclasses.replace(TINY.quantizer, shared=False, decay=0.9)
ODD_RQVAE = TowerConfig(
  encoder="rqvae",
  vision=None,
  text=None,
  cnn=CnnConfig(8, (1, 2, 2), 1, 6, 16, (4,), 4),
  quantizer=dataclasses.replace(TINY.quantizer, fold=2, width=5),
  decoder=CnnConfig(8, (1, 2, 2), 1, 4, 16, (8,), 4),
)


def inputs(config, batch=4, seed=0):
  random = np.random.default_rng(seed)
  side = config.image_size
  images = jnp.asarray(random.uniform(-1, 1, (batch, side, side, 3)), jnp.float32)
  if config.text is None:
    return images, None
  text = random.integers(0, config.text.vocab_size, (batch, config.text.length))
  return images, jnp.asarray(text, jnp.int32)


@functools.cache
def boxed_variables(config):
  return jax.eval_shape(lambda: Tower(config).init(jax.random.key(1), *inputs(config)))


def make(config):
  return Tower(config), random_variables(nn.unbox(boxed_variables(config)))
