"""easy-VQA: one coloured shape a picture, with the published questions and split.

Victor Zhou, MIT licence, `pip install easy-vqa` (version 1.0). Captions are not part of it: "a red
circle" follows from a picture's own questions and answers where they settle colour and shape, else
from its pixels.
"""

import collections
import functools
import importlib.util
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from vilau_jax import jsons
from vilau_jax.data import imports, media, pieces
from vilau_jax.data.formats import entries
from vilau_jax.data.formats.ranges import Entry

SPLITS = ("train", "test")
QUESTIONS = "questions.json"
PICTURES = 1000  # of a piece
COLORS = {
  "red": (255, 0, 0),
  "green": (0, 255, 0),
  "blue": (0, 0, 255),
  "yellow": (255, 255, 0),
  "teal": (0, 128, 128),
  "brown": (165, 42, 42),
  "gray": (128, 128, 128),
  "black": (0, 0, 0),
}
SHAPES = ("circle", "rectangle", "triangle")
FOREGROUND = 60  # summed distance of red, green and blue from the pale background
# Share of its bounding box that a shape fills: triangles 0.51-0.67, circles 0.73-0.90, rectangles
# 0.93-1.00 (measured on the training pictures whose shape is an answer).
TRIANGLE_BELOW, RECTANGLE_ABOVE = 0.70, 0.915


def plans(
  source: str | os.PathLike | None = None, *, size: int = 60, limit: int = 0
) -> dict[str, imports.Plan]:
  """Records of kind "i2t" with the questions of each picture, in the parts train and test.

  Args:
    source: the folder with train/ and test/; None takes the installed package.
    size: pictures are resized to size x size (bicubic); 0 keeps their 64 pixels.
    limit: pictures a split, 0 = all.

  Raises:
    ValueError: if the package is missing or incomplete, or a list of questions is broken.
  """
  root = find(source)
  return {split: _plan(root, split, size, limit) for split in SPLITS}


def _plan(root: pathlib.Path, split: str, size: int, limit: int) -> imports.Plan:
  pictures = len(_questions(root, split))
  count = min(limit, pictures) if limit else pictures
  path = epath.Path(root / split / QUESTIONS)
  return imports.Plan(
    format="easy-vqa",
    settings={"part": split, "size": size, "limit": limit},
    source="easy-vqa",
    files=pieces.fingerprint(epath.Path(root), [path]),
    pieces=functools.partial(imports.numbered, split, count, PICTURES),
    convert=functools.partial(_convert, root, split, size),
    weight=count,
  )


def _convert(
  root: pathlib.Path, split: str, size: int, payload: tuple[int, int]
) -> Iterator[pieces.Converted]:
  asked = _questions(root, split)
  found = (
    Entry(
      f"{split}/images/{number}.png", number, {"id": f"{split}/{number}", "asked": asked[number]}
    )
    for number in sorted(asked)[slice(*payload)]
  )
  return entries.convert(found, functools.partial(_record, root / split / "images", size))


def find(source: str | os.PathLike | None) -> pathlib.Path:
  """The folder with train/ and test/.

  Raises:
    ValueError: if it is not there.
  """
  if source is None:
    package = importlib.util.find_spec("easy_vqa")
    if package is None:
      raise ValueError(
        "the easy-vqa package is not installed: pip install -e '.[quickstart]' (or pip "
        "install easy-vqa), or give its data folder with --source"
      )
    source = pathlib.Path(package.origin).parent / "data"
  root = pathlib.Path(source)
  for split in SPLITS:
    if not (root / split / QUESTIONS).is_file():
      raise ValueError(f"{root} is not easy-VQA's data: {split}/{QUESTIONS} is missing")
  return root


@functools.lru_cache(maxsize=4)
def _questions(root: pathlib.Path, split: str) -> dict[int, list[tuple[str, str]]]:
  """picture -> its (question, answer) pairs in the published order."""
  path = root / split / QUESTIONS
  try:
    found: dict[int, list[tuple[str, str]]] = collections.defaultdict(list)
    for question, answer, number in jsons.parse(path.read_bytes()):
      pair = entries.text(question, "question"), entries.text(answer, "answer")
      found[int(number)].append(pair)
  except (TypeError, ValueError, OverflowError) as error:
    raise ValueError(f"{path} is not a list of [question, answer, picture]: {error}") from error
  if not found:
    raise ValueError(f"{path} holds no question")
  return dict(found)


def _record(folder: pathlib.Path, size: int, value: dict[str, Any], number: int) -> dict[str, Any]:
  image, asked = media.open_image(folder / f"{number}.png"), value["asked"]
  color, shape = describe(np.asarray(image), asked)
  array = media.to_square(image, size) if size else np.asarray(image)
  return {
    "kind": "i2t",
    "id": value["id"],
    "source": "easy-vqa",
    "caption": f"a {color} {shape}",
    "images": [media.encode_png(array)],
    "width": [array.shape[1]],
    "height": [array.shape[0]],
    "conversations_from": ["human", "gpt"] * len(asked),
    "conversations_value": [text for pair in asked for text in pair],
    "scene": json.dumps({"kind": "easy-vqa", "color": color, "shape": shape}),
  }


def describe(image: np.ndarray, asked: Sequence[tuple[str, str]]) -> tuple[str, str]:
  """(color, shape) of a picture, uint8 [H,W,3]: from its questions, else from its pixels."""
  color, shape = from_questions(asked)
  if color is None or shape is None:
    seen_color, seen_shape = from_pixels(image)
    color, shape = color or seen_color, shape or seen_shape
  return color, shape


def from_questions(asked: Sequence[tuple[str, str]]) -> tuple[str | None, str | None]:
  """(color, shape) as far as questions and answers settle them."""
  found: dict[str, str | None] = {"color": None, "shape": None}
  for question, answer in asked:
    words = question.rstrip("?").split()
    for key, known in (("color", COLORS), ("shape", SHAPES)):
      named = next((word for word in words if word in known), None)
      if answer in known:
        found[key] = answer
      elif named and words[0] == "what":  # "what is the red shape?"
        found[key] = named
      elif named and answer == ("no" if {"not", "no"} & set(words) else "yes"):
        found[key] = named
  return found["color"], found["shape"]


def from_pixels(image: np.ndarray) -> tuple[str, str]:
  """(color, shape) of a picture of one shape on a pale background, uint8 [H,W,3].

  Color: the palette's nearest to the median of what differs from the border. Shape: by how much of
  its bounding box it fills. Works on resized and generated pictures as far as they are clear.
  """
  pixels = np.asarray(image).astype(int)
  border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
  distance = np.abs(pixels - np.median(border, 0)).sum(-1)
  mask = distance > FOREGROUND
  if not mask.any():
    mask = distance == distance.max()
  color = np.median(pixels[mask], 0)
  nearest = min(COLORS, key=lambda name: np.square(color - COLORS[name]).sum())
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  share = mask.sum() / ((np.ptp(rows) + 1) * (np.ptp(columns) + 1))
  if share < TRIANGLE_BELOW:
    return nearest, "triangle"
  return nearest, "rectangle" if share > RECTANGLE_ABOVE else "circle"
