import pytest

from vilau_jax.bench import data


def test_rows_codes_and_memory_are_measured():
  """Little data, by CPU time; the full figures come from python -m vilau_jax.bench.data."""
  found = data.measure(["rows", "packing", "codes", "json", "memory"], small=True)
  assert min(found["rows"][f"filled_{stage}"] for stage in data.STAGES) >= 0.95
  assert found["packing"]["positions_per_s_per_core"] >= 200_000
  assert 0.9 < found["packing"]["filled"] <= 1
  assert found["codes"]["ratio"] >= 20
  memory = found["memory"]
  assert memory["after_all_mib"] - memory["after_a_tenth_mib"] < 20
  assert memory["after_reading_mib"] - memory["before_reading_mib"] < 20
  assert found["json"]["growth_mib"] < 20 and found["json"]["entries_missing"] == 0
  with pytest.raises(ValueError, match=r"unknown benches \['speed'\]"):
    data.measure(["speed"], small=True)
