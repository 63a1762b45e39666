"""Ctrl-C as a wish that is honoured at the next good place.

As an exception it may arrive inside a callback of the garbage collector (jax has one) or between a
file and its metadata: the first swallows it, the second is left half done.
"""

import os
import signal
import threading
from typing import Any

SAID = b"\nvilau: stopping in a moment; Ctrl-C again stops at once\n"


class Interrupts:
  """Context manager: inside, a first Ctrl-C only waits for `check`, a second interrupts at once.

  Signals arrive in the main thread; in another one nothing changes.
  """

  def __init__(self):
    self._told = False
    self._before: Any = None

  def __enter__(self) -> "Interrupts":
    if threading.current_thread() is threading.main_thread():
      self._before = signal.signal(signal.SIGINT, self._hear)
    return self

  def __exit__(self, *error) -> None:
    if self._before is not None:
      signal.signal(signal.SIGINT, self._before)

  def check(self) -> None:
    """Raises KeyboardInterrupt if Ctrl-C was pressed."""
    if self._told:
      raise KeyboardInterrupt

  def _hear(self, _number: int, _frame: Any) -> None:
    if self._told:
      raise KeyboardInterrupt
    self._told = True
    os.write(2, SAID)  # print is not for signal handlers
