"""Sampling against the golden distributions and against a plain numpy statement of the rule."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vilau_jax.generate import sampling

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "a" / "10_sampling_filter.npz"


filtered = jax.jit(sampling.filtered, static_argnames="switches")
draw = jax.jit(sampling.draw, static_argnames="switches")


def distribution(logits, **options):
  wish = sampling.Sampling(**options)
  entries = logits.shape[-1]
  kept = filtered(logits, wish.values(entries), switches=wish.switches(entries))
  return np.asarray(jax.nn.softmax(kept, axis=-1))


def by_the_rule(logits, temperature=1.0, top_k=None, top_p=1.0):
  rows = []
  for row in logits.astype(np.float32) / np.float32(temperature):
    row = row.astype(np.float64)
    if top_k is not None and top_k < len(row):
      row = np.where(row >= np.sort(row)[-top_k], row, -np.inf)
    probs = np.exp(row - row.max())
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    before = np.cumsum(probs[order]) - probs[order]
    kept = np.zeros_like(probs)
    kept[order] = np.where((before < top_p) | (top_p == 1), probs[order], 0)
    rows.append(kept / kept.sum())
  return np.array(rows)


@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("probs_k20_p96", dict(top_k=20, top_p=0.96)),
    ("probs_k20", dict(top_k=20)),
    ("probs_p96", dict(top_p=0.96)),
    ("probs_k20_p96_t07", dict(top_k=20, top_p=0.96, temperature=0.7)),
    ("probs_k50_p50", dict(top_k=50, top_p=0.5)),
  ],
)
def test_distributions_equal_the_reference(name, options):
  data = np.load(GOLDEN)
  got = distribution(data["logits"], **options)
  np.testing.assert_array_equal(got > 0, data[name] > 0)
  np.testing.assert_allclose(got, data[name], rtol=1e-5, atol=1e-5 * data[name].max())


@settings(max_examples=40, deadline=None)
@given(
  logits=arrays(np.float32, (3, 37), elements=st.floats(-20, 20, width=16)),
  top_k=st.integers(1, 50),
  temperature=st.sampled_from([0.25, 0.5, 1.0, 2.0]),
)
def test_top_k_is_exact_with_ties(logits, top_k, temperature):
  got = distribution(logits, top_k=top_k, temperature=temperature)
  want = by_the_rule(logits, top_k=top_k, temperature=temperature)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), top_k=st.integers(1, 300), top_p=st.floats(0.05, 1.0))
def test_filters_follow_the_rule(seed, top_k, top_p):
  logits = np.random.default_rng(seed).normal(0, 3, (2, 300)).astype(np.float32)
  got = distribution(logits, top_k=top_k, top_p=top_p)
  want = by_the_rule(logits, top_k=top_k, top_p=np.float32(top_p))
  # only an entry whose predecessors sum to top_p within rounding may differ
  differs = (got > 0) != (want > 0)
  assert differs.sum() == 0 or want[differs].max(initial=0) < 1e-3
  if not differs.any():
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_equal_probabilities_keep_the_first_in_index_order():
  got = distribution(np.zeros((1, 10), np.float32), top_p=0.35)
  np.testing.assert_allclose(got[0], [0.25] * 4 + [0] * 6, rtol=1e-6)


def test_top_p_keeps_at_least_the_best():
  got = distribution(np.array([[5.0, 1.0, 0.0]], np.float32), top_p=1e-6)
  np.testing.assert_array_equal(got, [[1, 0, 0]])


@pytest.mark.parametrize("digits", [1, 4])  # of CPUs and of accelerators
def test_thresholds_are_the_largest_that_reach_the_goal(digits, monkeypatch):
  monkeypatch.setitem(sampling._DIGITS, "cpu", digits)
  rng, info = np.random.default_rng(0), np.iinfo(np.int32)
  order = rng.integers(info.min, info.max, (5, 64), np.int32, endpoint=True)
  order[0, :2], order[1] = (info.min, info.max), rng.integers(-3, 3, 64)
  weights = rng.integers(0, 5, order.shape, np.int32)
  for goal in (1, 17, 60):
    got = np.asarray(sampling._threshold(jnp.asarray(order), jnp.asarray(weights), goal))
    for row, weight, threshold in zip(order, weights, got):
      assert weight[row >= threshold].sum() >= goal > weight[row > threshold].sum()
      assert threshold in row
  over = sampling._threshold(jnp.asarray(order), jnp.asarray(weights), 10**6)
  np.testing.assert_array_equal(over, info.min)


def test_guidance_is_done_on_logits():
  logits = jnp.array([[1.0, 2.0], [0.0, 3.0], [0.5, 0.5], [1.0, 1.0]])
  got = sampling.guide(logits, jnp.float32(3))
  np.testing.assert_allclose(got, [[2.0, 5.0], [-2.0, 7.0]])


def test_temperature_zero_is_the_argmax_of_the_guided_logits():
  wish = sampling.Sampling(temperature=0, top_k=1, top_p=0.1, cfg_scale=3)
  logits = jnp.array([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]])
  codes, finite = draw(logits, sampling.output_keys([0]), wish.values(3), switches=wish.switches(3))
  assert codes.tolist() == [1] and finite.tolist() == [True]


def test_draws_follow_the_distribution():
  count = 4000
  logits = jnp.tile(jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05])), (count, 1))
  wish = sampling.Sampling(top_k=3)
  keys = sampling.output_keys(list(range(count)))
  codes, _ = draw(logits, keys, wish.values(4), switches=wish.switches(4))
  share = np.bincount(np.asarray(codes), minlength=4) / count
  assert share[3] == 0
  np.testing.assert_allclose(share[:3], np.array([0.5, 0.3, 0.15]) / 0.95, atol=0.04)


def test_a_row_draws_the_same_in_any_company():
  logits = jax.random.normal(jax.random.key(0), (5, 64))
  wish = sampling.Sampling(top_k=20, top_p=0.9)
  args = dict(values=wish.values(64), switches=wish.switches(64))
  keys = sampling.fold(sampling.output_keys([7, 8, 9, 10, 11]), 3)
  together, _ = draw(logits, keys, **args)
  for i in (0, 2, 4):
    alone, _ = draw(logits[i : i + 1], keys[i : i + 1], **args)
    assert alone[0] == together[i]


def test_not_finite_logits_are_reported_by_row():
  logits = jnp.array([[0.0, 1.0], [jnp.nan, 1.0], [jnp.inf, 0.0]])
  wish = sampling.Sampling()
  _, finite = draw(
    logits, sampling.output_keys([0, 1, 2]), wish.values(2), switches=wish.switches(2)
  )
  assert finite.tolist() == [True, False, False]


@pytest.mark.parametrize(
  ("options", "word"),
  [
    (dict(temperature=-0.1), "temperature"),
    (dict(temperature=float("nan")), "temperature"),
    (dict(top_k=0), "top_k"),
    (dict(top_p=0.0), "top_p"),
    (dict(top_p=1.5), "top_p"),
    (dict(cfg_scale=-1.0), "cfg_scale"),
  ],
)
def test_settings_out_of_range_are_refused(options, word):
  with pytest.raises(ValueError, match=word):
    sampling.Sampling(**options)


def test_seeds():
  assert sampling.output_seeds(5, 3) == [5, 6, 7]
  assert sampling.output_seeds([3, 1], 2) == [3, 1]
  wrong = (([1], 2), (-1, 1), (2**32 - 1, 2), (1.5, 1), ([1.9, 2], 2), (True, 1), ("12", 2))
  for seed, count in wrong:
    with pytest.raises(ValueError, match="seed"):
      sampling.output_seeds(seed, count)
