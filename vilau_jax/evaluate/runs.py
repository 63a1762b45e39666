"""What the training stages left behind: loss curves, sample pictures, times."""

import json
import math
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from absl import logging

from vilau_jax.data import media

STAGES = {"tower": "tower", "lm": "language model", "finetune": "fine-tuning"}
METRICS = "metrics.jsonl"
Curves = dict[str, tuple[list[float], list[float]]]


def stages(runs: str | os.PathLike) -> dict[str, pathlib.Path]:
  """Words -> workdir: of the directory itself if it is one, else of those in it, the quickstart's
  first."""
  runs = pathlib.Path(runs)
  if (runs / METRICS).exists():
    return {STAGES.get(runs.name, runs.name): runs}
  below = sorted(path.parent.name for path in runs.glob(f"*/{METRICS}"))
  names = [n for n in STAGES if n in below] + [n for n in below if n not in STAGES]
  return {STAGES.get(name, name): runs / name for name in names}


def curves(runs: str | os.PathLike) -> dict[str, Curves]:
  """stage -> loss -> (steps, values)."""
  return {words: _curves(path / METRICS) for words, path in stages(runs).items()}


def samples(runs: str | os.PathLike, *, most: int = 4) -> dict[str, dict[int, np.ndarray]]:
  """stage -> step -> sheet uint8 [H,W,3] that training drew: the first, the last, some between.
  Pictures that are no step's are left out, as are those that cannot be read, with a warning."""
  found = {}
  for words, path in stages(runs).items():
    sheets = sorted(p for p in (path / "samples").glob("*.png") if p.stem.isdecimal())
    if sheets:
      places = np.unique(np.linspace(0, len(sheets) - 1, most).round().astype(int))
      chosen = [sheets[i] for i in places]
      drawn = {int(p.stem): picture for p in chosen if (picture := _sheet(p)) is not None}
      found |= {words: drawn} if drawn else {}
  return found


def _sheet(path: pathlib.Path) -> np.ndarray | None:
  try:
    return np.asarray(media.open_image(path))
  except ValueError as error:
    logging.warning("a sample is left out: %s", error)
    return None


def seconds(runs: str | os.PathLike) -> dict[str, float]:
  """stage -> seconds of computing, from times.jsonl (one {"stage", "seconds"} a line) or times.json
  (a list of them); a stage that was interrupted has several. Evaluation is left out: it counts
  itself."""
  total: dict[str, float] = {}
  for entry in _times(pathlib.Path(runs)):
    if entry["stage"] != "evaluate":
      total[entry["stage"]] = total.get(entry["stage"], 0.0) + float(entry["seconds"])
  return total


def _times(runs: pathlib.Path) -> list[dict[str, Any]]:
  if (runs / "times.jsonl").exists():
    return list(_json_lines(runs / "times.jsonl"))
  if (runs / "times.json").exists():
    return json.loads((runs / "times.json").read_text(encoding="utf-8"))
  return []


def _curves(path: pathlib.Path, points: int = 160) -> Curves:
  series: dict[str, list[tuple[float, float]]] = {}
  for line in _json_lines(path):
    for key, value in line.items():
      if key.startswith("loss_") and _number(value) and _number(line.get("step")):
        series.setdefault(key.removeprefix("loss_"), []).append((line["step"], value))
  return {key: _thinned(np.array(sorted(rows)), points) for key, rows in series.items()}


def _number(value: Any) -> bool:
  return isinstance(value, int | float) and math.isfinite(value)


def _thinned(rows: np.ndarray, points: int) -> tuple[list[float], list[float]]:
  parts = np.array_split(rows, min(points, len(rows)))
  return [float(p[:, 0].mean()) for p in parts], [float(p[:, 1].mean()) for p in parts]


def _json_lines(path: pathlib.Path) -> Iterable[dict[str, Any]]:
  for line in path.read_text(encoding="utf-8").splitlines():
    try:
      value = json.loads(line)
    except json.JSONDecodeError:
      continue  # cut off by an interruption
    if isinstance(value, dict):
      yield value
