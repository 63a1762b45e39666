"""LLaVA's conversations: ShareGPT4V, the fine-tuning sets, and video sets of the same shape.

One JSON array (or JSON lines) of {"image" or "images" or "video" or "video_id", "conversations":
[{"from": "human" | "gpt", "value": ..}], "id"}; with "video_id" the file is VIDEO_ID.mp4 and
question and answer stand in "q" and "a". Paths are relative to the folder of images.
"""

import functools
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from vilau_jax.data import imports, pieces
from vilau_jax.data.conversation import PLACEHOLDER
from vilau_jax.data.formats import entries, ranges

FIELDS = ("image", "images", "video", "video_id")
ROLES = ("human", "gpt")


def plan(
  source: str | os.PathLike | None,
  *,
  images: str | os.PathLike | None = None,
  frames: int = 8,
  kind: str = "sft",
) -> imports.Plan:
  """Records of kind "sft" (conversations and placeholders as they are) or "i2t" (questions that are
  independent of each other, for example ShareGPT4V's one caption a picture); without any picture,
  "text".

  Args:
    source: the JSON file.
    images: folder of images and videos; None takes that of the file.
    frames: of a video, evenly spread from the first to the last.

  Raises:
    ValueError: if there is no such file or folder, or for another kind.
  """
  path = entries.file(source, "FILE.json")
  root = epath.Path(images) if images is not None else path.parent
  if not root.is_dir():
    raise ValueError(
      f"no folder at {root}; --images=FOLDER to which the entries' paths are relative"
    )
  if kind not in ("sft", "i2t"):
    raise ValueError(f"llava entries are imported as kind 'sft' or 'i2t', got {kind!r}")
  record = functools.partial(_record, str(root), path.stem, frames, kind)
  return imports.Plan(
    format="llava",
    settings={"frames": frames, "kind": kind, **entries.beside(images)},
    source=path.name,
    files=pieces.fingerprint(path.parent, [path]),
    pieces=functools.partial(entries.json_pieces, path),
    convert=functools.partial(_convert, record),
    unique="record",  # ids may repeat: one picture, several conversations
  )


def _convert(record, part: ranges.Range) -> Iterator[pieces.Converted]:
  return entries.convert(ranges.read_range(part), record)


def _record(root: str, name: str, frames: int, kind: str, value: dict[str, Any], number: int):
  given = value.get("id")
  record = {
    "kind": kind,
    "id": str(given) if isinstance(given, str | int) else f"{name}#{number}",
    "source": name,
  }
  fields = [field for field in FIELDS if value.get(field) is not None]
  if len(fields) > 1:
    raise ValueError(f"an entry has one of {FIELDS}, this one has {fields}")
  field = fields[0] if fields else None
  said = _question(value) if field == "video_id" else _conversation(value)
  if field in ("video", "video_id"):
    file = value[field] + ".mp4" if field == "video_id" else value[field]
    path = entries.inside(root, file, "video")
    record |= entries.video(path, frames, _number(value, "fps"))
    said = said[:2]  # the others are not used, as in the released code
  elif field is not None:
    names = value[field] if isinstance(value[field], list) else [value[field]]
    if not names:
      raise ValueError(f"the list in {field!r} is empty")
    record |= entries.images([entries.read(root, n) for n in names])
    asked = sum(text.count(PLACEHOLDER) for _, text in said)
    if asked not in (0, len(names)) or (not asked and len(names) > 1):
      raise ValueError(f"{asked} {PLACEHOLDER} placeholders for {len(names)} images")
  else:
    record["kind"] = "text"
    if any(PLACEHOLDER in text for _, text in said):
      raise ValueError(f"it has an {PLACEHOLDER} placeholder but no image")
  if kind == "i2t":
    said = _questions(record, field, said)
  record["conversations_from"] = [role for role, _ in said]
  record["conversations_value"] = [text for _, text in said]
  return record


def _questions(record, field: str | None, said: list[tuple[str, str]]) -> list[tuple[str, str]]:
  """The turns of an entry that is imported as questions about pictures.

  Raises:
    ValueError: for what training would refuse.
  """
  if "images" not in record:
    what = f"a {field}" if field else "neither picture nor video"
    raise ValueError(f"kind i2t is of pictures, and it has {what}; --kind=sft takes it")
  said = said[: len(said) // 2 * 2]  # a last question that nobody answers
  for place, (_, text) in enumerate(said):
    entries.text(text.replace(PLACEHOLDER, ""), f"text of turn {place}")
  return said


def _conversation(value: dict[str, Any]) -> list[tuple[str, str]]:
  """(role, text) of the turns; a leading answer is left out, as in the released code."""
  turns = value.get("conversations")
  if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
    raise ValueError(f"'conversations' must be a list of turns, got {turns!r:.60}")
  said = []
  for place, turn in enumerate(turns):
    role = turn.get("from")
    if role not in ROLES:
      raise ValueError(f"turn {place} is from {role!r:.200}, not from one of {ROLES}")
    text = turn.get("value")
    if not isinstance(text, str):
      raise ValueError(f"the value of turn {place} is not a string: {text!r:.60}")
    said.append((role, text))
  if said and said[0][0] == "gpt":
    said = said[1:]
  if [role for role, _ in said] != [ROLES[i % 2] for i in range(len(said))]:
    raise ValueError(f"turns must alternate, got {[role for role, _ in said]}")
  if len(said) < 2:
    raise ValueError("it has no question with an answer")
  for place, (role, text) in enumerate(said):
    if role == "gpt":
      entries.text(text, f"answer in turn {place}")
  return said


def _question(value: dict[str, Any]) -> list[tuple[str, str]]:
  if not isinstance(value["video_id"], str):
    raise ValueError(f"'video_id' is not a string: {value['video_id']!r:.60}")
  if "q" not in value and "conversations" in value:
    return _conversation(value)
  return [("human", entries.text(value.get("q"), "q")), ("gpt", entries.text(value.get("a"), "a"))]


def _number(value: dict[str, Any], field: str) -> float | None:
  given = value.get(field)
  if given is not None and not isinstance(given, int | float):
    raise ValueError(f"{field!r} is not a number: {given!r:.60}")
  return given
