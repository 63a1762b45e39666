"""Losses, gradients and the updated state are the same on every mesh."""

import experiments
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from golden_tower import assert_close

from vilau_jax import sharding
from vilau_jax.train.lm import LmStage
from vilau_jax.train.tower import TowerStage

MESHES = [
  dict(data=8),
  dict(data=2, fsdp=2, tensor=2),
  dict(data=1, fsdp=2, tensor=2, context=2),
]


def run_on(mesh, stage, batch, steps=2):
  """State and metrics after `steps`, and the gradients of the first step's loss."""
  key = jax.random.key(0)
  with jax.set_mesh(mesh):
    placed = sharding.state_shardings(jax.eval_shape(stage.init, key), mesh)
    state, frozen = jax.jit(lambda k: nn.unbox(stage.init(k)), out_shardings=placed)(key)
    batch = sharding.global_batch(batch, mesh)
    if isinstance(stage, TowerStage):
      images = jnp.asarray(batch["image"], jnp.float32) / 127.5 - 1
      grads = jax.jit(lambda *a: stage.gradients(*a)[0])(state, frozen, images, batch, key)
    else:
      grads = jax.jit(lambda *a: stage.gradients(*a)[0])(state.params, frozen, batch, key)
    step = jax.jit(stage.step, out_shardings=(placed[0], None))
    for _ in range(steps):
      state, metrics = step(state, frozen, batch, key)
    return jax.device_get((grads, state, metrics))


def assert_trees_close(got, want, tolerance=1e-5):
  """As for arrays, with atol relative to the largest value of the tree: a gradient that is zero by
  symmetry (the key bias of an attention) is nothing but rounding."""
  scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(want) if leaf.size)
  jax.tree.map(
    lambda g, w: np.testing.assert_allclose(g, w, rtol=tolerance, atol=tolerance * scale), got, want
  )


def moments_of(state):
  """Adam's moments, of all optimizers."""
  adams = [
    x for x in jax.tree.leaves(state.opt, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))
    if isinstance(x, optax.ScaleByAdamState)
  ]  # fmt: skip
  return {name: [getattr(a, name) for a in adams] for name in ("mu", "nu")}


def tower_stage():
  c, model = experiments.tower()
  c.loss.update(dict(l1=0.2, equal_captions=True, gan=0.5))
  c.loss.disc.update(dict(channels=8, start_step=0))
  # A step of gradient descent: Adam's division would turn rounding into full-size steps where a
  # gradient is zero but for rounding.
  c.optim.update(dict(eps=1e-3))
  return TowerStage(c, model), experiments.tower_batch(model)


def lm_stage(accumulate=1):
  c, model = experiments.lm(remat="nothing_saveable", visual_positions="next_cell")
  c.optim.update(dict(eps=1e-3, accumulate=accumulate))
  return LmStage(c, model), experiments.lm_batch(model, c.data.row)


@pytest.fixture(scope="module")
def alone():
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  return {make: run_on(mesh, *make()) for make in (tower_stage, lm_stage)}


@pytest.mark.parametrize("make", [tower_stage, lm_stage])
@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_eight_devices_agree_with_one(alone, make, shape):
  grads, state, metrics = run_on(sharding.make_mesh(**shape), *make())
  want_grads, want_state, want_metrics = alone[make]
  assert_trees_close(grads, want_grads)
  assert_trees_close(state.params, want_state.params)
  assert_trees_close(state.collections, want_state.collections)
  want_moments, moments = moments_of(want_state), moments_of(state)
  for name in ("mu", "nu"):
    assert_trees_close(moments[name], want_moments[name])
  jax.tree.map(assert_close, metrics, want_metrics)


def test_accumulated_pieces_add_up_to_the_batch():
  c, model = experiments.lm(depth=dict(dropout=0.0))
  batch = experiments.lm_batch(model, c.data.row)
  key = jax.random.key(0)
  stage = LmStage(c, model)
  state, frozen = nn.unbox(stage.init(key))
  want = jax.jit(stage.gradients)(state.params, frozen, batch, key)
  c.optim.accumulate = 4
  got = jax.jit(LmStage(c, model).gradients)(state.params, frozen, batch, key)
  assert_trees_close(got[0], want[0])
  jax.tree.map(assert_close, got[1], want[1])


def test_frozen_parts_have_no_moments_and_do_not_move():
  c, model = experiments.lm()
  c.optim.freeze = ("llm", "projector")
  stage = LmStage(c, model)
  state, frozen = nn.unbox(stage.init(jax.random.key(0)))
  assert set(state.params) == {"depth"} and set(frozen["params"]) == {"llm", "projector"}
  trained = sum(x.size for x in jax.tree.leaves(state.params))
  assert sum(x.size for x in jax.tree.leaves(state.opt) if x.ndim) == 2 * trained
  batch = experiments.lm_batch(model, c.data.row)
  moved, metrics = jax.jit(stage.step)(state, frozen, batch, jax.random.key(0))
  assert np.isfinite(metrics["loss"]) and set(moved.params) == {"depth"}


def test_dropout_changes_with_the_step_and_only_with_it():
  c, model = experiments.lm()
  stage = LmStage(c, model)
  state, frozen = nn.unbox(stage.init(jax.random.key(0)))
  batch, key = experiments.lm_batch(model, c.data.row), jax.random.key(0)
  step = jax.jit(lambda s: stage.step(s, frozen, batch, key)[1]["loss_image"])
  assert step(state) == step(state)
  assert step(state) != step(state.replace(step=state.step + 1))


def test_without_quantiser_the_tower_sees_its_own_features():
  c, model = experiments.tower()
  c.loss.quantizer_start = 2
  stage = TowerStage(c, model)
  state, frozen = nn.unbox(stage.init(jax.random.key(0)))
  batch = experiments.tower_batch(model)
  step = jax.jit(lambda s: stage.step(s, frozen, batch, jax.random.key(0)))
  bypassed, early = step(state)
  _, late = step(state.replace(step=jnp.int32(2)))
  assert early["loss_pixel"] != late["loss_pixel"]
  assert early["loss_commitment"] == late["loss_commitment"]
  before, after = state.collections["quantizer"], bypassed.collections["quantizer"]
  assert np.abs(after["codebook"] - before["codebook"]).max() > 0
