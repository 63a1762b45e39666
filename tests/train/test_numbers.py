"""Numbers at the edges: finite losses, codes in their range, bfloat16 beside float32."""

import experiments
import flax.linen as nn
import jax
import numpy as np
import pytest

from vilau_jax.generate import sampling
from vilau_jax.train.lm import LmStage


@pytest.fixture(scope="module")
def float32():
  """config, model, step, state, frozen of the tiny language model."""
  config, model = experiments.lm()
  return made(config, model)


def made(config, model):
  stage = LmStage(config, model)
  state, frozen = jax.jit(lambda k: nn.unbox(stage.init(k)))(jax.random.key(0))
  return config, model, jax.jit(stage.step), state, frozen


def edges(model, row):
  """Batches that a data set may give at its edges."""
  plain = experiments.lm_batch(model, row)
  nothing = dict(text_target=np.full_like(plain["text_target"], -1),
                 visual_target=np.zeros_like(plain["visual_target"]))  # fmt: skip
  no_pictures = dict(visual_position=np.full_like(plain["visual_position"], -1),
                     visual_target=nothing["visual_target"])  # fmt: skip
  one = {k: np.zeros_like(v) for k, v in plain.items()} | no_pictures
  one["text_target"] = nothing["text_target"].copy()
  one["segment_ids"] = one["segment_ids"].copy()
  one["segment_ids"][:, 0], one["text_target"][:, 0] = 1, 2
  visual = dict(text_target=nothing["text_target"])
  mixed = {k: v.copy() for k, v in plain.items()}
  for name in ("text_target", "visual_target"):
    mixed[name][::2] = nothing[name][::2]
  return {
    "plain": plain,
    "nothing supervised": plain | nothing,
    "text alone": plain | no_pictures,
    "codes alone": plain | visual,
    "one token": one,
    "empty rows": one | nothing | {"segment_ids": np.zeros_like(one["segment_ids"])},
    "every second row": mixed,
  }


def test_losses_and_gradients_are_finite_at_the_edges(float32):
  config, model, step, state, frozen = float32
  for name, batch in edges(model, config.data.row).items():
    after, metrics = step(state, frozen, batch, jax.random.key(1))
    for key, value in metrics.items():
      assert np.isfinite(value).all(), f"{name}: {key}"
    for leaf in jax.tree.leaves(after.params):
      assert np.isfinite(leaf).all(), name
    if name in ("nothing supervised", "empty rows"):
      assert float(metrics["loss"]) == 0.0 and float(metrics["grad_norm"]) == 0.0


@pytest.mark.nightly
def test_bfloat16_stays_near_float32(float32):
  config, model, step, state, frozen = float32
  coarse = made(*experiments.lm(dtype="bfloat16"))[2]
  batch, key = experiments.lm_batch(model, config.data.row), jax.random.key(1)
  (_, fine), (_, low) = step(state, frozen, batch, key), coarse(state, frozen, batch, key)
  for name in ("loss", "loss_text", "loss_image"):
    np.testing.assert_allclose(low[name], fine[name], rtol=2e-3)
  np.testing.assert_allclose(low["grad_norm"], fine["grad_norm"], rtol=3e-2)


@pytest.mark.slow
def test_a_million_sampled_codes_stay_in_their_range():
  entries, rows, rounds = 37, 2**14, 64
  logits = jax.random.normal(jax.random.key(0), (rows, entries)) * 20
  logits = logits.at[::7].set(0.0).at[::11, 5:].set(-1e30).at[::13].set(1e30).at[::17, 3].set(1e30)
  values = {"temperature": 1.0, "top_k": 9, "top_p": 0.9, "cfg_scale": 1.0}
  switches = sampling.Switches(guided=False, greedy=False, top_k=True, top_p=True)

  @jax.jit
  def drawn(number):
    keys = jax.random.split(jax.random.key(number), rows)
    return sampling.draw(logits, keys, values, switches)

  seen = np.zeros(entries, int)
  for number in range(rounds):
    codes, fine = (np.asarray(x) for x in drawn(number))
    assert codes.min() >= 0 and codes.max() < entries and fine.all()
    seen += np.bincount(codes, minlength=entries)
  assert seen.sum() == rounds * rows >= 1_000_000 and (seen > 0).all()
