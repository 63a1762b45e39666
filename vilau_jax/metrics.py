"""What a run tells about itself: metrics.jsonl, TensorBoard and one progress line.

Values stay on the device until they are logged; then every step since the last time is checked, so
a non-finite loss is found at the step and in the part where it appeared.
"""

import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vilau_jax import paths
from vilau_jax.speed import Speed

# What a line of metrics.jsonl says about time; everything else is the same in every run.
TIMINGS = ("seconds_per_step", "tokens_per_s", "images_per_s", "mfu", "data_wait", "useful",
           "elapsed", "goodput")  # fmt: skip


class NonFiniteError(FloatingPointError):
  """A loss or gradient is infinite or not a number; says at which step and in which part.

  Attributes:
    step: 1 = the first.
    parts: names of what is not finite there.
  """

  def __init__(self, step: int, parts: list[str], advice: str):
    super().__init__(f"step {step}: {', '.join(parts)} not finite. {advice}")
    self.step, self.parts = step, parts


def flatten(metrics: dict[str, Any]) -> dict[str, float]:
  """Scalars by name; an array [R] becomes NAME/1 .. NAME/R."""
  flat = {}
  for name, value in sorted(metrics.items()):
    value = np.asarray(value)
    if value.ndim:
      flat |= {f"{name}/{i}": float(v) for i, v in enumerate(value, 1)}
    else:
      flat[name] = float(value)
  return flat


class MetricWriter:
  """Collects the metrics of a run and writes their means every `every` steps."""

  def __init__(
    self,
    workdir: epath.PathLike,
    *,
    start: int,
    steps: int,
    every: int,
    speed: Speed | None = None,
    skips: int = 0,
    skipped: int = 0,
    unwritten: Iterable[Sequence[Any]] = (),
  ):
    """Opens the logs of a run that is at step `start`; later lines of an earlier attempt go.

    Args:
      workdir: where metrics.jsonl and tensorboard/ are.
      start: steps already done.
      steps: steps of the whole run.
      every: steps between lines.
      speed: counts what steps process; None: lines tell no speed.
      skips: steps that may be left out because they are not finite (metrics "skipped").
      skipped: steps already left out.
      unwritten: steps done since the last line, and their values; see `position`.
    """
    self._every, self._steps, self._speed = every, steps, speed
    self._skips, self.skipped = skips, skipped
    self._pending: list[tuple[int, dict[str, Any]]] = []
    self._checked: list[tuple[int, dict[str, float]]] = [(step, v) for step, v in unwritten]
    self._latest: dict[str, float] = {}
    self._opened, self._first = time.monotonic(), start + 1
    self._before = {"useful": 0.0, "elapsed": 0.0}
    self._file = self._board = self._bar = None
    if jax.process_index():
      return
    path = epath.Path(workdir) / "metrics.jsonl"
    lines = [json.loads(line) for line in _lines(path)]
    kept = [line for line in lines if line["step"] <= start]
    self._before["elapsed"] = max((line.get("elapsed", 0.0) for line in lines), default=0.0)
    self._before["useful"] = kept[-1].get("useful", 0.0) if kept else 0.0
    self._file = _Log(path, [json.dumps(line) for line in kept])
    self._board = _board(epath.Path(workdir) / "tensorboard", start)
    self._console = Console()
    if self._console.is_terminal:
      self._bar = _progress(self._console)
      self._task = self._bar.add_task("", total=steps, completed=start, note="compiling")
      self._bar.start()
    if start:
      self._say(f"going on from step {start}")

  @property
  def latest(self) -> dict[str, float]:
    """The values last written."""
    return self._latest

  def add(self, step: int, metrics: dict[str, Any]) -> None:
    """Takes the metrics of `step` (1 = the first); writes when it is time.

    Raises:
      NonFiniteError: see `check`.
    """
    self._pending.append((step, metrics))
    if step == self._first:
      jax.block_until_ready(metrics)  # the first step compiles, and is left out of the speed
      self._say(f"first step after {time.monotonic() - self._opened:.1f} s")
      if self._speed is not None:
        self._speed.compiled()
    if step % self._every == 0 or step == self._steps:
      self._write(step)

  def check(self) -> None:
    """Fetches what is pending.

    Raises:
      NonFiniteError: naming the first step and all parts that are not finite there, unless it was
        left out and may be.
    """
    fetched = [(step, flatten(m)) for step, m in jax.device_get(self._pending)]
    pending, self._pending = self._pending, []
    for place, (step, values) in enumerate(fetched):
      bad = [k for k, v in values.items() if not np.isfinite(v)]
      if values.get("skipped"):
        self.skipped += 1
        self._say(f"step {step} left out: {', '.join(bad)} not finite ({self.skipped} so far)")
        if self.skipped > self._skips:
          self._pending = pending[place:]
          raise NonFiniteError(
            step, bad, f"{self.skipped} steps were left out, guard.nonfinite_skips allows "
            f"{self._skips}"
          )  # fmt: skip
      elif bad:
        self._pending = pending[place:]
        raise NonFiniteError(
          step, bad, "The last checkpoint before it is kept; lower optim.peak_lr, raise "
          "optim.warmup or look at that step's data"
        )  # fmt: skip
      else:
        self._checked.append((step, values))

  def position(self) -> dict[str, Any]:
    """What a run that goes on behind the last step checked must know, as JSON: steps left out, and
    the values since the last line, whose mean the next line says. Lines are safe from here on."""
    if self._file is not None:
      self._file.upload()
    return {"skipped": self.skipped, "unwritten": list(self._checked)}

  def _write(self, step: int) -> None:
    self.check()
    fetched, self._checked = [values for _, values in self._checked], []
    # Those of before a restart may lack "skipped".
    values = {
      k: float(np.mean([f[k] for f in fetched if k in f])) for k in (fetched[-1] if fetched else ())
    }
    if "skipped" in values:
      values["skipped"] = float(self.skipped)
    self._latest = values
    timing = self._timing()
    if self._file is None:
      return
    self._file.add(json.dumps({"step": step, **values, **timing}))
    for name, value in (values | timing).items():
      self._board.add_scalar(name, value, step)
    self._progress(step, values, timing)

  def _timing(self) -> dict[str, float]:
    """Speed since the last line; useful and elapsed seconds of all attempts, and their ratio. What
    an attempt did behind its last line is lost if it is killed."""
    speed = self._speed
    if speed is None:
      return {"elapsed": self._before["elapsed"] + time.monotonic() - self._opened}
    measured = speed.measured()
    useful = self._before["useful"] + speed.useful
    elapsed = self._before["elapsed"] + speed.elapsed
    return measured | {"useful": useful, "elapsed": elapsed, "goodput": useful / elapsed}

  def _progress(self, step: int, values: dict[str, float], timing: dict[str, float]) -> None:
    note = "  ".join(f"{k.removeprefix('loss_')} {v:.3f}" for k, v in values.items() if _shown(k))
    seconds = timing.get("seconds_per_step")
    if seconds:
      note += f"  {seconds:.3g} s/step"
      note += "".join(f"  {text.format(timing[k])}" for k, text in _SPEEDS.items() if k in timing)
    if self._bar is not None:
      self._bar.update(self._task, completed=step, note=note)
      return
    left = _clock(seconds * (self._steps - step)) if seconds else "?"
    self._say(f"step {step}/{self._steps}  {note}  eta {left}")

  def _say(self, text: str) -> None:
    if jax.process_index() == 0:
      self._console.print(text, highlight=False, soft_wrap=True)

  def image(self, name: str, step: int, pixels: np.ndarray) -> None:
    """Shows uint8 [height,width,3] on TensorBoard."""
    if self._board is not None:
      self._board.add_image(name, pixels, step, dataformats="HWC")

  def close(self) -> None:
    """Ends the progress line and the files."""
    if self._bar is not None:
      self._bar.stop()
    if self._file is not None:
      self._file.close()
      self._board.close()


class _Log:
  """A file that grows by lines. In a bucket, where nothing can be appended, it is written anew:
  every SECONDS, when `upload` is called, and at the end."""

  SECONDS = 60.0

  def __init__(self, path: epath.Path, lines: list[str]):
    self._path, self._lines, self._file = path, lines, None
    partial = path.parent / f"{path.name}.partial"
    partial.write_text("".join(f"{line}\n" for line in lines))
    partial.replace(path)
    self._uploaded = time.monotonic(), len(lines)
    if not paths.is_remote(path):
      self._file = path.open("a")

  def add(self, line: str) -> None:
    if self._file is not None:
      self._file.write(f"{line}\n")
      self._file.flush()
      return
    self._lines.append(line)
    if time.monotonic() - self._uploaded[0] > self.SECONDS:
      self.upload()

  def upload(self) -> None:
    if self._file is None and len(self._lines) > self._uploaded[1]:
      self._path.write_text("".join(f"{line}\n" for line in self._lines))
      self._uploaded = time.monotonic(), len(self._lines)

  def close(self) -> None:
    self.upload()
    if self._file is not None:
      self._file.close()


_SPEEDS = {
  "tokens_per_s": "{:.0f} tokens/s", "images_per_s": "{:.1f} images/s", "mfu": "MFU {:.1%}",
  "data_wait": "data wait {:.1%}", "goodput": "goodput {:.1%}",
}  # fmt: skip


def _shown(name: str) -> bool:
  return name == "psnr" or (name.startswith("loss") and "/" not in name)


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _lines(path: epath.Path) -> list[str]:
  """Complete lines of a metrics file; a line cut by a crash is dropped."""
  if not path.exists():
    return []
  text = path.read_text()
  return text[: text.rfind("\n") + 1].splitlines()


def _board(directory: epath.Path, start: int):
  from tensorboardX import SummaryWriter

  return SummaryWriter(str(directory), purge_step=start + 1 if start else None)


def _progress(console: Console) -> Progress:
  columns = (
    BarColumn(20),
    MofNCompleteColumn(),
    TimeRemainingColumn(),
    TextColumn("{task.fields[note]}"),
  )
  return Progress(*columns, console=console)
