"""A progress line for commands that may take long."""

import time

from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TaskProgressColumn,
  TextColumn,
  TimeRemainingColumn,
)


class Rate:
  """How many of something are done a second, behind the first: programs are compiled before it.

  Args:
    what: what is counted, for example "positions".
  """

  def __init__(self, what: str):
    self._what = what
    self._first: tuple[float, int] | None = None  # when, and how many there were

  def seen(self, count: int) -> str:
    """ ", 12 positions/s" of `count` that there are now; "" while nobody knows."""
    now = time.monotonic()
    if self._first is None:
      self._first = (now, count) if count else None
      return ""
    began, before = self._first
    return f", {(count - before) / (now - began):.0f} {self._what}/s" if count > before else ""


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

  def update(self, done: int, total: int, text: str | None = None) -> None:
    """Shows that `done` of `total` are finished; `text` says what goes on now."""
    self._show(MofNCompleteColumn, done, total, text or self._what)

  def advance(self, share: float, count: int) -> None:
    """Shows that `share` (0..1) is finished where the total is unknown, and `count` of them."""
    self._show(TaskProgressColumn, share, 1.0, f"{count} {self._what}")

  def _show(self, column, done: float, total: float, text: str) -> None:
    if self._bar is None and time.monotonic() - self._began > self._patience:
      columns = (BarColumn(), column(), TimeRemainingColumn())
      self._bar = Progress(TextColumn("{task.description}"), *columns)
      self._bar.start()
      self._task = self._bar.add_task(self._what, total=total)
    if self._bar is not None:
      self._bar.update(self._task, completed=done, description=text)

  def __exit__(self, *error) -> None:
    if self._bar is not None:
      self._bar.stop()
