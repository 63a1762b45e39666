"""The whole tower: golden numbers, sizes of the real models, training state."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_tower import (
  arrays,
  assert_close,
  nhwc,
  rqvae_tower,
  siglip_tower,
)
from small_towers import MINI, ODD, ODD_RQVAE, TINY, inputs, make

from vilau_jax import sharding
from vilau_jax.config import VilaUConfig
from vilau_jax.models import quantizer
from vilau_jax.models.tower import Tower, check_geometry, last_kernel


def _apply(tower, variables, *arrays, **static):
  return jax.jit(functools.partial(tower.apply, **static))(variables, *arrays)


def _all(tower, variables, *calls):
  """What several calls (method, *arrays) of a tower give, compiled as one program: the encoder, of
  which most of them begin with, is compiled once."""

  def run(variables, arrays):
    return [
      tower.apply(variables, *args, method=method) for (method, *_), args in zip(calls, arrays)
    ]

  return jax.jit(run)(variables, [call[1:] for call in calls])


def test_siglip_tower_encodes_and_decodes():
  config, variables = siglip_tower()
  tower, data = Tower(config), arrays("a/02_vision_tower.npz")
  images = nhwc(data["pixel_values"])
  want = arrays("a/03_decode.npz")
  z = want["z_q"].reshape(3, 16, -1)
  features, codes, out, drawn = _all(
    tower, variables,
    ("features", images), ("encode", images), (None, images), ("decode", z),
  )  # fmt: skip
  assert_close(features, data["quantizer_input"], 1e-4)
  np.testing.assert_array_equal(codes.reshape(data["codes"].shape), data["codes"])
  pool = data["pool_u8"].astype(np.float32) / 127.5 - 1
  codes = _apply(tower, variables, pool, method="encode")
  np.testing.assert_array_equal(codes.reshape(data["pool_codes"].shape), data["pool_codes"])

  assert_close(out["z"].reshape(data["z_q"].shape), data["z_q"], 1e-4)
  assert_close(out["z"][0], data["tower_features_0"], 1e-4)
  assert_close(out["commitment"], data["commitment_loss"], 1e-4)
  codebook = variables["quantizer"]["codebook"]
  assert_close(quantizer.embed(codebook, data["codes"]), data["embed_code"])
  assert_close(quantizer.lookup(codebook, data["codes"][0]), data["embed_code_with_depth_0"][0:4])
  for (image, row, column), sums in zip(data["positions"], data["partial_sums"]):
    words = quantizer.lookup(codebook, data["codes"][image, row, column])
    assert_close(jnp.cumsum(words, 0), sums)

  assert_close(drawn, nhwc(want["image"]), 1e-4)
  assert_close(out["image"][:3], drawn, 1e-4)
  params_only = {"params": variables["params"]}
  drawn = _apply(tower, params_only, z, method="decode")
  assert_close(drawn, nhwc(want["image"]), 1e-4)


def test_contrastive_route():
  config, variables = siglip_tower()
  tower, data = Tower(config), arrays("a/04_siglip.npz")
  images = nhwc(data["pixel_values"])

  @jax.jit
  def run(variables, images, text):
    alone = tower.apply({"params": variables["params"]}, text, method="text_embedding")
    # Without the quantiser the tower is SigLIP.
    bypassed = tower.apply(variables, images, text, quantize_weight=0.0)
    quantised = tower.apply(variables, images)
    words = quantizer.embed(variables["quantizer"]["codebook"], quantised["codes"])
    return alone, bypassed, quantised, tower.apply(variables, words, method="image_embedding")

  text, out, quantised, want = jax.device_get(run(variables, images, data["input_ids"]))
  assert_close(text, data["text_embeds"], 1e-4)
  assert_close(out["image_embedding"], data["image_embeds"], 1e-4)
  assert_close(out["text_embedding"], data["text_embeds"], 1e-4)
  scale, bias = np.exp(out["logit_scale"]), out["logit_bias"]
  logits = out["image_embedding"] @ out["text_embedding"].T * scale + bias
  assert_close(logits, data["logits_per_image"], 1e-4)
  assert_close(quantised["image_embedding"], want, 1e-4)
  assert np.abs(want - data["image_embeds"]).max() > 1e-3


def test_rqvae_tower():
  config, variables = rqvae_tower()
  tower, data = Tower(config), arrays("rqvae/rqvae_forward.npz")
  images, codes = nhwc(data["x"]), data["codes"]
  codes = codes.reshape(len(codes), -1, codes.shape[-1])
  encoded, out, *drawn = _all(
    tower, variables, ("encode", images), (None, images),
    ("decode_codes", codes[..., :3]), ("decode_codes", codes[..., :2]),
  )  # fmt: skip
  assert_close(out["features"], data["z_e"], 1e-4)
  np.testing.assert_array_equal(out["codes"].reshape(data["codes"].shape), data["codes"])
  assert_close(out["z"].reshape(data["z_q"].shape), data["z_q"], 1e-4)
  assert_close(out["commitment"], data["quant_loss"], 1e-4)
  assert_close(out["image"], nhwc(data["out"]), 1e-4)
  np.testing.assert_array_equal(encoded, codes)
  for got, name in zip(drawn, ("decode_code", "partial_add_1")):
    assert_close(got, nhwc(data[name]), 1e-4)
  assert out["image_embedding"] is out["text_embedding"] is out["logit_scale"] is None


def test_training_forward_of_the_rqvae():
  data = arrays("rqvae/stage1_step.npz")
  config, variables = rqvae_tower()
  images = nhwc(data["x"])
  out, updated = _apply(Tower(config), variables, images, train=True, mutable=["quantizer"])
  np.testing.assert_array_equal(out["codes"].reshape(data["codes"].shape), data["codes"])
  assert_close(out["image"], nhwc(data["recon"]), 1e-4)
  assert_close(out["commitment"], data["loss_latent"], 1e-4)
  state = updated["quantizer"]
  assert_close(state["codebook"][0], data["after_codebook"][:-1], 1e-4)
  assert_close(state["cluster_size"][0], data["after_cluster_size"], 1e-4)
  assert_close(state["embed_sum"][0], data["after_embed_ema"], 1e-4)


def _count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.mesh
@pytest.mark.parametrize(
  ("preset", "want", "codebook"),
  [
    (
      "vilau_7b_256",
      dict(vision=315_956_224, text=336_194_560, post_quant=262_400, decoder=42_449_795),
      16_777_216,
    ),
    (
      "vilau_7b_384",
      dict(vision=428_225_600, text=449_734_896, post_quant=295_168, decoder=42_449_795),
      18_874_368,
    ),
    (
      "rqvae_256",
      dict(encoder=29_298_176, quant=65_792, post_quant=65_792, decoder=42_449_795),
      4_194_304,
    ),
  ],
)
def test_sizes_of_the_real_towers(preset, want, codebook):
  config = VilaUConfig.from_preset(preset).tower
  images = jnp.zeros((1, config.image_size, config.image_size, 3))
  boxed = jax.eval_shape(lambda: Tower(config).init(jax.random.key(0), images))
  variables = nn.unbox(boxed)
  counts = {name: _count(part) for name, part in variables["params"].items()}
  if config.encoder == "siglip":
    want = want | dict(logit_scale=1, logit_bias=1)
    front = variables["params"]["vision"]
    used = _count(front["embed"]) + _count(front["layers"])
    assert used == {256: 290_762_752, 384: 397_745_440}[config.image_size]
  assert counts == want
  assert _count(variables["quantizer"]["codebook"]) == codebook
  # Nothing in a real tower is too small or odd for a mesh of this kind.
  sharding.state_shardings(boxed, sharding.make_mesh(data=1, fsdp=4, tensor=2))


@pytest.mark.parametrize("config", [ODD, ODD_RQVAE], ids=["siglip", "rqvae"])
def test_folded_codes_resized_latents_and_sub_pixels(config):
  tower, variables = make(config)
  images, _ = inputs(config)

  @jax.jit
  def run(variables, images):
    out = tower.apply(variables, images)
    drawn = tower.apply(variables, out["codes"], method="decode_codes")
    latents = quantizer.unfold(out["features"], 2)
    again = tower.apply(variables, images, method="features")
    return out, drawn, latents, quantizer.fold(latents, 2), again

  out, drawn, latents, folded, again = run(variables, images)
  grid, depth = config.grid, config.quantizer.depth
  width = config.quantizer.width * 4
  assert out["codes"].shape == (4, grid**2, depth) and out["z"].shape == (4, grid**2, width)
  assert grid == 2 and out["features"].shape == (4, 2, 2, width)
  assert out["image"].shape == images.shape
  assert_close(drawn, out["image"], 1e-4)
  # Position 0 covers the top left quarter of the latents.
  assert latents.shape == (4, 4, 4, config.quantizer.width)
  np.testing.assert_array_equal(folded, again)
  if config.encoder == "siglip":
    assert out["image_embedding"].shape == (4, 32) and out["logit_scale"] is None


def test_quickstart_tower_has_consistent_geometry():
  config = VilaUConfig.from_preset("quickstart", tower=dict(text=dict(vocab_size=100))).tower
  images, text = inputs(config, 2)
  out = jax.eval_shape(lambda: Tower(config).init_with_output(jax.random.key(0), images, text)[0])
  assert out["codes"].shape == (2, 25, 4) and out["image"].shape == (2, 60, 60, 3)


def test_gradients_reach_both_routes_and_pass_the_quantiser():
  tower, variables = make(MINI)
  images, text = inputs(MINI)

  def losses(params):
    out = tower.apply({**variables, "params": params}, images, text)
    return jnp.stack(
      [jnp.sum(out[part] ** 2 * jnp.arange(out[part].shape[-1])) for part, *_ in routes]
    )

  routes = (
    ("image", ("decoder", "post_quant"), ("text",)),
    ("image_embedding", (), ("text", "decoder")),
    ("text_embedding", ("text",), ("vision", "decoder")),
  )
  each = jax.device_get(jax.jit(jax.jacrev(losses))(variables["params"]))
  for i, (part, reached, missed) in enumerate(routes):
    grads = jax.tree.map(lambda g, i=i: g[i], each)
    used = {name for name, tree in grads.items() if any(g.any() for g in jax.tree.leaves(tree))}
    assert used >= set(reached) and not used & set(missed)
    if "vision" not in missed:
      assert grads["vision"]["embed"]["kernel"].any()
      assert grads["vision"]["layers"]["mlp"]["fc1"]["kernel"].any(axis=(1, 2)).all()
      last = grads["vision"]["last_layer"]["mlp"]["fc1"]["kernel"].any()
      assert last == (part == "image_embedding")


def test_warm_up_bypasses_the_quantiser_but_the_codebook_follows():
  tower, variables = make(MINI)
  images, _ = inputs(MINI)
  forward = jax.jit(
    lambda weight: tower.apply(
      variables,
      images,
      train=True,
      quantize_weight=weight,
      key=jax.random.key(5),
      mutable=["quantizer"],
    )
  )
  (warm, warm_state), (full, full_state) = forward(0.0), forward(1.0)
  np.testing.assert_array_equal(warm["z"].reshape(warm["features"].shape), warm["features"])
  words = quantizer.quantize(MINI.quantizer, variables["quantizer"]["codebook"], full["features"])
  assert full["codes"].shape == words.codes.reshape(4, 4, 3).shape
  assert np.abs(full["z"] - warm["z"]).max() > 1e-2
  jax.tree.map(np.testing.assert_array_equal, warm_state, full_state)
  assert (
    np.abs(full_state["quantizer"]["codebook"] - variables["quantizer"]["codebook"]).max() > 0.1
  )
  assert full["metrics"]["restarted"].shape == full["metrics"]["perplexity"].shape == (3,)


def test_init_does_not_train_and_evaluation_does_not_write():
  tower = Tower(MINI, initial_logit_scale=1.5, initial_logit_bias=-3.0)
  images, _ = inputs(MINI)
  init = functools.partial(tower.init, train=True)  # no text: its encoder is there all the same
  variables = nn.unbox(jax.jit(init)(jax.random.key(1), images, key=jax.random.key(0)))
  params, state = variables["params"], variables["quantizer"]
  assert "text" in params and not state["cluster_size"].any()
  np.testing.assert_array_equal(state["codebook"], state["embed_sum"])
  np.testing.assert_allclose(np.std(state["codebook"]), 1, atol=0.1)
  assert params["logit_scale"] == 1.5 and params["logit_bias"] == -3.0
  assert (Tower(MINI).initial_logit_scale, Tower(MINI).initial_logit_bias) == (np.log(10), -10)
  _, after = _apply(tower, variables, images, mutable=["quantizer"])
  jax.tree.map(np.testing.assert_array_equal, after["quantizer"], state)


def test_decoder_splits_before_its_last_convolution():
  tower, variables = make(MINI)

  @jax.jit
  def run(variables, images):
    out = tower.apply(variables, images)
    features = tower.apply(variables, out["z"], method="decoder_features")
    return out, features, tower.apply(variables, features, method="decoder_out")

  out, features, image = run(variables, inputs(MINI)[0])
  assert_close(features, out["decoder_features"])
  assert_close(image, out["image"])
  kernel = last_kernel(variables["params"])
  assert kernel.shape == (3, 3, features.shape[-1], 3 * 4**2)


def test_bfloat16_compute_stays_close():
  tower, variables = make(MINI)
  images, text = inputs(MINI)
  want = _apply(tower, variables, images, text, quantize_weight=0.0)
  got = _apply(Tower(MINI, dtype=jnp.bfloat16), variables, images, text, quantize_weight=0.0)
  assert got["z"].dtype == jnp.bfloat16 and got["image"].dtype == jnp.float32
  for name in ("image", "image_embedding", "text_embedding"):
    assert got[name].dtype == jnp.float32
    error = np.sqrt(np.mean((got[name] - want[name]) ** 2) / np.mean(want[name] ** 2))
    assert error < 0.05, name  # bfloat16 keeps 8 bits; rounding adds up over some 40 layers


def test_parts_that_do_not_fit_are_refused():
  def tower(**changes):
    return VilaUConfig.from_preset("tiny", tower=changes).tower

  for config, message in (
    (tower(quantizer=dict(width=16)), "quantizer.width 16"),
    (tower(quantizer=dict(fold=3)), "quantizer.fold 3"),
    (tower(decoder=dict(multipliers=(1, 2))), "draws 8 pixels"),
    (tower(latent_grid=3), "draws 24 pixels"),
    (
      VilaUConfig.from_preset("rqvae_256", tower=dict(quantizer=dict(fold=3))).tower,
      "quantizer.fold 3 does not divide the latent grid of side",
    ),
  ):
    with pytest.raises(ValueError, match=message):
      check_geometry(config)
  odd = tower(vision=dict(heads=5))
  with pytest.raises(ValueError, match="5 heads do not divide a width of 32"):
    jax.eval_shape(Tower(odd).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  with pytest.raises(ValueError, match=r"\[B, 32, 32, 3\]"):
    jax.eval_shape(Tower(TINY).init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
  rqvae, variables = make(ODD_RQVAE)

  def refuse(array, **static):
    jax.eval_shape(functools.partial(rqvae.apply, **static), variables, array)

  with pytest.raises(ValueError, match="no contrastive route"):
    refuse(jnp.zeros((1, 4, 20)), method="image_embedding")
  with pytest.raises(ValueError, match="no text encoder"):
    refuse(jnp.zeros((1, 4), jnp.int32), method="text_embedding")
  with pytest.raises(ValueError, match="needs a key"):
    refuse(inputs(ODD_RQVAE)[0], train=True, mutable=["quantizer"])
