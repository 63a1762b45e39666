"""FID (Heusel et al. 2017) and KID: resizing as the known packages do it, float64 statistics, the
distances.

The packages share one network and differ in how pictures get to its 299 pixels, which moves FID by
more than most papers' gains. So the mode is part of every result:
  clean        clean-fid: PIL's bicubic filter with antialias, on floats
  pytorch_fid  pytorch-fid, RQ-VAE: bilinear without antialias, on floats in 0..1
  tf1          TensorFlow 1's, torch-fidelity, ADM: bilinear from corners, without antialias

Axis letters: n pictures, H, W sides, D feature width.
"""

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np
from PIL import Image

from vilau_jax.models.inception import SIDE, Inception

MODES = ("clean", "pytorch_fid", "tf1")
FEW = 2048  # below so many pictures the covariance has not full rank


def to_network(image: np.ndarray, mode: str) -> np.ndarray:
  """A picture as the network wants it.

  Args:
    image: [H, W, 3] in 0..255; uint8 or float.
    mode: one of MODES.

  Returns:
    float32 [299, 299, 3], about -1 to 1.
  """
  resized = resize(image, mode)
  if mode == "pytorch_fid":
    return resized * np.float32(2 / 255) - 1
  return (resized - np.float32(128)) / np.float32(128)


def resize(image: np.ndarray, mode: str, side: int = SIDE) -> np.ndarray:
  """[H, W, 3] in 0..255 -> float32 [side, side, 3] in 0..255, not rounded."""
  image = np.asarray(image, np.float32)
  if image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
    raise ValueError(f"a picture must be [H,W,3], got {image.shape}")
  if mode == "clean":
    channels = [Image.fromarray(np.ascontiguousarray(image[..., c])) for c in range(3)]
    channels = [c.resize((side, side), Image.Resampling.BICUBIC) for c in channels]
    return np.clip(np.stack([np.asarray(c) for c in channels], -1), 0, 255)
  if mode not in MODES:
    raise ValueError(f"resize must be one of {', '.join(MODES)}; got {mode!r}")
  rows = _bilinear(image.shape[0], side, mode == "pytorch_fid")
  columns = _bilinear(image.shape[1], side, mode == "pytorch_fid")
  low, high, part = rows
  image = image[low] + (image[high] - image[low]) * part[:, None, None]
  low, high, part = columns
  return image[:, low] + (image[:, high] - image[:, low]) * part[:, None]


@functools.cache
def _bilinear(size: int, side: int, centred: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Lower and upper source index of every target, and the share of the upper; in float32, as the
  packages compute it."""
  at, scale = np.arange(side, dtype=np.float32), np.float32(size / side)
  at = (at + np.float32(0.5)) * scale - np.float32(0.5) if centred else at * scale
  at = np.clip(at, 0, size - 1)
  low = at.astype(np.int64)
  return low, np.minimum(low + 1, size - 1), at - low.astype(np.float32)


def features(
  network: Inception, images: Iterable[np.ndarray], mode: str, batch: int = 32
) -> np.ndarray:
  """Pictures [H, W, 3] in 0..255, of any sizes -> float32 [n, D]."""
  ready = [to_network(image, mode) for image in images]
  parts = []
  for start in range(0, len(ready), batch):
    here = np.stack(ready[start : start + batch])
    missing = min(batch, len(ready)) - len(here)  # one shape compiles once
    filled = np.concatenate([here, np.zeros((missing, *here.shape[1:]), np.float32)])
    parts.append(np.asarray(network(filled))[: len(here)])
  return np.concatenate(parts)


@dataclasses.dataclass
class Statistics:
  """Mean and covariance of features that come in parts, in float64.

  Sums are taken around the first feature, so that a large mean costs no digits.
  """

  n: int = 0
  origin: np.ndarray | None = None
  total: np.ndarray | None = None
  outer: np.ndarray | None = None

  def add(self, values: np.ndarray) -> None:
    """Takes in features [n, D]. Raises ValueError for other shapes and for what is not finite."""
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or (self.n and values.shape[1] != len(self.origin)):
      raise ValueError(f"features must be [n, D] of one width, got {values.shape}")
    if not np.isfinite(values).all():
      raise ValueError("features hold what is not finite; are these the right weights?")
    if not len(values):
      return
    if self.origin is None:
      width = values.shape[1]
      self.origin = values[0]
      self.total, self.outer = np.zeros(width), np.zeros((width, width))
    values = values - self.origin
    self.n += len(values)
    self.total += values.sum(0)
    self.outer += values.T @ values

  @property
  def mean(self) -> np.ndarray:
    return self.origin + self.total / self.n

  @property
  def covariance(self) -> np.ndarray:
    """With n - 1 below. Raises ValueError for fewer than two pictures."""
    if self.n < 2:
      raise ValueError(f"FID needs at least two pictures on each side, got {self.n}")
    centre = self.total / self.n
    return (self.outer - self.n * np.outer(centre, centre)) / (self.n - 1)


def fid(first: Statistics, second: Statistics) -> float:
  return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)


def frechet_distance(
  mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray
) -> float:
  """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of [D] and [D, D].

  The trace of the root is taken from the eigenvalues of S1^(1/2) S2 S1^(1/2), which is symmetric:
  no matrix root, no imaginary parts, and rank does not matter.
  """
  mean1, mean2 = np.atleast_1d(mean1), np.atleast_1d(mean2)
  cov1, cov2 = np.atleast_2d(cov1), np.atleast_2d(cov2)
  values, vectors = np.linalg.eigh(cov1)
  root = (vectors * _roots(values)) @ vectors.T
  inner = root @ cov2 @ root
  trace = _roots(np.linalg.eigvalsh((inner + inner.T) / 2)).sum()
  return float(np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * trace)


def _roots(values: np.ndarray) -> np.ndarray:
  """Square roots of eigenvalues; those that are zero but for rounding count as zero, for the root
  would make 1e-8 of 1e-16."""
  noise = len(values) * np.finfo(np.float64).eps * np.abs(values).max(initial=0)
  return np.sqrt(np.where(values > noise, values, 0))


def kid(first: np.ndarray, second: np.ndarray) -> float:
  """Kernel distance (Binkowski et al. 2018) of features [n, D] over all of them: unbiased, with the
  kernel (x.y / D + 1)^3."""
  first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
  width = first.shape[1]
  kernel = lambda a, b: (a @ b.T / width + 1) ** 3  # noqa: E731
  within = 0.0
  for values in (first, second):
    k = kernel(values, values)
    within += (k.sum() - np.trace(k)) / (len(values) * (len(values) - 1))
  return float(within - 2 * kernel(first, second).mean())
