import importlib.util
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vilau_jax.data import packing
from vilau_jax.data.packing import RowShape
from vilau_jax.data.sequence import Sequence


@st.composite
def samples(draw):
  shape = RowShape(
    length=draw(st.integers(8, 40)), slots=draw(st.integers(4, 8)), targets=4, depth=2
  )
  count = draw(st.integers(0, 30))
  sizes = []
  for _ in range(count):
    slots = draw(st.integers(0, shape.slots))
    targets = draw(st.sampled_from([0, min(slots, shape.targets)]))
    sizes.append((draw(st.integers(max(1, slots), shape.length)), slots, targets))
  return shape, np.array(sizes, int).reshape(-1, 3)


def sequence_of(size, rng):
  tokens, slots, targets = size
  places = np.sort(rng.choice(tokens, slots, replace=False)).astype(np.int32)
  supervised = np.zeros(slots, bool)
  supervised[:targets] = True
  ids = rng.integers(1, 1000, tokens).astype(np.int32)
  ids[places] = 0
  labels = np.append(ids[1:], -1).astype(np.int32)
  codes = rng.integers(0, 2**16, (slots, 2 if slots else 0)).astype(np.int32)
  return Sequence(ids, labels, places, codes, supervised)


@given(samples())
def test_first_fit(case):
  shape, sizes = case
  rows = packing.plan(sizes, shape)
  assert sorted(i for row in rows for i in row) == list(range(len(sizes)))
  used = np.array([sizes[row].sum(0) for row in rows]).reshape(-1, 3)
  assert (used <= shape.room).all()
  # Whoever opened a row fitted into none of the earlier ones.
  for later in range(len(rows)):
    for earlier in range(later):
      assert (used[earlier] + sizes[rows[later][0]] > shape.room).any()


@given(samples(), st.integers(0, 99))
def test_rows_hold_their_samples_uncut_and_apart(case, seed):
  shape, sizes = case
  rng = np.random.default_rng(seed)
  everything = [sequence_of(size, rng) for size in sizes]
  for indices in packing.plan(sizes, shape):
    row = packing.pack([everything[i] for i in indices], shape)
    start = slot = 0
    for number, index in enumerate(indices, 1):
      sample = everything[index]
      length, slots, _ = sample.size
      here = slice(start, start + length)
      assert (row["segment_ids"][here] == number).all()
      np.testing.assert_array_equal(row["positions"][here], np.arange(length))
      np.testing.assert_array_equal(row["tokens"][here], sample.tokens)
      np.testing.assert_array_equal(row["text_target"][here], sample.text_target)
      there = slice(slot, slot + slots)
      np.testing.assert_array_equal(row["visual_position"][there] - start, sample.visual_position)
      np.testing.assert_array_equal(row["visual_target"][there], sample.visual_target)
      if slots:
        np.testing.assert_array_equal(row["codes"][there], sample.codes)
      start, slot = start + length, slot + slots
    assert (row["segment_ids"][start:] == 0).all() and (row["text_target"][start:] == -1).all()
    assert (row["visual_position"][slot:] == -1).all() and not row["visual_target"][slot:].any()
    assert row["visual_target"].sum() <= shape.targets


def test_row_types():
  row = packing.pack([], RowShape(8, 4, 4, 3))
  assert {name: (a.dtype.name, a.shape) for name, a in row.items()} == {
    "tokens": ("int32", (8,)),
    "visual_position": ("int32", (4,)),
    "codes": ("uint16", (4, 3)),
    "visual_target": ("bool", (4,)),
    "segment_ids": ("int32", (8,)),
    "positions": ("int32", (8,)),
    "text_target": ("int32", (8,)),
  }


def test_what_does_not_fit_is_refused():
  shape = RowShape(8, 4, 4, 2)
  with pytest.raises(ValueError, match=r"sample 1 needs \[9, 0, 0\]"):
    packing.plan(np.array([[8, 0, 0], [9, 0, 0]]), shape)
  rng = np.random.default_rng(0)
  with pytest.raises(ValueError, match="do not fit"):
    packing.pack([sequence_of((5, 0, 0), rng)] * 2, shape)
  with pytest.raises(ValueError, match="codes have 2 depths"):
    packing.pack([sequence_of((5, 2, 0), rng)], RowShape(8, 4, 4, 3))
  with pytest.raises(ValueError, match="targets <= slots <= length"):
    RowShape(8, 9, 4, 2)


def test_rows_of_the_papers_pretraining_are_full():
  """At least 95 % of the positions of configs/pretrain_7b_256.py are filled, with the published
  lengths and numbers of samples."""
  config = load("configs/pretrain_7b_256.py")
  row = config.data.row
  mean = {"t2i": 316, "interleaved": 1724, "i2t": 506, "t2v": 2168}
  slots = {"t2i": 256, "interleaved": 1024, "i2t": 256, "t2v": 2048}
  forms = [entry["form"] for entry in config.data.mixture]
  weights = np.array([entry["weight"] for entry in config.data.mixture])
  rng = np.random.default_rng(0)
  drawn = [forms[i] for i in rng.choice(len(forms), row.window, p=weights / weights.sum())]
  sizes = []
  for form in drawn:
    text = rng.gamma(4.0, (mean[form] - slots[form]) / 4.0)
    targets = slots[form] if form in ("t2i", "t2v") else 0
    sizes.append((slots[form] + int(np.clip(text, 20, 1800)), slots[form], targets))
  rows = packing.plan(np.array(sizes), RowShape(row.length, row.slots, row.targets, 4))
  assert np.sum(sizes, axis=0)[0] / (len(rows) * row.length) >= 0.95


def load(path):
  spec = importlib.util.spec_from_file_location("config", pathlib.Path(__file__).parents[2] / path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()
