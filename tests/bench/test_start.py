"""Where the time of a first picture goes."""

import json
import os
import subprocess
import sys

import golden_model
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vilau_jax
from vilau_jax.bench import start

TENTHS = st.integers(0, 60)
INTERVALS = st.lists(st.tuples(TENTHS, TENTHS).map(lambda pair: tuple(sorted(pair))), max_size=8)


@given(intervals=INTERVALS)
def test_seconds_in_several_intervals_count_once(intervals):
  inside = {tenth for low, high in intervals for tenth in range(low, high)}
  assert start.covered([(low / 10, high / 10) for low, high in intervals]) == pytest.approx(
    len(inside) / 10
  )


def test_every_second_belongs_to_one_phase():
  """Tracing goes on inside tracing, and programs are compiled while a model is loaded."""
  spans = {
    "loading": [(2, 5)],
    "tracing": [(4, 4.5), (6, 9), (7, 8)],
    "lowering": [(9, 10)],
    "compiling": [(4.5, 5), (10, 14)],
  }
  found = start.phases(0, 2, 20, spans)
  assert found == dict(
    python=2, loading=2, tracing=3.5, lowering=1, compiling=4.5, drawing=7, total=20
  )


@pytest.mark.slow
def test_a_second_start_reads_what_the_first_compiled(tmp_path):
  vilau_jax.VilaU.from_loaded(golden_model.tiny()).save(tmp_path / "model")
  command = [sys.executable, "-m", "vilau_jax.bench.start", f"--model={tmp_path / 'model'}"]
  command += ["--starts=1", f"--json_file={tmp_path / 'figures.json'}", "--prompt=a fox"]
  everything = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
  done = subprocess.run(command, env=everything, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / "figures.json").read_text())
  cold, warm = found["cold"], found["warm"][0]
  for times in (cold, warm):
    assert sum(times[phase] for phase in start.PHASES) == pytest.approx(times["total"])
    assert all(times[phase] > 0 for phase in start.PHASES)
  assert warm["compiling"] < cold["compiling"] / 2
