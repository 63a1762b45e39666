"""How VBench reads a clip: which frames it takes, from which motion on it calls a clip dynamic, and
the rules behind the dimensions that count what detectors and captioners found. For checking and
explaining its results; the detectors themselves are in its own package.
"""

import itertools
from collections.abc import Sequence

import numpy as np

COLORS = ("white", "red", "pink", "blue", "silver", "purple", "orange", "green", "gray", "yellow",
          "black", "grey")  # fmt: skip
_IOU = 0.1  # boxes that overlap more lose points

Box = Sequence[float]  # left, top, right, bottom


def frame_indices(count: int, length: int) -> list[int]:
  """The frames that it takes of a clip: the middle of `count` equal stretches. A clip with fewer
  frames repeats its last one (8 frames give the 16-frame dimensions nine copies of it)."""
  taken = min(count, length)
  edges = np.linspace(0, length, taken + 1).astype(int)
  middles = [int((a + b - 1) // 2) for a, b in itertools.pairwise(edges)]
  return middles + middles[-1:] * (count - taken)


def motion_thresholds(width: int, height: int, frames: int) -> dict[str, dict[str, float]]:
  """Optical flow in pixels and pairs of frames with more than it: for dynamic_degree, and for the
  filter that keeps still clips for temporal_flickering."""
  scale = min(width, height) / 256
  return {
    "dynamic_degree": {"flow_threshold": 6.0 * scale, "min_moving_pairs": round(4 * frames / 16)},
    "static_filter": {"flow_threshold": 3.0 * scale, "count_num": round(2 * frames / 16)},
  }


def flickering(frames: np.ndarray) -> float:
  """Of frames [F, ...] in 0..255: 1 minus the mean absolute difference of neighbours over 255."""
  differences = np.abs(np.diff(np.asarray(frames, np.float64), axis=0))
  return float((255 - differences.mean()) / 255)


def subject_consistency(to_previous: Sequence[float], to_first: Sequence[float]) -> float:
  """Mean over frames of the mean of both similarities."""
  return float(np.mean([max(0.0, a) + max(0.0, b) for a, b in zip(to_previous, to_first)]) / 2)


def color_frames(
  frames: Sequence[Sequence[tuple[str, str]]], thing: str, color: str
) -> tuple[int, int]:
  """(frames with the thing in any colour, frames with it in this one) of captions and labels."""
  captions = [[text for text, label in frame if label == thing] for frame in frames]
  any_color = [any(c in text for text in texts for c in COLORS) for texts in captions]
  this = [any(color in text for text in texts) for texts in captions]
  return sum(any_color), sum(this)


def scene_matches(scene: str, captions: Sequence[str]) -> int:
  """Captions that hold every word of the scene."""
  return sum(set(scene.split()) <= set(caption.split()) for caption in captions)


def spatial_score(relation: str, first: Box, second: Box) -> float:
  """1 if the boxes stand beside each other along the relation's axis (which one is first does not
  matter to it), less if they overlap, 0 along the other axis."""
  dx, dy = (abs(second[i] + second[i + 2] - first[i] - first[i + 2]) for i in (0, 1))
  beside = "left" in relation or "right" in relation
  if not (dx > dy if beside else dy > dx):
    return 0.0
  overlap = _iou(first, second)
  return 1.0 if overlap < _IOU else _IOU / overlap


def _iou(a: Box, b: Box) -> float:
  width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
  height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
  area = lambda box: (box[2] - box[0]) * (box[3] - box[1])  # noqa: E731
  return width * height / (area(a) + area(b) - width * height)
