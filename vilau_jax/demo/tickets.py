"""Who waits for what: a ticket is issued when a button is pressed, and can be cancelled while its
work waits in the queue as well as while it runs."""

import itertools
import threading


class Tickets:
  """Tickets of all sessions; safe to use from any thread."""

  def __init__(self):
    self._numbers = itertools.count(1)
    self._open: dict[str, set[int]] = {}
    self._forgotten: set[int] = set()
    self._lock = threading.Lock()

  def issue(self, session: str) -> int:
    """A new ticket of a session."""
    with self._lock:
      number = next(self._numbers)
      self._open.setdefault(session, set()).add(number)
      return number

  def cancel(self, session: str) -> None:
    """Cancels all tickets of a session."""
    with self._lock:
      self._open.pop(session, None)

  def forget(self, session: str) -> None:
    """Cancels all tickets of a session whose work is not to be shown any more."""
    with self._lock:
      self._forgotten |= self._open.pop(session, set())

  def forgotten(self, number: int) -> bool:
    """Whether the work of a ticket is not to be shown any more."""
    with self._lock:
      return number in self._forgotten

  def cancelled(self, session: str, number: int) -> bool:
    """Whether a ticket is no longer valid."""
    with self._lock:
      return number not in self._open.get(session, ())

  def finish(self, session: str, number: int) -> None:
    """Gives a ticket back."""
    with self._lock:
      self._forgotten.discard(number)
      held = self._open.get(session, set())
      held.discard(number)
      if not held:
        self._open.pop(session, None)
