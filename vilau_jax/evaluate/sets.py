"""The quickstart's test sets, read from records once and held as arrays."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from vilau_jax.data import media
from vilau_jax.data.formats.emoji import Canvas, Question, Scene, questions
from vilau_jax.data.records import Records

PARTS = ("emoji/test_scenes", "emoji/test_videos", "emoji/train_scenes", "emoji/train_videos",
         "easy_vqa/test")  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class TestSet:
  """Samples of one kind.

  Attributes:
    images: uint8 [n,S,S,3], or videos uint8 [n,F,S,S,3].
    captions: n texts.
    questions: per sample, what is asked about it.
    scenes: what the captions describe; empty for easy-VQA.
  """

  images: np.ndarray
  captions: list[str]
  questions: list[list[Question]]
  scenes: list[Scene]

  def __len__(self) -> int:
    return len(self.captions)

  def first(self, count: int) -> "TestSet":
    return self.at(range(min(count, len(self))))

  def other(self) -> list[int]:
    """For every sample the index of one with another caption: what luck would find."""
    found = []
    for i in range(len(self)):
      far = [(i + len(self) // 2 + k) % len(self) for k in range(len(self))]
      found.append(next((j for j in far if self.captions[j] != self.captions[i]), i))
    return found

  def at(self, indices: Sequence[int]) -> "TestSet":
    indices = list(indices)
    pick = lambda values: [values[i] for i in indices]  # noqa: E731
    scenes = pick(self.scenes) if self.scenes else []
    return TestSet(self.images[indices], pick(self.captions), pick(self.questions), scenes)


class Sets:
  """The directories under `--data`, read when first asked for.

  Args:
    root: holds the directories of PARTS.
    side: S, pictures are brought to it.
    limit: at most so many samples of a set, 0 = all.

  Raises:
    ValueError: if one of them is missing.
  """

  def __init__(self, root: str | os.PathLike, side: int, limit: int = 0):
    self.root, self.side, self.limit = pathlib.Path(root), side, limit
    for name in PARTS:
      if not (self.root / name).is_dir():
        raise ValueError(
          f"{self.root} holds no {name}: import the data with `vilau data import emoji` and "
          "`vilau data import easy-vqa` (launch/quickstart.sh does)"
        )

  @functools.cached_property
  def scenes(self) -> TestSet:
    return self._read("emoji/test_scenes")

  @functools.cached_property
  def videos(self) -> TestSet:
    return self._read("emoji/test_videos")

  @functools.cached_property
  def easy_vqa(self) -> TestSet:
    return self._read("easy_vqa/test")

  @property
  def canvas(self) -> Canvas:
    """Of the scenes."""
    return self.scenes.scenes[0].canvas

  @functools.cached_property
  def counts(self) -> dict[str, int]:
    """Records in each directory."""
    return {name: len(Records(self.root / name)) for name in PARTS}

  def validation(self, what: str, count: int, seed: int) -> TestSet:
    """Scenes or videos of combinations that are in the training set: settings are chosen on these.

    Args:
      what: "scenes" or "videos".
      count: at most so many.
      seed: of the choice.
    """
    records = Records(self.root / f"emoji/train_{what}")
    order = np.random.default_rng(seed).permutation(len(records))
    return self._parse([records[int(i)] for i in order[:count]])

  def _read(self, name: str) -> TestSet:
    records = Records(self.root / name)
    count = min(len(records), self.limit or len(records))
    return self._parse([records[i] for i in range(count)])

  def _parse(self, records: list[dict]) -> TestSet:
    square = lambda data: media.to_square(data, self.side)  # noqa: E731
    images = [
      np.stack([square(frame) for frame in r["frames"]]) if "frames" in r
      else square(r["images"][0])
      for r in records
    ]  # fmt: skip
    scenes = [Scene.from_json(r["scene"]) for r in records if r["source"] == "emoji"]
    return TestSet(
      np.stack(images),
      [r["caption"] for r in records],
      [questions(scene) for scene in scenes] or [_published(r) for r in records],
      scenes,
    )


def _published(record: dict) -> list[Question]:
  """The questions of an easy-VQA record."""
  said = record["conversations_value"]
  return [
    Question("yes_no" if answer in ("yes", "no") else "wh", question, answer)
    for question, answer in zip(said[::2], said[1::2])
  ]
