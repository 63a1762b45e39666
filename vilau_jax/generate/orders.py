"""Files of prompts: what stands in a line, or what is wrong with it.

| file | a record |
|---|---|
| .jsonl | {"prompt": .., "name": .., "seed": ..}; name and seed may be left out |
| .json | {name: {"prompt": .., "category": ..}}, as MJHQ-30K and GenAI-Bench ship theirs |
| any other | a line is a prompt |

A prompt is a text, or a list of texts, {"image": FILE} and {"video": FILE}; their paths begin at
the folder of the file of prompts.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from vilau_jax import jsons
from vilau_jax.generate.contents import Conversation, Image, Video

LONGEST = 200  # bytes of a part of a name: file systems take 255, and suffixes come behind it
ENDINGS = (".png", ".mp4", ".json", ".jsonl")  # of what a run writes


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
  """One prompt.

  Attributes:
    number: its place among the records, from 0.
    line: what to call it in messages: a line's number from 1, or the name in a .json file.
    name: of its outputs, without suffix.
    prompt: what to draw or answer; None where `reason` says why there is none.
    seed: its own, or None.
    reason: why it is rejected.
  """

  number: int
  line: int | str
  name: str
  prompt: Conversation | None = None
  seed: int | None = None
  reason: str | None = None


@dataclasses.dataclass(frozen=True)
class PromptFile:
  """A file of prompts, with its hash and the number of its records.

  Attributes:
    path: of the file.
    sha256: of its bytes.
    count: records.
  """

  path: pathlib.Path
  sha256: str
  count: int

  @classmethod
  def open(cls, path: str | os.PathLike) -> "PromptFile":
    """Looks at a file without keeping it in memory (a .json file apart).

    Raises:
      ValueError: if there is no such file, or nothing in it.
    """
    path = pathlib.Path(path)
    if not path.is_file():
      raise ValueError(f"no file of prompts at {path}")
    digest, count = hashlib.sha256(), 0
    with open(path, "rb") as file:
      for line in file:
        digest.update(line)
        count += 1
    if path.suffix == ".json":
      count = len(_object(path))
    if not count:
      raise ValueError(f"{path} holds no prompt")
    return cls(path, digest.hexdigest(), count)

  def orders(self) -> Iterator[Order]:
    """Its records in order; broken ones have a reason."""
    seen: set[str] = set()
    for number, (line, record) in enumerate(self._records()):
      order = self._order(number, line, record)
      if order.name in seen or (order.name != _default(number) and self._defaults(order.name)):
        reason = f"the name {order.name!r:.200} is that of another record"
        order = dataclasses.replace(order, prompt=None, reason=reason)
      elif order.name != _default(number):
        seen.add(order.name)
      yield order

  def _defaults(self, name: str) -> bool:
    """Whether a record without a name may have this one."""
    return self.path.suffix != ".json" and name.isdecimal() and name == _default(int(name))

  def _records(self) -> Iterator[tuple[int | str, Any]]:
    if self.path.suffix == ".json":
      for name, record in _object(self.path).items():
        if isinstance(record, dict):
          below = (str(record["category"]), name) if "category" in record else (name,)
          record = {"name": "/".join(below), **{k: record[k] for k in record if k != "name"}}
        yield name, record
      return
    with open(self.path, "rb") as file:
      for number, line in enumerate(file, 1):
        try:
          text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
          yield number, jsons.parse(text) if self.path.suffix == ".jsonl" and text else text
        except ValueError as error:  # no UTF-8, no JSON
          yield number, error

  def _order(self, number: int, line: int | str, record: Any) -> Order:
    name, seed = _default(number), None
    try:
      if isinstance(record, ValueError):
        raise record
      if isinstance(record, dict):
        name, seed = _name(record.get("name", name)), record.get("seed")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
          raise ValueError(f"seed must be an integer, got {seed!r:.200}")
        if seed is not None and not 0 <= seed < 2**32:
          raise ValueError(f"seeds are integers from 0 to 2**32 - 1, got {seed}")
        record = record.get("prompt")
      return Order(number, line, name, conversation(record, self.path.parent), seed)
    except ValueError as error:
      return Order(number, line, name, reason=str(error))


def conversation(given: Any, folder: pathlib.Path) -> Conversation:
  """What JSON says of a prompt: a text, or a list of texts, {"image": FILE} and {"video": FILE}.

  Args:
    given: the value.
    folder: where files are that have no absolute path.

  Raises:
    ValueError: for anything else, or an empty prompt.
  """
  parts = [given] if isinstance(given, str) else given
  if not isinstance(parts, list):
    raise ValueError(f"a prompt is a text or a list of parts, got {type(given).__name__}")
  parts = [_part(part, folder) for part in parts]
  if not any(part.strip() if isinstance(part, str) else True for part in parts):
    raise ValueError("the prompt is empty")
  return parts[0] if isinstance(given, str) else parts


def _part(part: Any, folder: pathlib.Path) -> str | Image | Video:
  if isinstance(part, str):
    return part
  if isinstance(part, dict) and len(part) == 1:
    (kind, file), *_ = part.items()
    if kind in ("image", "video") and isinstance(file, str):
      return (Image if kind == "image" else Video)(folder / file)
  raise ValueError(f'a part is a text, {{"image": FILE}} or {{"video": FILE}}, got {part!r:.200}')


def _default(number: int) -> str:
  return f"{number:06}"


def _name(name: Any) -> str:
  path = pathlib.PurePosixPath(str(name))
  if path.is_absolute() or ".." in path.parts or not path.name or "\0" in str(name):
    raise ValueError(f"name must be a relative path without .., got {name!r:.200}")
  if any(len(part.encode("utf-8", "replace")) > LONGEST for part in path.parts):
    raise ValueError(f"a part of the name has more than {LONGEST} bytes: {name!r:.200}")
  if not _is_text(str(name)):
    raise ValueError(f"the name holds half a surrogate pair: {name!r:.200}")
  if any(part.endswith(ENDINGS) for part in path.parts[:-1]):
    raise ValueError(f"a folder in a name must not end like a file, got {name!r:.200}")
  return str(path)


def _is_text(value: str) -> bool:
  """Whether it can be written; JSON can carry halves of surrogate pairs."""
  return not any("\ud800" <= character <= "\udfff" for character in value)


def _object(path: pathlib.Path) -> dict[str, Any]:
  try:
    content = jsons.parse(path.read_bytes())
  except ValueError as error:
    raise ValueError(f"{path} is not readable JSON: {error}") from error
  if not isinstance(content, dict):
    raise ValueError(f"{path} is not an object of prompts by name; use .jsonl for one a line")
  return content
