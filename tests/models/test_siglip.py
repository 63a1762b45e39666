"""Both SigLIP encoders against the PyTorch reference."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_tower import arrays, assert_close, nhwc, siglip_tower

from vilau_jax.config import TextConfig, VisionConfig
from vilau_jax.layers.stack import unstack
from vilau_jax.models.siglip import PatchEmbed, SiglipBlock, TextEncoder, VisionEncoder


@pytest.fixture(scope="module")
def golden():
  config, variables = siglip_tower()
  params = variables["params"]
  vision, text = {"params": params["vision"]}, {"params": params["text"]}
  return config, vision, text, params


def test_patches_and_every_layer(golden):
  config, variables, _, params = golden
  data = arrays("a/02_vision_tower.npz")
  images = nhwc(data["pixel_values"])[:1]
  embed = {"params": params["vision"]["embed"]}
  x = jax.jit(PatchEmbed(config.vision).apply)(embed, images)
  assert_close(x, data["embeddings"])
  block = SiglipBlock(config.vision.heads, config.vision.hidden, config.vision.eps)
  layers = unstack(params["vision"])
  names = [f"layers_{i}" for i in range(config.vision.depth - 1)] + ["last_layer"]
  one = jax.jit(block.apply)
  for name, want in zip(names, data["layer_outputs"], strict=True):
    x, _ = one({"params": layers[name]}, x)
    assert_close(np.asarray(x)[0], want)
  scanned = jax.jit(VisionEncoder(config.vision).apply)(variables, nhwc(data["pixel_values"]))
  assert_close(scanned.reshape(data["quantizer_input"].shape), data["quantizer_input"], 1e-4)


@pytest.mark.parametrize("remat", ["none", "nothing_saveable"])
def test_both_towers_unquantised(golden, remat):
  config, vision_variables, text_variables, params = golden
  data = arrays("a/04_siglip.npz")
  vision = VisionEncoder(config.vision, remat=remat)

  @jax.jit
  def see(variables, images):
    x = vision.apply(variables, images)
    hidden = vision.apply(variables, x, method="last_hidden")
    return hidden, vision.apply(variables, x, method="pool")

  hidden, image = see(vision_variables, nhwc(data["pixel_values"]))
  assert_close(hidden[0], data["vision_last_hidden_0"], 1e-4)
  assert_close(image, data["vision_pooler"], 1e-4)
  encoder = TextEncoder(config.text, remat=remat)
  read = jax.jit(encoder.apply)
  hidden = jax.jit(functools.partial(encoder.apply, method="last_hidden"))
  assert_close(hidden(text_variables, data["input_ids"])[0], data["text_last_hidden_0"], 1e-4)
  text = read(text_variables, data["input_ids"])
  assert_close(text, data["text_pooler"], 1e-4)
  image, text = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
  logits = image @ text.T * np.exp(params["logit_scale"]) + params["logit_bias"]
  assert_close(logits, data["logits_per_image"], 1e-4)
  short = read(text_variables, data["short_input_ids"])
  assert_close(
    short / np.linalg.norm(short, axis=-1, keepdims=True), data["short_text_embeds"], 1e-4
  )


def _layer_norm(x, eps):
  return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)


def test_eps_is_that_of_the_config():
  config = TextConfig(vocab_size=11, length=4, width=8, hidden=12, depth=1, heads=2, eps=0.3)
  ids = jnp.asarray([[1, 5, 3]])
  encoder = TextEncoder(config)
  params = jax.device_get(nn.unbox(jax.jit(encoder.init)(jax.random.key(0), ids)))["params"]
  # With the block's output projections at zero, only embeddings and the final norm are left.
  for out in (params["layers"]["self_attn"]["out"], params["layers"]["mlp"]["fc2"]):
    out["kernel"] = np.zeros_like(out["kernel"])
  x = params["token"][np.asarray(ids)] + params["position"][:3]
  read = jax.jit(functools.partial(encoder.apply, method="last_hidden"))
  got = read({"params": params}, ids)
  assert_close(got, _layer_norm(np.asarray(x), 0.3))
  block = SiglipBlock(heads=2, hidden=12, eps=0.3)
  variables = jax.device_get(nn.unbox(jax.jit(block.init)(jax.random.key(0), x)))
  mlp = variables["params"]["mlp"]
  out = variables["params"]["self_attn"]["out"]
  out["kernel"] = np.zeros_like(out["kernel"])
  hidden = _layer_norm(np.asarray(x), 0.3) @ mlp["fc1"]["kernel"]
  want = x + nn.gelu(hidden, approximate=True) @ mlp["fc2"]["kernel"]
  assert_close(jax.jit(block.apply)(variables, x)[0], want)


def test_pixels_beyond_the_last_whole_patch_are_not_seen():
  config = VisionConfig(image_size=20, patch_size=6, width=8, hidden=16, depth=2, heads=2)
  encoder = VisionEncoder(config)
  images = np.random.default_rng(1).normal(size=(1, 20, 20, 3)).astype(np.float32)
  init = jax.jit(functools.partial(encoder.init, method=_both))
  variables, see = nn.unbox(init(jax.random.key(0), images)), jax.jit(encoder.apply)
  want = see(variables, images)
  assert want.shape == (1, 9, 8)
  edge = images.copy()
  edge[:, 18:], edge[:, :, 18:] = 7, 7
  got = see(variables, edge)
  np.testing.assert_array_equal(got, want)


def _both(encoder, images):
  return encoder.pool(encoder(images))


def test_wrong_sizes_are_refused():
  config = TextConfig(vocab_size=11, length=4, width=8, hidden=12, depth=1, heads=2)
  with pytest.raises(ValueError, match="5 ids"):
    jax.eval_shape(TextEncoder(config).init, jax.random.key(0), jnp.zeros((1, 5), jnp.int32))
  shallow = dataclasses.replace(VisionConfig(), depth=1)
  with pytest.raises(ValueError, match=r"vision\.depth"):
    jax.eval_shape(VisionEncoder(shallow).init, jax.random.key(0), jnp.zeros((1, 256, 256, 3)))
