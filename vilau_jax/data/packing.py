"""Samples into rows of a fixed shape, without cutting any."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vilau_jax.data import sequence


@dataclasses.dataclass(frozen=True)
class RowShape:
  """What a row has room for.

  Attributes:
    length: L, positions.
    slots: N, visual slots.
    targets: M, supervised visual slots; the loss gathers them, so it bounds that work.
    depth: R, codes a slot.
  """

  length: int
  slots: int
  targets: int
  depth: int

  def __post_init__(self):
    if self.length < 1 or min(self.slots, self.targets, self.depth) < 0:
      raise ValueError(f"a row needs positive sizes, got {self}")
    if not self.targets <= self.slots <= self.length:
      raise ValueError(f"a row needs targets <= slots <= length, got {self}")

  @property
  def room(self) -> np.ndarray:
    """(length, slots, targets), as samples are measured."""
    return np.array([self.length, self.slots, self.targets])


def fits(sizes: np.ndarray, shape: RowShape) -> np.ndarray:
  """Which samples fit into an empty row; sizes [n,3] -> bool [n]."""
  return (np.asarray(sizes).reshape(-1, 3) <= shape.room).all(-1)


def plan(sizes: np.ndarray, shape: RowShape) -> list[list[int]]:
  """First fit of samples, largest first, into as few rows as that gives.

  A sample's size is its largest share of a row's room; each goes into the first row that still has
  room for it in all three respects.

  Args:
    sizes: int [n,3], (tokens, slots, supervised slots) of each sample.

  Returns:
    rows of sample indices; every sample is in exactly one.

  Raises:
    ValueError: if a sample does not fit into an empty row.
  """
  sizes = np.asarray(sizes).reshape(-1, 3)
  if not fits(sizes, shape).all():
    index = int(np.argmin(fits(sizes, shape)))
    raise ValueError(
      f"sample {index} needs {sizes[index].tolist()} (tokens, slots, targets), a row has "
      f"{shape.room.tolist()}"
    )
  share = (sizes / np.maximum(shape.room, 1)).max(-1)
  free = np.empty((len(sizes), 3), np.int64)  # as many rows as there could be
  rows: list[list[int]] = []
  for index in np.argsort(-share, kind="stable"):
    room = (free[: len(rows)] >= sizes[index]).all(-1)
    place = int(room.argmax()) if len(rows) else 0
    if not len(rows) or not room[place]:
      place = len(rows)
      rows.append([])
      free[place] = shape.room
    rows[place].append(int(index))
    free[place] -= sizes[index]
  return rows


def pack(
  sequences: Sequence[sequence.Sequence], shape: RowShape, *, branches: bool = False
) -> dict[str, np.ndarray]:
  """One row of a batch, the samples one after the other.

  Args:
    branches: the samples may have branches, and the row says which.

  Returns:
    tokens int32 [L] (0 at visual positions and padding), visual_position int32 [N] (-1 = empty),
    codes uint16 [N,R], visual_target bool [N], segment_ids int32 [L] (1, 2, ..; 0 = padding),
    positions int32 [L] (from 0 in every sample), text_target int32 [L] (-1 = ignored); with
    branches, branches int32 [L] (see sequence.Sequence).

  Raises:
    ValueError: if the samples do not fit, or their codes have another depth.
  """
  total = np.sum([s.size for s in sequences], axis=0, dtype=int) if sequences else np.zeros(3, int)
  if not fits(total, shape).all():
    raise ValueError(f"samples of {total.tolist()} do not fit into {shape}")
  row = {
    "tokens": np.zeros(shape.length, np.int32),
    "visual_position": np.full(shape.slots, -1, np.int32),
    "codes": np.zeros((shape.slots, shape.depth), np.uint16),
    "visual_target": np.zeros(shape.slots, bool),
    "segment_ids": np.zeros(shape.length, np.int32),
    "positions": np.zeros(shape.length, np.int32),
    "text_target": np.full(shape.length, -1, np.int32),
  }
  if branches:
    row["branches"] = np.zeros(shape.length, np.int32)
  start = slot = 0
  for number, sample in enumerate(sequences, 1):
    length, slots, _ = sample.size
    here, there = slice(start, start + length), slice(slot, slot + slots)
    row["tokens"][here] = sample.tokens
    row["text_target"][here] = sample.text_target
    row["segment_ids"][here] = number
    row["positions"][here] = sample.positions
    if branches and sample.branches is not None:
      row["branches"][here] = sample.branches
    if slots:
      if sample.codes.shape[-1] != shape.depth:
        raise ValueError(f"codes have {sample.codes.shape[-1]} depths, the model {shape.depth}")
      row["visual_position"][there] = sample.visual_position + start
      row["codes"][there] = sample.codes
      row["visual_target"][there] = sample.visual_target
    start, slot = start + length, slot + slots
  return row
