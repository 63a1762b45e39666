"""JSON from outside: whatever is wrong with it is one ValueError in words."""

import json
from typing import Any


def parse(text: str | bytes) -> Any:
  """The value of a JSON text.

  Python's own reader says most of what is wrong by json.JSONDecodeError, but has a RecursionError
  for nesting and a bare ValueError for numbers of thousands of digits.

  Args:
    text: a string, or bytes in UTF-8.

  Raises:
    ValueError: if it is not UTF-8, or not JSON.
  """
  try:
    return json.loads(text.decode("utf-8") if isinstance(text, bytes) else text)
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
