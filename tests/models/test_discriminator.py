"""PatchGAN against RQ-VAE's discriminators, running statistics included."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_tower import GOLDEN, arrays, assert_close, discriminator_variables, nhwc, sub

from vilau_jax import sharding
from vilau_jax.models.discriminator import PatchDiscriminator

RUNS = {
  "n2_batchnorm": PatchDiscriminator(channels=8, layers=2),
  "n3_batchnorm": PatchDiscriminator(channels=8, layers=3),
  "n2_actnorm": PatchDiscriminator(channels=8, layers=2, norm="actnorm"),
}


def _golden(run):
  net, data = RUNS[run], arrays(f"rqvae/disc_{run}.npz")
  variables = discriminator_variables(sub(data, "before:"), net.layers)
  images = {name: nhwc(data[f"{name}_input"]) for name in ("fake", "real")}
  return net, data, variables, images


def _train(net, params, stats, images):
  variables = {"params": params, "batch_stats": stats}
  logits, updated = net.apply(variables, images, True, mutable=["batch_stats"])
  return logits, updated["batch_stats"]


_train_once = jax.jit(_train, static_argnums=0)
_evaluate = jax.jit(
  lambda net, variables, images: net.apply(variables, images, False), static_argnums=0
)


@pytest.mark.parametrize("run", RUNS)
def test_logits_and_running_statistics(run):
  net, data, variables, images = _golden(run)
  params, stats = variables["params"], variables["batch_stats"]
  assert_close(_evaluate(net, variables, images["fake"]), data["eval_before_fake"][:, 0], 1e-4)
  for name in ("fake", "real"):  # the order of the reference
    logits, stats = _train_once(net, params, stats, images[name])
    assert_close(logits, data[f"train_{name}"][:, 0], 1e-4)
  after = discriminator_variables(sub(data, "after:"), net.layers)["batch_stats"]
  jax.tree.map(assert_close, stats, after)
  variables = {"params": params, "batch_stats": stats}
  assert_close(_evaluate(net, variables, images["fake"]), data["eval_after_fake"][:, 0], 1e-4)


@pytest.mark.parametrize("run", RUNS)
def test_gradients_of_the_hinge_loss(run):
  net, data, variables, images = _golden(run)
  params, start = variables["params"], variables["batch_stats"]
  if net.norm == "actnorm":  # the recorded gradients are those after the first batch
    _, start = _train_once(net, params, start, images["fake"])

  def hinge(params):
    fake, stats = _train(net, params, start, images["fake"])
    real, _ = _train(net, params, stats, images["real"])
    return (nn.relu(1 - real).mean() + nn.relu(1 + fake).mean()) / 2

  loss, grads = jax.jit(jax.value_and_grad(hinge))(params)
  assert_close(loss, data["hinge_d_loss"], 1e-4)
  meta = json.loads((GOLDEN / "rqvae/meta.json").read_text())["disc_hinge_grad_norms"][run]
  want = {}
  for name, value in meta.items():
    _, index, leaf = name.split(".")
    number = (int(index) + 1) // 3
    conv = int(index) % 3 != 0 or int(index) == 0
    last = number > net.layers
    leaf = {"weight": "kernel" if conv else "scale", "bias": "bias"}.get(leaf, f"{leaf}_offset")
    module = "conv_out" if last else f"{'conv' if conv else 'norm'}_{number}"
    want.setdefault(module, {})[leaf] = value
  got = jax.tree.map(lambda g: np.linalg.norm(np.ravel(g)), grads)
  jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-6), got, want)


def test_size_of_the_published_discriminator():
  net = PatchDiscriminator()
  images = jnp.zeros((1, 256, 256, 3))
  variables = jax.eval_shape(
    lambda: nn.unbox(net.init(jax.random.key(0), images, train=True))["params"]
  )
  assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 663_361
  logits = jax.eval_shape(lambda v: net.init_with_output(jax.random.key(0), v, train=True), images)
  assert logits[0].shape == (1, 62, 62)


def _noise(batch, side):
  return np.random.default_rng(0).normal(size=(batch, side, side, 3)).astype(np.float32)


def test_init_leaves_the_statistics_alone():
  images = _noise(2, 32)

  def init(net):
    start = jax.jit(lambda key, images: net.init(key, images, True))
    return nn.unbox(start(jax.random.key(1), images))["batch_stats"]

  stats = init(RUNS["n2_batchnorm"])
  assert not stats["norm_1"]["mean"].any() and (stats["norm_1"]["var"] == 1).all()
  stats = init(RUNS["n2_actnorm"])
  assert not stats["norm_1"]["initialized"]


@pytest.mark.mesh
@pytest.mark.parametrize("norm", ["batch", "actnorm"])
def test_statistics_are_global_on_a_mesh(norm):
  net = PatchDiscriminator(channels=8, layers=1, norm=norm)
  # Rows differ, so local means would too.
  images = _noise(8, 16) * np.arange(1, 9, dtype=np.float32)[:, None, None, None]
  boxed = jax.jit(lambda key, images: net.init(key, images, True))(jax.random.key(1), images)
  variables = nn.unbox(boxed)
  run = jax.jit(lambda v, x: net.apply(v, x, True, mutable=["batch_stats"]))
  want = run(variables, images)
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  with jax.set_mesh(mesh):
    placed = jax.device_put(variables, sharding.state_shardings(boxed, mesh))
    got = run(placed, jax.device_put(images, sharding.batch_sharding(mesh)))
  jax.tree.map(assert_close, got, want)


def test_unknown_norm():
  with pytest.raises(ValueError, match="'layer'"):
    net = PatchDiscriminator(norm="layer")
    jax.eval_shape(lambda x: net.init(jax.random.key(0), x, True), jnp.zeros((1, 32, 32, 3)))
