"""What ends a run before its end: signals, a peer that hangs, and values that are not finite."""

import dataclasses
import faulthandler
import os
import signal
import sys
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from vilau_jax.train.optim import State, Tree

HUNG = 75  # exit code of a process that gave up waiting


class Stopping:
  """Remembers SIGTERM and a first Ctrl-C, and lets all processes agree on the step to stop at.

  Before `listen` they end the process: while it starts, which can take longer than a cluster waits,
  there is nothing to save.
  """

  PATIENCE = 2.0  # seconds between agreements among processes; each costs one small collective
  MOST = 10  # steps between them

  def __init__(self):
    self._told: int | None = None  # the signal
    self._before: dict[int, Any] = {}  # handlers
    self._next_ask = 1
    self._asked: tuple[int, float] | None = None  # step and time of the last agreement

  @property
  def signal(self) -> int | None:
    """What stopped the run, or None."""
    return self._told

  def listen(self) -> None:
    """From now on signals are remembered (in the main thread, where they arrive)."""
    if threading.current_thread() is threading.main_thread() and not self._before:
      self._before = {s: signal.signal(s, self.told) for s in (signal.SIGTERM, signal.SIGINT)}

  def close(self) -> None:
    """Puts the handlers back that were there before."""
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before = {}

  def told(self, number: int, _frame: Any) -> None:
    """The signal handler; a second signal interrupts at once."""
    if self._told is not None:
      raise KeyboardInterrupt
    self._told = number

  def at(self, step: int) -> bool:
    """Whether to save and stop now, behind `step`; the same answer in all processes."""
    if jax.process_count() == 1:
      return self._told is not None
    if step < self._next_ask:
      return False
    now = time.monotonic()
    pace = (now - self._asked[1]) / (step - self._asked[0]) if self._asked else self.PATIENCE
    told = multihost_utils.process_allgather(np.array([self._told or 0, pace]))
    told = np.asarray(told).reshape(-1, 2)
    # Process 0's pace decides for all, or they would ask at different steps.
    self._next_ask = step + int(np.clip(self.PATIENCE / max(told[0, 1], 1e-3), 1, self.MOST))
    self._asked = step, now
    number = int(told[:, 0].max())
    if number:  # else a signal may have come since this process answered: the next time tells it
      self._told = number
    return bool(number)


class Watchdog:
  """Ends the process when it says for too long that it is still at the same thing.

  A collective waits for ever for a process that hangs. Every process watches itself: the one that
  hangs says in what, the others say that they wait for a peer.
  """

  def __init__(self, seconds: float, start: float = 0):
    """Begins to watch.

    Args:
      seconds: patience, 0 = endless.
      start: patience until `at` is called first: records are looked through, weights read and the
        first step compiled.
    """
    self._seconds, self._start, self._ended = seconds, start, threading.Event()
    self._at: tuple[float, str, float] | None = None
    if start:
      self._at = time.monotonic(), "the start", start
    if seconds or start:
      threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

  def at(self, what: str) -> None:
    """The run is alive, and now at `what`."""
    self._at = (time.monotonic(), what, self._seconds) if self._seconds else None

  def pause(self) -> None:
    """What follows may take as long as it likes."""
    self._at = None

  def close(self) -> None:
    self._ended.set()

  def _watch(self) -> None:
    patience = min(x for x in (self._seconds, self._start) if x)
    while not self._ended.wait(min(patience / 4, 5.0)):
      at = self._at
      if at is not None and time.monotonic() - at[0] > at[2]:
        peer = "; a peer hangs or is gone" if jax.process_count() > 1 else ""
        print(
          f"vilau: process {jax.process_index()} of {jax.process_count()} ends: no progress in "
          f"{at[2]:g} s ({at[1]}{peer}). The last checkpoint is good; the same command goes on "
          "from there. guard.hang_after is the patience, guard.start_within that for the start.",
          file=sys.stderr, flush=True,
        )  # fmt: skip
        faulthandler.dump_traceback(all_threads=True)
        os._exit(HUNG)


@dataclasses.dataclass(frozen=True)
class SkipNonFinite:
  """A stage whose step leaves everything but the step's number as it was where a loss or a gradient
  is not finite; metrics say so with "skipped" 1."""

  stage: Any

  def step(self, state: State, frozen: Tree, batch: Tree, key: jax.Array) -> tuple[State, Tree]:
    after, metrics = self.stage.step(state, frozen, batch, key)
    judged = [v for k, v in metrics.items() if k.startswith("loss") or "grad_norm" in k]
    fine = jnp.all(jnp.stack([jnp.all(jnp.isfinite(v)) for v in judged]))
    kept = jax.tree.map(lambda new, old: jnp.where(fine, new, old), after, state)
    metrics = metrics | {"skipped": 1.0 - fine.astype(jnp.float32)}
    return kept.replace(step=after.step), metrics
