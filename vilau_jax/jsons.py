"""JSON from outside: whatever is wrong with it is one ValueError in words."""

import json
import os
from typing import Any


def parse(text: str | bytes) -> Any:
  """The value of a JSON text.

  Python's own reader says most of what is wrong by json.JSONDecodeError, but has a RecursionError
  for nesting and a bare ValueError for numbers of thousands of digits.

  Args:
    text: a string, or bytes in UTF-8, with a byte order mark or without.

  Raises:
    ValueError: if it is not UTF-8, or not JSON.
  """
  try:
    return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
  except UnicodeDecodeError as error:
    raise ValueError(f"not UTF-8 (byte {error.start})") from error
  except RecursionError as error:
    raise ValueError("not JSON: nested too deeply") from error
  except ValueError as error:
    raise ValueError(f"not JSON: {error}") from error


def parse_object(text: str | bytes) -> dict[str, Any]:
  """As parse, of an object.

  Raises:
    ValueError: also for any other value.
  """
  value = parse(text)
  if not isinstance(value, dict):
    raise ValueError(f"a JSON {type(value).__name__}, expected an object")
  return value


def parse_lines(text: str, path: str | os.PathLike) -> list[Any]:
  """The values of a text with one JSON value a line; empty lines count for nothing.

  Args:
    text: lines end at "\n" alone: JSON may hold what else Python takes for an end.
    path: what to call the text in messages.

  Raises:
    ValueError: naming the line that is broken.
  """
  rows = []
  for number, line in enumerate(text.split("\n"), 1):
    try:
      rows += [parse(line)] if line.strip() else []
    except ValueError as error:
      raise ValueError(f"{path}, line {number}: no JSON object: {error}") from error
  return rows
