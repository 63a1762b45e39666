"""How signals are heard, and how processes agree on them."""

import signal

import jax
import numpy as np

from vilau_jax.train import guard


def test_signals_end_a_run_that_starts_and_stop_one_that_runs():
  before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
  stopping = guard.Stopping()
  assert {s: signal.getsignal(s) for s in before} == before
  stopping.listen()
  stopping.listen()  # at every step
  try:
    signal.raise_signal(signal.SIGTERM)
    assert stopping.at(3) and stopping.signal == signal.SIGTERM
  finally:
    stopping.close()
  assert {s: signal.getsignal(s) for s in before} == before


def test_a_signal_while_processes_agree_is_told_the_next_time(monkeypatch):
  stopping, steps = guard.Stopping(), iter(range(1, 100))

  def gather(mine):
    if not mine[0]:
      stopping.told(signal.SIGTERM, None)  # behind this process's answer
    return np.stack([mine, mine])

  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(guard.multihost_utils, "process_allgather", gather)
  assert not stopping.at(next(steps))
  assert any(stopping.at(next(steps)) for _ in range(guard.Stopping.MOST))
  assert stopping.signal == signal.SIGTERM
