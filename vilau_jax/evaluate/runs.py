"""What the training stages left behind: loss curves, sample pictures, times."""

import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np


def read_curves(path: str | os.PathLike, *, points: int = 160) -> dict[str, Any]:
  """metrics.jsonl -> metric -> (steps, values), thinned by averaging; {} without the file."""
  path = pathlib.Path(path)
  if not path.exists():
    return {}
  series: dict[str, list[tuple[float, float]]] = {}
  for line in _json_lines(path):
    if isinstance(line.get("step"), int):
      for key, value in line.items():
        if key == "loss" or key.startswith("loss/"):
          series.setdefault(key, []).append((line["step"], value))
  return {key: _thinned(np.array(sorted(rows)), points) for key, rows in series.items()}


def _thinned(rows: np.ndarray, points: int) -> tuple[list[float], list[float]]:
  parts = np.array_split(rows, min(points, len(rows)))
  return [float(p[:, 0].mean()) for p in parts], [float(p[:, 1].mean()) for p in parts]


def _json_lines(path: pathlib.Path) -> Iterable[dict[str, Any]]:
  for line in path.read_text(encoding="utf-8").splitlines():
    try:
      yield json.loads(line)
    except json.JSONDecodeError:
      continue  # the last line of an interrupted run
