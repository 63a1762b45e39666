"""VFlan: text FLAN and the M3IT sets as VILA packs them.

A folder of .pkl files (NAME.count beside a shard says how many entries it has), each a list of
{"question", "answer" (or "answer:"), "image" (or "image:"): base64 pictures, or paths ending in
.jpg, one or a list, at most eight; none for text, "id"}.
"""

import functools
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from vilau_jax.data import imports, pieces
from vilau_jax.data.conversation import PLACEHOLDER
from vilau_jax.data.formats import entries, pickles

MAX_IMAGES = 8
SEVERAL = "Image Descriptions"  # in questions that hold several rounds


def plan(
  source: str | os.PathLike | None,
  *,
  images: str | os.PathLike | None = None,
  downsample_video: bool = False,
) -> imports.Plan:
  """Records of kind "sft", and "text" without pictures, with no_system_prompt.

  Args:
    source: folder of .pkl files, or one of them.
    images: folder of pictures that are named by paths; None takes the source's.
    downsample_video: of eight pictures, the frames of a video, take every second one.

  Raises:
    ValueError: if there are no such files.
  """
  root = epath.Path(source) if source is not None else None
  if root is None or not root.is_file():
    root = entries.folder(source, "FOLDER with .pkl files")
    paths = entries.found(root, "*.pkl")
  else:
    root, paths = root.parent, [root]
  return imports.Plan(
    format="vflan",
    settings={"downsample_video": downsample_video},
    source=root.name,
    files=pieces.fingerprint(root, paths),
    pieces=functools.partial(entries.file_pieces, paths),
    convert=functools.partial(_convert, str(images or root), downsample_video),
    unique="record",
  )


def _convert(images: str, halve: bool, payload: str) -> Iterator[pieces.Converted]:
  path = epath.Path(payload)
  record = functools.partial(_record, images, halve, path.stem)
  return entries.convert(entries.listed(path, pickles.load_list(path)), record)


def _field(value: dict[str, Any], name: str) -> Any:
  return value[name] if name in value else value.get(f"{name}:")  # a colon slipped in


def _record(images: str, halve: bool, name: str, value: dict[str, Any], number: int):
  question = value.get("question")
  if not isinstance(question, str):
    raise ValueError(f"the question is not a string: {question!r:.60}")
  answer = entries.text(_field(value, "answer"), "answer")
  given = _field(value, "image")
  given = [] if not given else [given] if isinstance(given, str | bytes) else given
  if not isinstance(given, list) or len(given) > MAX_IMAGES:
    raise ValueError(f"'image' must be at most {MAX_IMAGES} pictures, got {given!r:.60}")
  if halve and len(given) == MAX_IMAGES:
    given = given[::2]
  rounds = _rounds(question, answer)
  # A picture brings a newline (conversation.py); the one beside its placeholder goes with that.
  words = rounds[0][0]
  for placeholder in (f"{PLACEHOLDER}\n", f"\n{PLACEHOLDER}", PLACEHOLDER):
    words = words.replace(placeholder, "")
  opening = PLACEHOLDER * len(given) + words
  # Elsewhere it is a word of the text.
  rounds = [tuple(t.replace(PLACEHOLDER, PLACEHOLDER.upper()) for t in pair) for pair in rounds]
  rounds[0] = opening, rounds[0][1]
  record = {
    "kind": "sft" if given else "text",
    "id": str(value["id"]) if "id" in value else f"{name}#{number}",
    "source": "vflan",
    "no_system_prompt": 1,
    "conversations_from": ["human", "gpt"] * len(rounds),
    "conversations_value": [text for pair in rounds for text in pair],
  }
  if given:
    record |= entries.images([_image(images, one) for one in given])
  return record


def _rounds(question: str, answer: str) -> list[tuple[str, str]]:
  """(question, answer) pairs: questions over image descriptions hold several, "\\nQuestion: .." and
  "\\nAnswer: .."; the last is the one that is answered."""
  if SEVERAL not in question:
    return [(question, answer)]
  asked = question.split("\nQuestion: ")[1:]
  if not asked:
    raise ValueError(f"it speaks of {SEVERAL!r} but has no 'Question: ' line")
  rounds = []
  for text in asked[:-1]:
    before, found, said = text.partition("\nAnswer: ")
    if not found or not said.strip():
      raise ValueError(f"an earlier question has no answer: {text!r:.60}")
    rounds.append((before, said))
  return [*rounds, (asked[-1].split("\nAnswer: ")[0], answer)]


def _image(images: str, given: Any) -> bytes:
  if isinstance(given, str) and given.endswith(".jpg"):
    return entries.read(images, given)
  return entries.from_base64(given)
