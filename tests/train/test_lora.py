"""Adapters: what they leave alone, what merging makes of them, and a run with them."""

import experiments
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from vilau_jax import lora
from vilau_jax.train import optim
from vilau_jax.train.lm import LmStage
from vilau_jax.train.tower import TowerStage

TARGETS = ("llm", "projector", "depth")


def lm_stage(base="", targets=TARGETS, **model):
  c, model = experiments.lm(depth=dict(dropout=0.0), **model)
  c.lora.update(dict(rank=2, alpha=6.0, targets=targets, base=base))
  return LmStage(c, model), experiments.lm_batch(model, c.data.row)


def start(stage):
  """State and frozen variables; under jit, as qwix follows a reshaped kernel only there."""
  return jax.jit(lambda key: nn.unbox(stage.init(key)))(jax.random.key(0))


def trained(stage, batch, steps=2):
  """State after some steps, and what was frozen before and after."""
  state, frozen = start(stage)
  ready = stage.compressed(frozen)
  step = jax.jit(stage.step)
  losses = []
  for _ in range(steps):
    state, metrics = step(state, ready, batch, jax.random.key(1))
    losses.append(float(metrics["loss"]))
  return state, frozen, ready, losses


def loss_of(stage, params, frozen, batch):
  counts = dict(text=jnp.float32(1), image=jnp.float32(1))
  return float(jax.jit(stage.loss)(params, frozen, batch, counts, jax.random.key(1))[0])


@pytest.mark.parametrize(
  "base",
  [pytest.param("", marks=pytest.mark.slow), "nf4", pytest.param("int8", marks=pytest.mark.slow)],
)
def test_merged_weights_compute_what_base_and_adapters_do(base):
  targets = ("llm",) if base == "nf4" else TARGETS  # others are narrower than a tile
  stage, batch = lm_stage(base, targets)
  state, frozen, ready, losses = trained(stage, batch)
  assert losses[1] < losses[0]
  assert all(lora.is_adapter(k) for k in traverse_util.flatten_dict(state.params))
  merged = lora.merged(
    jax.device_get(optim.merge(state.params, frozen["params"])), stage.config.lora
  )
  plain, _ = lm_stage()
  plain.config.lora.rank = 0
  got = loss_of(plain, merged, frozen | {"params": {}}, batch)
  np.testing.assert_allclose(got, loss_of(stage, state.params, ready, batch), rtol=1e-5)
  flat = traverse_util.flatten_dict(frozen["params"])
  assert set(flat) == set(traverse_util.flatten_dict(merged))
  touched = {k for k, v in traverse_util.flatten_dict(merged).items() if (v != flat[k]).any()}
  assert {k[0] for k in touched} == set(targets)
  assert ("llm", "layers", "self_attn", "o_proj", "kernel") in touched


def test_only_the_named_parts_get_adapters():
  stage, _ = lm_stage(targets=("depth/layers",))
  state, _ = jax.eval_shape(stage.init, jax.random.key(0))
  adapters = traverse_util.flatten_dict(nn.unbox(state.params))
  assert {k[:2] for k in adapters} == {("depth", "layers")}
  stage, _ = lm_stage(targets=("llm", "nothing"))
  with pytest.raises(ValueError, match="no projection below 'nothing'"):
    jax.eval_shape(stage.init, jax.random.key(0))
  stage, _ = lm_stage(targets=("llm", "depth"))
  stage.config.optim.freeze = ("depth",)
  with pytest.raises(ValueError, match="puts adapters into 'depth', which"):
    jax.eval_shape(stage.init, jax.random.key(0))


def test_adapters_compute_in_low_precision():
  stage, batch = lm_stage(dtype="bfloat16", targets=("llm",))
  losses = trained(stage, batch)[-1]
  assert losses[1] < losses[0]


def test_a_tower_with_adapters():
  c, model = experiments.tower()
  c.lora.update(dict(rank=2, targets=("tower/vision",)))
  stage = TowerStage(c, model)
  state, frozen = start(stage)
  moved, metrics = jax.jit(stage.step)(
    state, stage.compressed(frozen), experiments.tower_batch(model), jax.random.key(1)
  )
  assert np.isfinite(metrics["loss"])
  keys = traverse_util.flatten_dict(moved.params)
  assert keys and all(lora.is_adapter(k) and k[:2] == ("tower", "vision") for k in keys)


@pytest.mark.nightly
def test_a_run_with_adapters_resumes_and_merges(tmp_path):
  """Base bit for bit, resumed as uninterrupted, and the merged directory is what `load` gives."""
  import vilau_jax
  from vilau_jax import checkpoint
  from vilau_jax.cli import convert as command
  from vilau_jax.train import loop

  device = jax.devices()[:1]
  tower = experiments.tower_run(tmp_path)
  tower.steps = 1
  loop.train(tower, tmp_path / "tower", devices=device)
  identity = checkpoint.tower_id(checkpoint.load_model(tmp_path / "tower").variables)
  base = experiments.lm_run(tmp_path, tmp_path / "tower", identity)
  base.steps = 1
  loop.train(base, tmp_path / "base", devices=device)

  def run(name, steps):
    c = experiments.lm_run(tmp_path, tmp_path / "tower", identity)
    c.init_from = dict(whole=str(tmp_path / "base"))
    c.data.tokenizer_size = 0
    c.steps, c.optim.end_lr_fraction = steps, 1.0  # a rate that does not depend on the length
    c.lora.update(dict(rank=2, targets=TARGETS))
    return loop.train(c, tmp_path / name, devices=device)

  whole = run("whole", 4)
  run("halves", 2)
  again = run("halves", 4)
  assert whole["metrics"]["loss"] == again["metrics"]["loss"]
  before = checkpoint.load_model(tmp_path / "base").variables["params"]
  frozen = traverse_util.flatten_dict(
    checkpoint.load_frozen(
      tmp_path / "whole",
      jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=jax.sharding.
                   SingleDeviceSharding(device[0])), {"params": {"llm": before["llm"]}}),
    )["params"]
  )  # fmt: skip
  for key, value in frozen.items():
    np.testing.assert_array_equal(value, traverse_util.flatten_dict(before)[key])
  with pytest.raises(ValueError, match="vilau convert merge"):
    checkpoint.open_arrays(tmp_path / "whole")
  assert command._merge(str(tmp_path / "whole"), str(tmp_path / "merged")) == 0
  merged = vilau_jax.load(tmp_path / "merged")
  assert checkpoint.open_arrays(tmp_path / "merged")
  prompt = [["a red square"]]
  assert merged.generate_text(prompt, max_new_tokens=4) == vilau_jax.load(
    tmp_path / "whole"
  ).generate_text(prompt, max_new_tokens=4)
