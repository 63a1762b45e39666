"""What a drawing command says while it loads, compiles and draws, and where the time went."""

import contextlib
import time
from collections.abc import Iterator

from vilau_jax.cli.compile_cache import use_compile_cache
from vilau_jax.cli.interrupts import Interrupts
from vilau_jax.cli.progress import Bar


class Watch:
  """One command's clock. Compiled programs may be kept, see compile_cache.py.

  Attributes:
    loading: seconds of it.
    first: seconds until the first row of the grid was there: tracing, compiling, the prompt.
    rate: visual positions a second behind that, None before two rows.
    interrupts: of `drawing`; `seen` checks them at every row but the last.
  """

  def __init__(self):
    self.loading = self.first = 0.0
    self.rate: float | None = None
    self._began = self._total = 0.0
    self._outputs = self._finished = self._first_done = 0
    self._speculated = self._passes = 0  # positions and passes of finished outputs
    self._bar: Bar | None = None
    self.interrupts = Interrupts()
    use_compile_cache()

  def load(self, path: str, **kwargs):
    """api.load, with a word before it."""
    from vilau_jax import api

    began = time.monotonic()
    print(f"loading {path}", flush=True)
    model = api.load(path, **kwargs)
    self.loading = time.monotonic() - began
    print(f"loaded in {self.loading:.1f} s; compiling", flush=True)
    return model

  @contextlib.contextmanager
  def drawing(self, outputs: int) -> Iterator[None]:
    """Inside of it `seen` shows progress of so many outputs, and Ctrl-C ends it between rows."""
    self._outputs, self._began = outputs, time.monotonic()
    with self.interrupts, Bar("compiling") as self._bar:
      yield
    self._total = time.monotonic() - self._began

  def seen(self, progress) -> None:
    """on_progress of generate_images and generate_videos."""
    now, here = time.monotonic() - self._began, len(progress.outputs)
    done = self._finished * progress.total + progress.done * here
    if not self.first:
      self.first, self._first_done = now, done
    elif now > self.first:
      self.rate = (done - self._first_done) / (now - self.first)
    if progress.done == progress.total:
      self._finished += here
      if progress.passes is not None:
        self._speculated += here * progress.total
        self._passes += int(progress.passes.sum())
    else:
      self.interrupts.check()
    text = "drawing" if self.rate is None else f"drawing, {self.rate:.0f} positions/s"
    self._bar.update(done, self._outputs * progress.total, text)

  def summary(self) -> str:
    """In words, for the last line."""
    speed = "" if self.rate is None else f", then {self.rate:.0f} positions/s"
    if self._passes:
      speed += f", {self._speculated / self._passes:.2f} positions a pass"
    return (
      f"in {self._total:.1f} s (loading {self.loading:.1f} s before, first row of positions after "
      f"{self.first:.1f} s{speed})"
    )
