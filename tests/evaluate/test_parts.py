"""Parts are kept, found again, and thrown away when what they depend on changes."""

import numpy as np
import pytest

from vilau_jax.evaluate.parts import Parts


def store(path, **stamp):
  return Parts(path, {"seed": 0, **stamp}, say=lambda line: None)


def found(n):
  return lambda: ({"value": n, "list": (1, 2)}, {"picture": np.full((2, 2, 3), n, np.uint8)})


def never():
  raise AssertionError("computed again")


def test_a_part_is_computed_once(tmp_path):
  first = store(tmp_path).get("drawings", found(3))
  again = store(tmp_path).get("drawings", never)
  assert again.values == first.values == {"value": 3, "list": [1, 2]}
  np.testing.assert_array_equal(again.arrays["picture"], first.arrays["picture"])
  assert again.seconds == first.seconds


def test_another_stamp_computes_again(tmp_path):
  store(tmp_path).get("drawings", found(3))
  assert store(tmp_path, model="b").get("drawings", found(4)).values["value"] == 4
  assert store(tmp_path, model="b").get("drawings", never).values["value"] == 4


def test_an_interrupted_part_leaves_nothing_half_done(tmp_path):
  def interrupted():
    raise KeyboardInterrupt

  store(tmp_path).get("drawings", found(3))
  with pytest.raises(KeyboardInterrupt):
    store(tmp_path, model="b").get("drawings", interrupted)
  assert store(tmp_path).get("drawings", never).values["value"] == 3


@pytest.mark.parametrize("name", ["drawings.json", "drawings.npz"])
def test_a_damaged_part_is_computed_again(tmp_path, name):
  store(tmp_path).get("drawings", found(3))
  path = tmp_path / name
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  assert store(tmp_path).get("drawings", found(5)).values["value"] == 5


def test_seconds_count_kept_parts_too(tmp_path):
  store(tmp_path).get("a", found(1))
  parts = store(tmp_path)
  a, b = parts.get("a", never), parts.get("b", found(2))
  assert parts.all_seconds == pytest.approx(a.seconds + b.seconds)
  assert parts.computed_seconds == pytest.approx(b.seconds)
