"""The residual quantiser against the reference's recorded steps, and on meshes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_tower import arrays, assert_close

from vilau_jax import sharding
from vilau_jax.config import QuantizerConfig
from vilau_jax.models import quantizer

BASE = QuantizerConfig(depth=3, entries=20, width=12)
RUNS = {
  "sep_norestart": dataclasses.replace(BASE, shared=False, decay=0.9, restart=False),
  "shared_norestart": dataclasses.replace(BASE, decay=0.9, restart=False),
  "sep_restart": dataclasses.replace(BASE, shared=False, decay=0.6),
  "shared_restart_tiled": dataclasses.replace(BASE, entries=40, decay=0.6),
}


train_quantize = jax.jit(quantizer.train_quantize, static_argnums=0)
quantize = jax.jit(quantizer.quantize, static_argnums=0)


def _initial(data, config):
  tables = 1 if config.shared else config.depth
  codebook = jnp.stack([data[f"init_weight_{i}"][:-1] for i in range(tables)])
  size = jnp.zeros(codebook.shape[:2])
  return {"codebook": codebook, "cluster_size": size, "embed_sum": codebook}


def _recorded_draws(data, step, config):
  if not config.restart:
    return None
  draws = []
  for depth, order in enumerate(data[f"s{step}_perm"]):
    picks = order[: config.entries]
    noise = np.zeros((config.entries, 1), np.float32)
    if f"s{step}_noise" in data:
      noise = data[f"s{step}_noise"][depth][picks] * np.float32(0.01 / np.sqrt(config.width))
    draws.append(quantizer.Draws(jnp.asarray(picks), jnp.asarray(noise)))
  return draws


@pytest.mark.parametrize("run", RUNS)
def test_training_steps_equal_the_reference(run):
  config, data = RUNS[run], arrays(f"quantizer/11_ema_{run}.npz")
  state = _initial(data, config)
  for step in range(3):
    draws = _recorded_draws(data, step, config)
    got, state, _ = train_quantize(config, state, data[f"s{step}_x"], None, draws)
    np.testing.assert_array_equal(got.codes, data[f"s{step}_codes"])
    assert_close(got.z, data[f"s{step}_out"])
    assert_close(got.commitment, data[f"s{step}_loss"])
    for i in range(state["codebook"].shape[0]):
      assert_close(state["codebook"][i], data[f"s{step}_weight_{i}"][:-1])
      assert_close(state["cluster_size"][i], data[f"s{step}_cluster_size_ema_{i}"])
      assert_close(state["embed_sum"][i], data[f"s{step}_embed_ema_{i}"])
  got = quantize(config, state["codebook"], data["eval_x"])
  np.testing.assert_array_equal(got.codes, data["eval_codes"])
  assert_close(got.z, data["eval_out"])
  assert_close(got.commitment, data["eval_loss"])


def test_codes_coarser_than_latents():
  data = arrays("quantizer/11_rq_reshape.npz")
  config = QuantizerConfig(depth=2, entries=16, width=6, fold=2, shared=False)
  assert quantizer.code_width(config) == 24
  codebook = jnp.stack([data["weight_0"][:-1], data["weight_1"][:-1]])
  folded = quantizer.fold(data["x"], 2)
  np.testing.assert_array_equal(folded, data["code_shape_view"])
  got = quantize(config, codebook, folded)
  np.testing.assert_array_equal(got.codes, data["codes"])
  assert_close(quantizer.unfold(got.z, 2), data["out"])
  assert_close(got.commitment, data["loss"])
  assert_close(quantizer.unfold(quantizer.embed(codebook, got.codes), 2), data["embed_code"])


def _features(vectors=24, width=4, seed=0):
  shape = (2, vectors // 2, width)
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_one_update_a_step_by_hand():
  config = QuantizerConfig(
    depth=3, entries=6, width=4, decay=0.7, eps=0.1, restart=False, update="once_per_step"
  )
  state = quantizer.init_state(jax.random.key(1), config)
  x = _features()
  got, new, metrics = train_quantize(config, state, x, None)
  table, residual = np.asarray(state["codebook"][0], np.float64), np.asarray(x).reshape(-1, 4)
  count, total = np.zeros(6), np.zeros((6, 4))
  for depth in range(3):
    index = ((residual[:, None] - table) ** 2).sum(-1).argmin(-1)
    np.testing.assert_array_equal(np.asarray(got.codes).reshape(-1, 3)[:, depth], index)
    np.add.at(count, index, 1)
    np.add.at(total, index, residual)
    share = np.bincount(index, minlength=6) / index.size
    entropy = -sum(p * np.log(p) for p in share if p)
    assert_close(metrics["perplexity"][depth], np.exp(entropy))
    residual = residual - table[index]
    distance = np.sqrt((residual**2).sum(-1)).mean()
    assert_close(metrics["residual_norm"][depth], distance)
  size, embed_sum = 0.3 * count, 0.7 * table + 0.3 * total
  smoothed = size.sum() * (size + 0.1) / (size.sum() + 6 * 0.1)
  assert_close(new["cluster_size"][0], size)
  assert_close(new["embed_sum"][0], embed_sum)
  assert_close(new["codebook"][0], embed_sum / smoothed[:, None])


def test_separate_codebooks_do_not_care_when_they_are_updated():
  config = QuantizerConfig(depth=3, entries=8, width=4, shared=False)
  other = dataclasses.replace(config, update="once_per_step")
  state, key = quantizer.init_state(jax.random.key(1), config), jax.random.key(2)
  first = train_quantize(config, state, _features(), key)
  second = train_quantize(other, state, _features(), key)
  jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("update", ["sequential_per_depth", "once_per_step"])
def test_an_unused_code_becomes_a_vector_of_the_batch(update):
  config = QuantizerConfig(depth=1, entries=5, width=4, update=update)
  state = quantizer.init_state(jax.random.key(0), config)
  x = _features(16)
  _, new, metrics = train_quantize(config, state, x, jax.random.key(3))
  # Nothing has been counted before, so a code needs 100 hits to be kept: all restart.
  assert metrics["restarted"] == 5
  rows = {tuple(row) for row in np.asarray(new["embed_sum"][0])}
  assert len(rows) == 5 and rows <= {tuple(row) for row in np.asarray(x).reshape(-1, 4)}
  np.testing.assert_array_equal(new["cluster_size"], np.ones((1, 5)))


def test_fewer_vectors_than_codes_are_repeated_with_noise():
  config = QuantizerConfig(depth=1, entries=40, width=4)
  draws = quantizer.draw(config, jax.random.key(0), jnp.ones(12))
  assert len(set(draws.picks.tolist())) == 40 and draws.picks.max() < 48
  assert draws.noise.shape == (40, 4) and 0 <= draws.noise.min() and draws.noise.max() < 0.005
  assert not quantizer.draw(config, jax.random.key(0), jnp.ones(40)).noise.any()


def test_restarts_by_error_go_where_the_table_fails():
  """Extension. Eight of 4096 vectors carry all but 1e-6 of the error, so all eight are drawn; the
  chance that one is missed is below 1e-4."""
  config = QuantizerConfig(depth=1, entries=16, width=4, restart_draw="error")
  error = jnp.full(4096, 1e-6 / 4096).at[100:108].set(1.0)
  draws = quantizer.draw(config, jax.random.key(0), error)
  assert set(range(100, 108)) <= set(draws.picks.tolist()) and len(set(draws.picks.tolist())) == 16
  few = quantizer.draw(config, jax.random.key(0), jnp.ones(10))
  assert len(set(few.picks.tolist())) == 16 and few.noise.shape == (16, 4)


def test_unknown_update_or_draw():
  with pytest.raises(ValueError, match=r"quantizer\.update must be one of"):
    QuantizerConfig(update="sometimes")
  with pytest.raises(ValueError, match=r"quantizer\.restart_draw must be one of"):
    QuantizerConfig(restart_draw="worst")


def test_restart_threshold():
  config = QuantizerConfig(depth=1, entries=2, width=1, decay=0.5, restart_threshold=0.4)
  state = {
    "codebook": jnp.asarray([[[0.0], [10.0]]]),
    "cluster_size": jnp.asarray([[1.0, 0.5]]),
    "embed_sum": jnp.asarray([[[0.0], [5.0]]]),
  }
  x = jnp.asarray([[0.1], [0.2], [0.3]])
  kept, low = train_quantize(config, state, x, jax.random.key(0))[1:]
  assert low["restarted"] == 1  # 0.25 < 0.4, and 2.0 is not
  assert kept["cluster_size"].tolist() == [[2.0, 1.0]]
  lower = dataclasses.replace(config, restart_threshold=0.2)
  assert train_quantize(lower, state, x, jax.random.key(0))[2]["restarted"] == 0


def test_gradient_passes_straight_through_and_not_to_the_codebook():
  config = QuantizerConfig(depth=2, entries=8, width=4)
  state = quantizer.init_state(jax.random.key(1), config)
  x, weight = _features(), _features(seed=5)

  def loss(x, codebook):
    got = quantize(config, codebook, x)
    return jnp.sum(got.z * weight) + got.commitment

  dx, dcodebook = jax.jit(jax.grad(loss, argnums=(0, 1)))(x, state["codebook"])
  words = quantizer.lookup(state["codebook"], quantize(config, state["codebook"], x).codes)
  sums = jnp.cumsum(words, -2)
  assert_close(dx, weight + (2 * (x[..., None, :] - sums) / x.size).mean(-2))
  assert not dcodebook.any()


def test_ties_go_to_the_lowest_index():
  table = jnp.asarray([[1.0, 0.0], [1.0, 0.0], [5.0, 5.0]])
  assert quantizer.nearest(table, jnp.asarray([[1.0, 0.1]])).tolist() == [0]


def test_bfloat16_features_are_quantised_in_float32():
  config = QuantizerConfig(depth=2, entries=8, width=4)
  codebook = quantizer.init_state(jax.random.key(1), config)["codebook"]
  x = _features().astype(jnp.bfloat16)
  got = quantize(config, codebook, x)
  want = quantize(config, codebook, x.astype(jnp.float32))
  np.testing.assert_array_equal(got.codes, want.codes)
  assert got.z.dtype == jnp.bfloat16 and got.commitment.dtype == jnp.float32


@pytest.mark.mesh
@pytest.mark.parametrize(
  "mesh",
  [
    pytest.param(dict(data=8), marks=pytest.mark.slow),
    pytest.param(dict(fsdp=8), marks=pytest.mark.slow),
    dict(data=2, fsdp=2, tensor=2),
  ],
  ids=str,
)
@pytest.mark.parametrize("update", ["sequential_per_depth", "once_per_step"])
def test_a_step_is_the_same_on_every_mesh(mesh, update):
  config = QuantizerConfig(depth=3, entries=64, width=16, decay=0.6, update=update)
  state = quantizer.init_state(jax.random.key(1), config)
  x = _features(64, 16).reshape(16, 4, 16)
  run = jax.jit(lambda s, x, k: quantizer.train_quantize(config, s, x, k))
  want = run(state, x, jax.random.key(3))
  mesh = sharding.make_mesh(**({"data": 1} | mesh))
  with jax.set_mesh(mesh):
    placed = {
      name: jax.device_put(value, jax.NamedSharding(mesh, sharding.spec(*quantizer.AXES[name])))
      for name, value in state.items()
    }
    got = run(placed, jax.device_put(x, sharding.batch_sharding(mesh)), jax.random.key(3))
  np.testing.assert_array_equal(got[0].codes, want[0].codes)
  jax.tree.map(assert_close, got, want)


def test_restart_needs_a_key():
  config = QuantizerConfig(depth=1, entries=4, width=2)
  state = quantizer.init_state(jax.random.key(0), config)
  with pytest.raises(ValueError, match="needs a key"):
    quantizer.train_quantize(config, state, jnp.zeros((4, 2)), None)


def test_many_depths_in_a_loop_equal_unrolled_ones(monkeypatch):
  config = QuantizerConfig(depth=9, entries=20, width=12, restart_threshold=0.5)
  state = quantizer.init_state(jax.random.key(0), config)
  x = _features(24, 12)

  def step(x):
    got, moved, metrics = quantizer.train_quantize(config, state, x, jax.random.key(2))
    return got.commitment + jnp.sum(got.z**2), (got, moved, metrics)

  looped = jax.jit(jax.value_and_grad(step, has_aux=True))(x)
  monkeypatch.setattr(quantizer, "_UNROLLED", 9)
  unrolled = jax.jit(jax.value_and_grad(lambda x: step(x), has_aux=True))(x)
  np.testing.assert_array_equal(looped[0][1][0].codes, unrolled[0][1][0].codes)
  jax.tree.map(assert_close, looped, unrolled)
