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
from vilau_jax.train.step import check_rows
from vilau_jax.train.tower import TowerStage


def run_on(mesh, stage, batch, steps=2):
  """States after each step, and the last metrics."""
  key = jax.random.key(0)
  with jax.set_mesh(mesh):
    placed = sharding.state_shardings(jax.eval_shape(stage.init, key), mesh)
    state, frozen = jax.jit(lambda k: nn.unbox(stage.init(k)), out_shardings=placed)(key)
    batch = sharding.global_batch(batch, mesh)
    step = jax.jit(stage.step, out_shardings=(placed[0], None))
    states = []
    for _ in range(steps):
      state, metrics = step(state, frozen, batch, key)
      states.append(jax.device_get(state))
    return states, jax.device_get(metrics)


def begin(stage):
  """State and frozen part; op by op, an initialisation compiles hundreds of programs."""
  return jax.jit(lambda key: nn.unbox(stage.init(key)))(jax.random.key(0))


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


# Adam's division would turn rounding into full-size steps where a gradient is nothing but rounding;
# a large eps makes it a step of gradient descent there.
EPS = 1e-3


def tower_stage():
  c, model = experiments.tower()
  c.loss.update(dict(l1=0.2, equal_captions=True, wrong_captions=0.7, gan=0.5))
  c.loss.disc.update(dict(channels=8, start_step=0))
  c.optim.update(dict(eps=EPS, ema=0.9))
  return TowerStage(c, model), experiments.tower_batch(model)


def lm_stage():
  c, model = experiments.lm(remat="nothing_saveable", visual_positions="next_cell")
  c.optim.update(dict(eps=EPS, ema=0.9))
  c.loss.head_block = 8
  return LmStage(c, model), experiments.lm_batch(model, c.data.row)


MIXED = dict(data=2, fsdp=2, tensor=2)


@pytest.mark.slow
@pytest.mark.parametrize(
  "make, shape",
  [
    (tower_stage, MIXED),
    (lm_stage, dict(data=1, fsdp=8)),
    (lm_stage, MIXED),
    (lm_stage, dict(data=2, tensor=2, context=2)),
  ],
  ids=lambda x: x.__name__ if callable(x) else ",".join(f"{k}={v}" for k, v in x.items()),
)
def test_eight_devices_agree_with_one(make, shape):
  """Losses, gradients (Adam's first moment after a step is the gradient) and the updated state."""
  want_states, want_metrics = run_on(sharding.make_mesh(devices=jax.devices()[:1]), *make())
  states, metrics = run_on(sharding.make_mesh(**shape), *make())
  for got, want in zip(states, want_states):
    assert_trees_close(got.params, want.params)
    assert_trees_close(got.collections, want.collections)
    moments, want_moments = moments_of(got), moments_of(want)
    for name in ("mu", "nu"):
      assert_trees_close(moments[name], want_moments[name])
  for name, value in want_metrics.items():
    if not name.startswith("logits"):  # means over both signs, mostly cancelled
      assert_close(metrics[name], value)


@pytest.mark.slow
def test_accumulated_pieces_add_up_to_the_batch():
  c, model = experiments.lm(depth=dict(dropout=0.0))
  batch = experiments.lm_batch(model, c.data.row)
  key = jax.random.key(0)
  stage = LmStage(c, model)
  state, frozen = begin(stage)
  want = jax.jit(stage.gradients)(state.params, frozen, batch, key)
  c.optim.accumulate = 4
  got = jax.jit(LmStage(c, model).gradients)(state.params, frozen, batch, key)
  assert_trees_close(got[0], want[0])
  jax.tree.map(assert_close, got[1], want[1])


def test_frozen_parts_have_no_moments_and_do_not_move():
  c, model = experiments.lm()
  c.optim.freeze = ("llm", "projector")
  stage = LmStage(c, model)
  state, frozen = begin(stage)
  assert set(state.params) == {"depth"} and set(frozen["params"]) == {"llm", "projector"}
  trained = sum(x.size for x in jax.tree.leaves(state.params))
  assert sum(x.size for x in jax.tree.leaves(state.opt) if x.ndim) == 2 * trained
  batch = experiments.lm_batch(model, c.data.row)
  moved, metrics = jax.jit(stage.step)(state, frozen, batch, jax.random.key(0))
  assert np.isfinite(metrics["loss"]) and set(moved.params) == {"depth"}


def test_dropout_changes_with_the_step_and_only_with_it():
  c, model = experiments.lm()
  stage = LmStage(c, model)
  state, frozen = begin(stage)
  batch, key = experiments.lm_batch(model, c.data.row), jax.random.key(0)
  step = jax.jit(lambda s: stage.step(s, frozen, batch, key)[1]["loss_image"])
  assert step(state) == step(state)
  assert step(state) != step(state.replace(step=state.step + 1))


@pytest.mark.slow
def test_without_quantiser_the_tower_sees_its_own_features():
  c, model = experiments.tower()
  c.loss.quantizer_start = 2
  stage = TowerStage(c, model)
  state, frozen = begin(stage)
  batch = experiments.tower_batch(model)
  step = jax.jit(lambda s: stage.step(s, frozen, batch, jax.random.key(0)))
  bypassed, early = step(state)
  _, second = step(state.replace(step=jnp.int32(1)))
  _, late = step(state.replace(step=jnp.int32(2)))
  assert early["loss_pixel"] == second["loss_pixel"] != late["loss_pixel"]
  before, after = state.collections["quantizer"], bypassed.collections["quantizer"]
  assert np.abs(after["codebook"] - before["codebook"]).max() > 0


def test_rows_that_a_mesh_does_not_divide_are_refused():
  c, _ = experiments.lm()
  mesh = sharding.make_mesh(data=8)
  check_rows(c, mesh)
  c.optim.accumulate = 4  # two rows a piece: all eight devices would compute both
  with pytest.raises(ValueError, match=r"batch_size 8 is not a multiple .*accumulate = 8 x 4"):
    check_rows(c, mesh)
  c.batch_size = 32
  check_rows(c, mesh)
