"""One training step of each stage against the reference's losses, gradients and moved state."""

import json

import golden_lm
import golden_tower
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_tower import GOLDEN, arrays, assert_close, nhwc
from ml_collections import ConfigDict

from vilau_jax.config import VilaUConfig
from vilau_jax.models.perceptual import lpips_params
from vilau_jax.train import defaults
from vilau_jax.train.lm import LmStage
from vilau_jax.train.optim import State
from vilau_jax.train.tower import TowerStage


@pytest.fixture(scope="module")
def stage1():
  """The golden RQ-VAE with its discriminator and a narrow LPIPS: stage, state, frozen, images."""
  golden = arrays("rqvae/stage1_step.npz")
  config, tower = golden_tower.rqvae_tower()
  judge = golden_tower.discriminator_variables(golden_tower.sub(golden, "disc:"), 2)
  c = defaults.tower()
  c.optim.freeze = ()
  c.loss.update(dict(contrastive=0.0, lpips=1.0, lpips_weights="narrow", gan=0.75))
  c.loss.disc.update(dict(channels=8, start_step=0))
  stage = TowerStage(c, VilaUConfig(tower=config, llm=None, depth=None))
  params = {"tower": tower["params"], "discriminator": judge["params"]}
  collections = {"quantizer": tower["quantizer"], "discriminator": judge["batch_stats"]}
  opt = {
    "tower": stage._optimizer(params).init({"tower": tower["params"]}),
    "discriminator": stage._judge_optimizer().init(judge["params"]),
  }
  lpips = golden_tower.sub(arrays("rqvae/lpips_narrow.npz"), "param:")
  frozen = {"params": {}, "lpips": {"params": lpips_params(lpips, "narrow")}}
  state = State(jnp.zeros((), jnp.int32), params, opt, collections)
  return stage, state, frozen, jnp.asarray(nhwc(golden["x"])), golden


def test_stage1_generator_losses_weight_and_gradients(stage1):
  stage, state, frozen, images, golden = stage1
  run = jax.jit(lambda s, f, x: stage.gradients(s, f, x, {}, jax.random.key(0)))
  grads, drawn, moved, metrics = jax.device_get(run(state, frozen, images))
  assert_close(drawn, nhwc(golden["recon"]), 1e-4)
  for ours, theirs in (
    ("loss_pixel", "loss_recon"),
    ("loss_commitment", "loss_latent"),
    ("loss_lpips", "loss_pcpt"),
    ("loss_generator", "loss_gen"),
    ("gan_weight", "g_weight"),
  ):
    assert_close(metrics[ours], golden[theirs], 1e-4)
  total = metrics["loss"] + metrics["gan_weight"] * 0.75 * metrics["loss_generator"]
  assert_close(total, golden["loss_gen_total"], 1e-4)
  for name, path in (
    ("grad_conv_out", ("decoder", "conv_out")),
    ("grad_quant_conv", ("quant",)),
    ("grad_encoder_conv_in", ("encoder", "conv_in")),
  ):
    node = grads["tower"]
    for key in path:
      node = node[key]
    assert_close(node["kernel"], golden[name].transpose(2, 3, 1, 0), 1e-4)
  _every_norm(grads["tower"])
  state_after = golden_tower.sub(golden, "after_")
  assert_close(moved["quantizer"]["codebook"][0], state_after["codebook"][:-1])
  assert_close(moved["quantizer"]["cluster_size"][0], state_after["cluster_size"])
  assert_close(moved["quantizer"]["embed_sum"][0], state_after["embed_ema"])


def _every_norm(grads):
  """All gradients, through the same name mapping as the weights: norms do not depend on layout."""
  norms = json.loads((GOLDEN / "rqvae/meta.json").read_text())["stage1_grad_norms"]
  largest = max(norms.values())
  for part, ours in (("encoder.", "encoder"), ("decoder.", "decoder")):
    fake = {k: np.full((1,) * 4, v, np.float32) for k, v in norms.items() if k.endswith("weight")}
    fake = {k: v if "norm" not in k else v.reshape(1) for k, v in fake.items()}
    fake |= {k: np.full(1, v, np.float32) for k, v in norms.items() if k.endswith("bias")}
    want = golden_tower.cnn_params(fake, part)
    got = jax.tree.map(lambda g: np.linalg.norm(np.ravel(g)), grads[ours])
    jax.tree.map(
      lambda w, g: np.testing.assert_allclose(g, w.ravel()[0], rtol=1e-4, atol=1e-4 * largest),
      want, got,
    )  # fmt: skip


def test_stage1_discriminator_step(stage1):
  stage, state, _, images, golden = stage1

  def run(state, images):
    drawn = jnp.asarray(nhwc(golden["recon"]))
    _, stats, _ = stage._adversary(
      state, state.params["tower"],
      stage.tower.apply(
        {"params": state.params["tower"], "quantizer": state.collections["quantizer"]},
        images, train=False,
      )["decoder_features"],
      drawn, jnp.ones_like(drawn),
    )  # fmt: skip
    return stage._judge_step(state, images, drawn, stats)

  (_, _, stats), metrics = jax.jit(run)(state, images)
  assert_close(metrics["loss_discriminator"], golden["loss_disc"], 1e-4)
  assert_close(metrics["logits_fake"], golden["disc_logits_fake"].mean(), 1e-4)
  after = golden_tower.sub(golden, "disc_after:")
  for index, name in ((3, "norm_1"), (6, "norm_2")):
    assert_close(stats[name]["mean"], after[f"main.{index}.running_mean"], 1e-4)
    assert_close(stats[name]["var"], after[f"main.{index}.running_var"], 1e-4)


def test_before_its_start_the_discriminator_neither_moves_nor_counts(stage1):
  stage, state, frozen, images, _ = stage1
  late = ConfigDict(stage.config.to_dict())
  late.loss.disc.start_step = 5
  late = TowerStage(late, stage.model)
  batch = {"image": jnp.round((images + 1) * 127.5).astype(jnp.uint8)}
  moved, metrics = jax.jit(late.step)(state, frozen, batch, jax.random.key(0))
  for before, after in (
    (state.params["discriminator"], moved.params["discriminator"]),
    (state.opt["discriminator"], moved.opt["discriminator"]),
    (state.collections["discriminator"], moved.collections["discriminator"]),
  ):
    jax.tree.map(np.testing.assert_array_equal, before, after)
  assert metrics["gan_weight"] == 0 and metrics["loss_generator"] == 0


BATCHES = ["und", "gen", "multiturn", "twoimg", "mixed", "mixed_small", "vid8", "interleaved"]


@pytest.fixture(scope="module")
def lm_gradients():
  c = defaults.lm()
  c.data.row.targets = golden_lm.SLOTS
  c.loss.text_chunk, c.loss.code_chunk = 64, 48
  return jax.jit(LmStage(c, _without_dropout(golden_lm.config())).gradients)


@pytest.mark.parametrize("name", BATCHES)
def test_lm_losses_and_gradients_of_packed_batches(name, lm_gradients):
  golden = golden_lm.load(f"06_batch_{name}")
  batch = golden_lm.packed(golden)
  params = jax.tree.map(jnp.asarray, golden_lm.params())
  frozen = {"params": {}, "quantizer": {"codebook": jnp.asarray(golden_lm.codebook())}}
  grads, metrics = jax.device_get(
    lm_gradients(params, frozen, golden_lm.widen(batch), jax.random.key(0))
  )
  assert_close(metrics["loss_text"], golden["train_loss_text"], 1e-4)
  has_image = bool(batch["visual_target"].any())
  want_image = golden["train_loss_image"] if "train_loss_image" in golden else 0.0
  if has_image:
    assert_close(metrics["loss_image"], want_image, 1e-4)
  norms = golden_lm.grad_norms().get(name, {})  # the reference gives them for four
  largest = max([v[0] for v in norms.values()], default=0.0)
  table = golden_lm.names()
  for torch, (norm, *_) in norms.items():
    if torch in table:
      path, layer, _ = table[torch]
      node = grads
      for key in path:
        node = node[key]
      got = np.linalg.norm((node if layer is None else node[layer]).ravel())
      np.testing.assert_allclose(got, norm, rtol=1e-4, atol=1e-4 * largest, err_msg=torch)


def _without_dropout(config):
  values = config.to_dict()
  values["depth"]["dropout"] = 0.0
  return VilaUConfig.from_dict(values)
