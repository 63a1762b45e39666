"""What a run tells about itself: metrics.jsonl, TensorBoard and one progress line.

Values stay on the device until they are logged; then every step since the last time is checked, so
a non-finite loss is found at the step and in the part where it appeared.
"""

import json
import time
from typing import Any

import jax
import numpy as np
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class NonFiniteError(FloatingPointError):
  """A loss or gradient is infinite or not a number; says at which step and in which part."""


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
    self, workdir: epath.PathLike, *, start: int, steps: int, every: int, batch_size: int, unit: str
  ):
    """Opens the logs of a run that is at step `start`; later lines of an earlier attempt go.

    Args:
      workdir: where metrics.jsonl and tensorboard/ are.
      start: steps already done.
      steps: steps of the whole run.
      every: steps between lines.
      batch_size: units a step, for the throughput.
      unit: what a batch counts, "images" or "rows".
    """
    self._every, self._steps, self._batch, self._unit = every, steps, batch_size, unit
    self._pending: list[tuple[int, dict[str, Any]]] = []
    self._latest: dict[str, float] = {}
    self._opened = self._marked = time.monotonic()
    self._marked_step = start
    self._file = self._board = self._bar = None
    if jax.process_index():
      return
    path = epath.Path(workdir) / "metrics.jsonl"
    kept = [line for line in _lines(path) if json.loads(line)["step"] <= start]
    path.write_text("".join(f"{line}\n" for line in kept))
    self._file = path.open("a")
    self._board = _board(epath.Path(workdir) / "tensorboard", start)
    self._console = Console()
    if self._console.is_terminal:
      self._bar = _progress(self._console)
      self._task = self._bar.add_task("", total=steps, completed=start, note="compiling")
      self._bar.start()

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
    if len(self._pending) == 1 and self._latest == {} and step == self._marked_step + 1:
      jax.block_until_ready(metrics)  # the first step compiles, and is left out of the speed
      now = time.monotonic()
      self._say(f"first step after {now - self._opened:.1f} s")
      self._marked, self._marked_step = now, step
    if step % self._every == 0 or step == self._steps:
      self._write(step)

  def check(self) -> list[dict[str, float]]:
    """Fetches what is pending.

    Raises:
      NonFiniteError: naming the first step and all parts that are not finite there.
    """
    fetched = [(step, flatten(m)) for step, m in jax.device_get(self._pending)]
    for step, values in fetched:
      bad = [k for k, v in values.items() if not np.isfinite(v)]
      if bad:
        raise NonFiniteError(
          f"step {step}: {', '.join(bad)} not finite. The last checkpoint before it is kept; "
          "lower optim.peak_lr, raise optim.warmup or look at that step's data"
        )
    return [values for _, values in fetched]

  def _write(self, step: int) -> None:
    fetched = self.check()
    self._pending = []
    names = fetched[-1]
    values = {k: float(np.mean([f[k] for f in fetched])) for k in names}
    now = time.monotonic()
    timed = step - self._marked_step
    seconds = (now - self._marked) / timed if timed > 0 else 0.0
    self._marked, self._marked_step = now, step
    self._latest = values
    if self._file is None:
      return
    speed = {"seconds_per_step": seconds} if seconds else {}
    line = {"step": step, **values, **speed, "elapsed": now - self._opened}
    self._file.write(json.dumps(line) + "\n")
    self._file.flush()
    for name, value in (values | speed).items():
      self._board.add_scalar(name, value, step)
    self._progress(step, values, seconds)

  def _progress(self, step: int, values: dict[str, float], seconds: float) -> None:
    losses = [f"{k.removeprefix('loss_')} {v:.3f}" for k, v in values.items() if _shown(k)]
    note = "  ".join(losses)
    if seconds:
      note += f"  {self._batch / seconds:.0f} {self._unit}/s"
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
