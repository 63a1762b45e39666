"""Freezing, schedules and the optimizer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vilau_jax.train import optim


def settings(**changes):
  base = dict(
    peak_lr=1e-2, b1=0.9, b2=0.98, eps=1e-8, weight_decay=0.1, decay_1d=False, warmup=2,
    end_lr_fraction=0.1, clip=0.0, lr_multipliers={}, ema=0.0, muon=False,
  )  # fmt: skip
  return ConfigDict(base | changes)


PARAMS = {
  "llm": {"mlp": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((2,))}, "embed": jnp.ones((3, 2))},
  "depth": {"kernel": jnp.ones((2, 2))},
}


def test_split_and_merge_are_inverse():
  trained, frozen = optim.split(PARAMS, ("llm/mlp", "depth"))
  assert set(trained) == {"llm"} and set(trained["llm"]) == {"embed"}
  assert set(frozen) == {"llm", "depth"}
  jax.tree.map(np.testing.assert_array_equal, optim.merge(trained, frozen), PARAMS)
  assert optim.split(PARAMS, ())[1] == {}


@pytest.mark.parametrize(
  "prefixes, message", [(("lm",), "no parameter starts with 'lm'"), (("llm", "depth"), "every")]
)
def test_a_freeze_that_cannot_be_meant_is_refused(prefixes, message):
  with pytest.raises(ValueError, match=message):
    optim.split(PARAMS, prefixes)
  with pytest.raises(ValueError, match="llm/ml"):
    optim.optimizer(settings(lr_multipliers={"llm/ml": 2.0}), 10, PARAMS)


def test_schedule_rises_then_falls_to_the_stated_fraction():
  rate = optim.schedule(settings(), 10)
  got = [float(rate(i)) for i in (0, 1, 2, 6, 10)]
  np.testing.assert_allclose(got, [0, 5e-3, 1e-2, 5.5e-3, 1e-3], rtol=1e-6, atol=1e-9)
  with pytest.raises(ValueError, match="warmup 2 must be shorter"):
    optim.schedule(settings(), 2)


def test_update_is_adamw_with_multipliers_and_no_decay_of_biases():
  config = settings(lr_multipliers={"llm/embed": 0.5, "depth": 0.0}, warmup=0)
  tx = optim.optimizer(config, 10, PARAMS)
  grads = jax.tree.map(jnp.ones_like, PARAMS)
  updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
  np.testing.assert_allclose(updates["llm"]["mlp"]["kernel"], -1e-2 * 1.1, rtol=1e-5)
  np.testing.assert_allclose(updates["llm"]["mlp"]["bias"], -1e-2, rtol=1e-5)
  np.testing.assert_allclose(updates["llm"]["embed"], -0.5e-2 * 1.1, rtol=1e-5)
  np.testing.assert_array_equal(updates["depth"]["kernel"], 0)


def test_muon_gives_matrices_orthogonal_updates_of_adams_size_and_the_rest_to_adam():
  draw = iter(jax.random.split(jax.random.key(0), 3))
  layer = {
    "q_proj": {"kernel": jax.random.normal(next(draw), (2, 16, 2, 8))},
    "o_proj": {"kernel": jax.random.normal(next(draw), (2, 2, 8, 16))},
  }
  params = {"llm": {"layers": layer, "embed": jax.random.normal(next(draw), (5, 16))}}
  tx = optim.optimizer(settings(muon=True, warmup=0, weight_decay=0.0), 10, params)
  updates, _ = jax.jit(tx.update)(
    params, tx.init(params), params
  )  # gradients: the values themselves
  for name in ("q_proj", "o_proj"):
    for update, gradient in zip(
      updates["llm"]["layers"][name]["kernel"], params["llm"]["layers"][name]["kernel"]
    ):
      matrix = np.asarray(update).reshape(16, 16) / -(1e-2 * 0.2 * 4)  # sqrt(16) = 4
      singular = np.linalg.svd(matrix, compute_uv=False)
      assert 0.3 < singular.min() and singular.max() < 1.3  # five rounds come so near to 1
      assert np.sum(matrix * np.asarray(gradient).reshape(16, 16)) > 0
  adam = optim.optimizer(settings(warmup=0, weight_decay=0.0), 10, params)
  plain, _ = adam.update(params, adam.init(params), params)
  np.testing.assert_allclose(updates["llm"]["embed"], plain["llm"]["embed"], rtol=1e-5)


def test_moments_of_boxed_parameters_keep_their_axes():
  boxed = {"a": {"kernel": nn.LogicallyPartitioned(jnp.ones((2, 2)), ("embed", "mlp"))}}
  state = optim.optimizer(settings(clip=1.0, lr_multipliers={"a": 2.0}), 10).init(boxed)
  boxes = [
    x for x in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    if isinstance(x, nn.LogicallyPartitioned)
  ]  # fmt: skip
  assert [b.names for b in boxes] == [("embed", "mlp")] * 2


def test_average_follows_the_weights():
  config = settings(ema=0.9)
  start = optim.initial_average(config, {"w": jnp.zeros(2)})
  moved = optim.average(config, start, {"w": jnp.ones(2)})
  np.testing.assert_allclose(moved["ema"]["w"], 0.1, rtol=1e-6)
  assert optim.average(settings(), {}, {}) == {}
