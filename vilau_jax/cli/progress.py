"""A progress line for commands that may take long."""

import time

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Bar:
  """Context manager: a progress line that appears only after `patience` seconds.

  Args:
    what: what is counted, for example "records".
  """

  def __init__(self, what: str, patience: float = 2.0):
    self._what, self._patience, self._began = what, patience, time.monotonic()
    self._bar = self._task = None

  def __enter__(self) -> "Bar":
    return self

  def update(self, done: int, total: int) -> None:
    """Shows that `done` of `total` are finished."""
    if self._bar is None and time.monotonic() - self._began > self._patience:
      columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
      self._bar = Progress(TextColumn("{task.description}"), *columns)
      self._bar.start()
      self._task = self._bar.add_task(self._what, total=total)
    if self._bar is not None:
      self._bar.update(self._task, completed=done)

  def __exit__(self, *error) -> None:
    if self._bar is not None:
      self._bar.stop()
