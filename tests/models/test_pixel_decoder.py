"""Convolutional blocks, decoder and CNN encoder against the PyTorch reference."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from golden_tower import (
  arrays,
  assert_close,
  cnn_params,
  nhwc,
  random_variables,
  rqvae_tower,
  siglip_tower,
)

from vilau_jax.config import CnnConfig
from vilau_jax.layers.conv import AttnBlock, Conv, Downsample, ResBlock, Upsample
from vilau_jax.models.pixel_decoder import (
  CnnEncoder,
  Middle,
  PixelDecoder,
  depth_to_space,
  resize_latents,
)

SMALL = CnnConfig(
  channels=8, multipliers=(1, 2), blocks=1, latent_channels=6, resolution=16,
  attention_resolutions=(8,), groups=4,
)  # fmt: skip


def _image(decoder, z):
  return decoder.out(decoder(z))


def _shapes(config, z):
  init = functools.partial(PixelDecoder(config).init, method=_image)
  return nn.unbox(jax.eval_shape(init, jax.random.key(0), z))["params"]


def _params(config, z):
  return random_variables({"params": _shapes(config, z)})


@pytest.mark.parametrize("case", ["27_24", "9_8", "3_4", "4_9", "8_3"])
def test_resizing_latents_does_not_antialias(case):
  data = arrays("quantizer/14_resize_latents.npz")
  got = resize_latents(nhwc(data[f"x_{case}"]), int(case.split("_")[1]))
  assert_close(got, nhwc(data[f"y_{case}"]))


def test_upsampling_is_nearest_neighbour():
  data = arrays("quantizer/14_resize_latents.npz")
  identity = np.zeros((3, 3, 2, 2), np.float32)
  identity[1, 1] = np.eye(2)
  params = {"params": {"conv": {"kernel": identity, "bias": np.zeros(2)}}}
  got = Upsample().apply(params, nhwc(data["nearest_x"]))
  assert_close(got, nhwc(data["nearest_y"]))


@pytest.mark.parametrize("side", [(1, 1), (3, 4), (8, 5)])
def test_upsampling_skips_products_but_changes_nothing(side):
  """Against the nine taps over the doubled map, gradients too."""
  draw = np.random.default_rng(0)
  x, kernel = draw.normal(size=(2, *side, 6)), draw.normal(size=(3, 3, 6, 6))
  x, kernel, bias = (np.float32(a) for a in (x, kernel, draw.normal(size=6)))
  weight = np.float32(draw.normal(size=(2, 2 * side[0], 2 * side[1], 6)))

  def loss(module, x, kernel):
    y = module.apply({"params": {"conv": {"kernel": kernel, "bias": bias}}}, x)
    return jnp.sum(weight * jnp.tanh(y)), y

  class NineTaps(nn.Module):
    @nn.compact
    def __call__(self, x):
      return Conv(x.shape[-1], name="conv")(x.repeat(2, 1).repeat(2, 2))

  (_, want), wanted = jax.value_and_grad(loss, (1, 2), has_aux=True)(NineTaps(), x, kernel)
  (_, got), grads = jax.value_and_grad(loss, (1, 2), has_aux=True)(Upsample(), x, kernel)
  assert_close(got, want)
  for a, b in zip(grads, wanted, strict=True):
    assert_close(a, b)
  cost = [jax.jit(m.apply).lower({"params": {"conv": {"kernel": kernel, "bias": bias}}}, x)
          .compile().cost_analysis()["flops"] for m in (Upsample(), NineTaps())]  # fmt: skip
  assert side == (1, 1) or cost[0] < 0.8 * cost[1]


def test_a_doubled_map_takes_no_other_convolution():
  x, key = jnp.zeros((1, 4, 4, 2)), jax.random.key(0)
  with pytest.raises(ValueError, match="got 3, 2 and"):
    jax.eval_shape(Conv(2, stride=2, doubled=True).init, key, x)


def test_decoder_stage_by_stage():
  config, variables = siglip_tower()
  params, data = variables["params"], arrays("a/03_decode.npz")
  z = nhwc(data["post_quant_in_0"])[None]
  top = config.decoder.channels * config.decoder.multipliers[-1]

  @jax.jit
  def stages(params, z):
    z = Conv(48, size=1, padding=(0, 0)).apply({"params": params["post_quant"]}, z)
    first = Conv(top).apply({"params": params["decoder"]["conv_in"]}, z)
    middle = Middle(config.decoder).apply({"params": params["decoder"]["mid"]}, first)
    block = params["decoder"]["mid"]
    x = ResBlock(top, config.decoder.groups).apply({"params": block["block_1"]}, first)
    x = AttnBlock(config.decoder.groups).apply({"params": block["attn_1"]}, x)
    whole = PixelDecoder(config.decoder).apply({"params": params["decoder"]}, z, method=_image)
    return z, first, middle, x, whole

  z, first, middle, attended, image = stages(params, z)
  assert_close(z[0], nhwc(data["post_quant_out_0"]))
  assert_close(first[0], nhwc(data["conv_in_0"]))
  assert_close(middle[0], nhwc(data["mid_out_0"]))
  assert_close(attended[0], nhwc(data["mid_attn_0"]))
  assert_close(image, nhwc(data["image"])[:1], 1e-4)


def test_cnn_encoder():
  config, variables = rqvae_tower()
  data = arrays("rqvae/rqvae_forward.npz")
  encoder = {"params": variables["params"]["encoder"]}
  got = jax.jit(CnnEncoder(config.cnn).apply)(encoder, nhwc(data["x"]))
  assert_close(got, nhwc(data["encoder_out"]), 1e-4)


def _numpy_res_block(params, x, groups):
  def norm(name, x):
    p = params[name]
    y = x.reshape(*x.shape[:3], groups, -1)
    y = (y - y.mean((1, 2, 4), keepdims=True)) / np.sqrt(y.var((1, 2, 4), keepdims=True) + 1e-6)
    y = y.reshape(x.shape) * p["scale"] + p["bias"]
    return y / (1 + np.exp(-y))

  def conv(name, x):
    kernel = np.asarray(params[name]["kernel"], np.float64)
    side = kernel.shape[0] // 2
    padded = np.pad(x, ((0, 0), (side, side), (side, side), (0, 0)))
    h, w = x.shape[1:3]
    windows = [
      padded[:, i : i + h, j : j + w] @ kernel[i, j]
      for i in range(kernel.shape[0])
      for j in range(kernel.shape[1])
    ]
    return sum(windows) + np.asarray(params[name]["bias"])

  y = conv("conv2", norm("norm2", conv("conv1", norm("norm1", x))))
  return y + (conv("nin_shortcut", x) if "nin_shortcut" in params else x)


@pytest.mark.parametrize(("features", "groups"), [(8, 4), (8, 2), (12, 4)])
def test_residual_block_by_hand(features, groups):
  x = np.random.default_rng(0).normal(1, 2, (2, 5, 3, 8)).astype(np.float32)
  block = ResBlock(features, groups)
  variables = nn.unbox(jax.jit(block.init)(jax.random.key(1), x))
  want = _numpy_res_block(variables["params"], np.asarray(x, np.float64), groups)
  assert_close(jax.jit(block.apply)(variables, x), want)


def test_downsampling_pads_at_the_end():
  x = jnp.arange(16.0).reshape(1, 4, 4, 1)
  kernel = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1.0)  # looks at its first corner
  got = Downsample().apply({"params": {"conv": {"kernel": kernel, "bias": jnp.zeros(1)}}}, x)
  np.testing.assert_array_equal(got[0, ..., 0], x[0, ::2, ::2, 0])


def test_default_initialisation_is_uniform_in_the_fan_in():
  conv = Conv(64, size=3)
  params = nn.unbox(conv.init(jax.random.key(0), jnp.zeros((1, 4, 4, 16))))["params"]
  bound = 1 / np.sqrt(16 * 9)
  for leaf in (params["kernel"], params["bias"]):
    assert np.abs(leaf).max() <= bound
    np.testing.assert_allclose(np.std(leaf), bound / np.sqrt(3), rtol=0.15)


def test_attention_sits_where_the_configured_resolution_says():
  z = jnp.zeros((1, 3, 3, 6))  # not the 8 x 8 that the resolution implies
  names = set(_shapes(SMALL, z)["up_1"])
  assert names == {"block_0", "block_1", "attn_0", "attn_1", "upsample"}
  high = dataclasses.replace(SMALL, attention_resolutions=(16,), blocks=0)
  params = _shapes(high, z)
  assert set(params["up_1"]) == {"block_0", "upsample"}
  assert set(params["up_0"]) == {"block_0", "attn_0"}
  shuffled = dataclasses.replace(SMALL, resolution=16, pixel_shuffle=2)  # levels of 8 and 4
  params = _shapes(shuffled, z)
  assert "attn_0" in params["up_0"] and "attn_0" not in params["up_1"]


def test_pixel_shuffle_writes_blocks_of_pixels():
  config = dataclasses.replace(SMALL, resolution=48, pixel_shuffle=3)
  z = jax.random.normal(jax.random.key(1), (2, 8, 8, 6))
  variables = _params(config, z)
  assert variables["params"]["conv_out"]["kernel"].shape == (3, 3, 8, 27)

  @jax.jit
  def run(variables, z):
    features = PixelDecoder(config).apply(variables, z)
    image = PixelDecoder(config).apply(variables, features, method="out")
    raw = Conv(27).apply({"params": variables["params"]["conv_out"]}, features)
    return features, image, raw

  features, image, raw = run(variables, z)
  assert features.shape == (2, 16, 16, 8) and image.shape == (2, 48, 48, 3)
  assert_close(image[1, 3 * 5 + 2, 3 * 7 + 1, 0], raw[1, 5, 7, (2 * 3 + 1) * 3])
  np.testing.assert_array_equal(depth_to_space(raw, 1), raw)


def test_remat_changes_nothing():
  z = jax.random.normal(jax.random.key(1), (1, 8, 8, 6))
  variables = _params(SMALL, z)

  def loss(variables, remat):
    return jnp.sum(PixelDecoder(SMALL, remat=remat).apply(variables, z, method=_image) ** 2)

  gradient = jax.jit(jax.grad(loss), static_argnums=1)
  want = traverse_util.flatten_dict(gradient(variables, "none"))
  for key, got in traverse_util.flatten_dict(gradient(variables, "nothing_saveable")).items():
    if key[-2:] == ("k", "bias"):  # softmax ignores what all keys share: zero but for rounding
      for noise in (got, want[key]):
        assert jnp.abs(noise).max() < 1e-5 * jnp.abs(want[*key[:-1], "kernel"]).max()
    else:
      assert_close(got, want[key])
  text = jax.make_jaxpr(jax.grad(loss), static_argnums=1)(variables, "nothing_saveable")
  assert "remat" in str(text)


def test_encoder_without_pixel_shuffle_only():
  config = dataclasses.replace(SMALL, pixel_shuffle=2)
  with pytest.raises(ValueError, match="pixel_shuffle"):
    jax.eval_shape(CnnEncoder(config).init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))


def test_golden_names_map_onto_the_whole_tree():
  config, variables = siglip_tower()
  want = _shapes(config.decoder, jnp.zeros((1, 4, 4, 48)))
  got = variables["params"]["decoder"]
  assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, want)
  assert cnn_params({}, "decoder.") == {}
