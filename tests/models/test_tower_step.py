"""A training step of the tower on meshes of eight devices, and with recomputation."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_tower import assert_close
from small_towers import MINI, ODD_RQVAE, SEPARATE, boxed_variables, inputs, make

from vilau_jax import sharding
from vilau_jax.models.tower import Tower


def _step(config, remat):
  tower = Tower(config, remat=remat)

  def loss(params, state, images, text, key):
    out, updated = tower.apply(
      {"params": params, "quantizer": state}, images, text, train=True, key=key,
      mutable=["quantizer"],
    )  # fmt: skip
    total = jnp.mean((out["image"] - images) ** 2) + 0.25 * out["commitment"]
    if text is not None:
      logits = out["image_embedding"] @ out["text_embedding"].T * jnp.exp(out["logit_scale"])
      sign = 2 * jnp.eye(len(images)) - 1
      total -= nn.log_sigmoid(sign * (logits + out["logit_bias"])).sum(-1).mean()
    return total, (out["image"], out["codes"], updated["quantizer"])

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.mesh
@pytest.mark.parametrize(
  ("name", "mesh", "remat"),
  [
    ("siglip", dict(data=2, fsdp=2, tensor=2), "none"),
    pytest.param("siglip", dict(fsdp=8), "nothing_saveable", marks=pytest.mark.slow),
    pytest.param("rqvae", dict(data=4, tensor=2), "dots_saveable", marks=pytest.mark.slow),
  ],
  ids=str,
)
def test_a_training_step_is_the_same_on_every_mesh(name, mesh, remat):
  config = {"siglip": MINI, "rqvae": dataclasses.replace(ODD_RQVAE, quantizer=SEPARATE)}[name]
  images, text = inputs(config, batch=8, seed=3)
  boxed, variables = boxed_variables(config), make(config)[1]
  args = (images, text, jax.random.key(7))
  want = _step(config, "none")(variables["params"], variables["quantizer"], *args)
  mesh = sharding.make_mesh(**mesh)
  with jax.set_mesh(mesh):
    placed = jax.device_put(variables, sharding.state_shardings(boxed, mesh))
    rows = [
      None if x is None else jax.device_put(x, sharding.batch_sharding(mesh)) for x in args[:2]
    ]
    got = _step(config, remat)(placed["params"], placed["quantizer"], *rows, args[2])
  (got_loss, got_rest), got_grads = got
  (want_loss, want_rest), want_grads = want
  np.testing.assert_array_equal(got_rest[1], want_rest[1])
  jax.tree.map(assert_close, (got_loss, got_rest), (want_loss, want_rest))
  jax.tree_util.tree_map_with_path(_same_gradient, got_grads, want_grads)


def _same_gradient(path, got, want):
  names = [key.key for key in path]
  if names[-2:] in (["key", "bias"], ["k", "bias"]):
    # Softmax does not see a constant added to all scores: zero, but for rounding.
    assert max(np.abs(got).max(), np.abs(want).max()) < 1e-7
  else:
    assert_close(got, want)
