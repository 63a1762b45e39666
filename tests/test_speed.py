"""What a run says of its speed, by a clock that is set by hand."""

import json

import experiments
import jax.numpy as jnp
import numpy as np
import pytest

from vilau_jax import metrics, speed
from vilau_jax.plan import flops


class Clock:
  now = 100.0

  def monotonic(self):
    return self.now


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(speed, "time", clock)
  monkeypatch.setattr(metrics, "time", clock)
  return clock


def test_a_language_models_speed(clock):
  config, model = experiments.lm()
  config.log.peak_flops = 1e9
  meter = speed.Speed(config, model, devices=4, share=2, began=clock.now)
  clock.now += 50  # compiling
  meter.compiled()
  batch = experiments.lm_batch(model, config.data.row, size=4)
  for _ in range(3):
    with meter.waiting():
      clock.now += 0.5
    clock.now += 1.5
    meter.count(batch)
  with meter.away():
    clock.now += 7
  found = meter.measured()
  tokens, slots = np.sum(batch["segment_ids"] > 0), np.sum(batch["visual_position"] >= 0)
  targets = np.sum(batch["visual_target"])
  work = flops.lm_step(model, rows=8, length=64, slots=slots / 4, supervised=targets / 4)["total"]
  assert found == pytest.approx(
    {
      "seconds_per_step": 2.0,
      "tokens_per_s": 2 * tokens / 2,
      "images_per_s": 2 * slots / model.tower.image_tokens / 2,
      "data_wait": 0.25,
      "mfu": work / 2 / 4e9,
    }
  )
  assert meter.useful == pytest.approx(4.5) and meter.elapsed == pytest.approx(63)
  assert meter.measured() == {}


def test_a_towers_speed_and_what_a_lost_attempt_costs(clock, tmp_path, capsys):
  config, model = experiments.tower()
  config.loss.contrastive = 0.0

  def run(start, steps):
    meter = speed.Speed(config, model, devices=1, share=1, began=clock.now)
    writer = metrics.MetricWriter(tmp_path, start=start, steps=9, every=2, speed=meter)
    for step in range(start, start + steps):
      meter.count({})
      clock.now += 1
      writer.add(step + 1, {"loss": jnp.float32(1)})
    writer.close()
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]

  first = run(0, 4)
  assert [(x["useful"], x["elapsed"]) for x in first] == [(1, 2), (3, 4)]  # one compiled
  assert first[1]["images_per_s"] == 8 and "mfu" not in first[1]  # nobody knows this device's peak
  again = run(2, 4)  # steps 3 and 4 were done in vain
  assert [(x["step"], x["useful"], x["elapsed"]) for x in again[1:]] == [(4, 2, 6), (6, 4, 8)]
  assert again[-1]["goodput"] == 0.5
  said = capsys.readouterr().out
  assert "8.0 images/s" in said and "goodput 50.0%" in said and "going on from step 2" in said


def test_the_table_of_chips_knows_what_jax_calls_them(monkeypatch):
  config, _ = experiments.lm()
  for kind, peak in (("TPU v5 lite", 197e12), ("NVIDIA H100 80GB HBM3", 989e12), ("cpu", 0)):
    device = type("Device", (), {"device_kind": kind})
    monkeypatch.setattr(speed.jax, "devices", lambda device=device: [device])
    assert speed.peak_flops(config, 8) == 8 * peak
