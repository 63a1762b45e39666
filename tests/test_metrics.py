"""Logs of a run: means, resumption, and the step at which something went wrong."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from vilau_jax import metrics


def open_writer(path, **changes):
  fields = dict(start=0, steps=6, every=2)
  return metrics.MetricWriter(path, **(fields | changes))


def read(path):
  return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_means_are_written_and_a_resumed_run_replaces_what_it_repeats(tmp_path, capsys):
  writer = open_writer(tmp_path)
  for step in (1, 2, 3, 4):
    writer.add(step, {"loss": jnp.float32(step), "loss_code": jnp.full(2, step)})
  writer.close()
  lines = read(tmp_path)
  assert [(x["step"], x["loss"], x["loss_code/2"]) for x in lines] == [(2, 1.5, 1.5), (4, 3.5, 3.5)]
  assert "step 4/6" in capsys.readouterr().out
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"step": 5, "lo')
  writer = open_writer(tmp_path, start=2)
  writer.add(3, {"loss": jnp.float32(10)})
  writer.add(4, {"loss": jnp.float32(20)})
  writer.close()
  assert [(x["step"], x["loss"]) for x in read(tmp_path)] == [(2, 1.5), (4, 15.0)]
  assert list((tmp_path / "tensorboard").iterdir())


def test_what_is_not_finite_is_named_with_its_step(tmp_path):
  writer = open_writer(tmp_path, every=4)
  writer.add(1, {"loss": jnp.float32(1), "loss_text": jnp.float32(1)})
  writer.add(2, {"loss": jnp.float32(np.nan), "loss_text": jnp.float32(np.inf)})
  writer.add(3, {"loss": jnp.float32(np.nan), "loss_text": jnp.float32(np.nan)})
  with pytest.raises(metrics.NonFiniteError, match="step 2: loss, loss_text not finite"):
    writer.check()
  with pytest.raises(metrics.NonFiniteError, match="step 2"):
    writer.add(4, {"loss": jnp.float32(1), "loss_text": jnp.float32(1)})
  writer.close()


def test_a_line_tells_of_the_steps_before_a_stop_too(tmp_path):
  def run(name, start, end, unwritten=()):
    writer = metrics.MetricWriter(
      tmp_path / name, start=start, steps=20, every=10, unwritten=unwritten
    )
    for step in range(start, end):
      writer.add(step + 1, {"loss": np.float32(0.1 * step), "by_depth": np.arange(2) + 1 / 3})
    writer.check()
    writer.close()
    return json.loads(json.dumps(writer.position()))["unwritten"]  # as a checkpoint keeps it

  for name in ("whole", "cut"):
    (tmp_path / name).mkdir()
  assert run("whole", 0, 20) == []
  run("cut", 13, 20, run("cut", 7, 13, run("cut", 0, 7)))
  logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut")]
  values = [[json.loads(x) for x in log.splitlines()] for log in logs]
  said = [[(x["step"], x["loss"], x["by_depth/2"]) for x in log] for log in values]
  assert said[0] == said[1] and [step for step, *_ in said[0]] == [10, 20]


def test_skipping_may_begin_at_a_restart(tmp_path):
  """The steps before it do not say whether they were left out."""
  before = [(1, {"loss": 1.0})]
  writer = metrics.MetricWriter(tmp_path, start=1, steps=2, every=2, skips=3, unwritten=before)
  writer.add(2, {"loss": np.float32(3), "skipped": np.float32(0)})
  writer.close()
  (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert json.loads(line)["loss"] == 2 and json.loads(line)["skipped"] == 0
