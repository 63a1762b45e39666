"""Pickles from strangers: plain containers, strings, numbers and bytes, and nothing that runs."""

import collections
import pickle
from typing import Any, BinaryIO

from etils import epath


def _latin1(text: str, encoding: str) -> bytes:
  """What pickle writes for bytes in its old protocols: `_codecs.encode(text, "latin1")`."""
  if encoding not in ("latin1", "latin-1"):
    raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
  return text.encode("latin-1")


def _empty() -> bytes:
  """What pickle writes for b"" there."""
  return b""


_ALLOWED = {
  ("_codecs", "encode"): _latin1,
  ("__builtin__", "bytes"): _empty,
  ("builtins", "set"): set,
  ("builtins", "frozenset"): frozenset,
  ("__builtin__", "set"): set,
  ("__builtin__", "frozenset"): frozenset,
  ("collections", "OrderedDict"): collections.OrderedDict,
}


# What damaged bytes make the unpickler raise.
_BREAKS = (EOFError, ValueError, TypeError, LookupError, AttributeError, OverflowError, MemoryError)


class _Plain(pickle.Unpickler):
  def find_class(self, module: str, name: str):
    if (module, name) not in _ALLOWED:
      raise pickle.UnpicklingError(
        f"it wants {module}.{name}; only lists, dicts, strings, numbers and bytes are read, since "
        "a pickle can run code"
      )
    return _ALLOWED[module, name]


def load(path: epath.Path) -> Any:
  """The content of a pickle.

  Raises:
    ValueError: if it is cut off, no pickle, or asks for anything but plain data.
  """
  with path.open("rb") as f:
    return load_file(f, str(path))


def load_file(file: BinaryIO, name: str) -> Any:
  """Like load, from an open file; `name` is for the message."""
  try:
    return _Plain(file).load()
  except pickle.UnpicklingError as error:
    raise ValueError(f"{name} is refused as a pickle: {error}") from error
  except _BREAKS as error:
    raise ValueError(f"{name} is no pickle, or is cut off: {error!r}") from error


def load_list(path: epath.Path) -> list[Any]:
  """A pickled list; NAME.count beside NAME.pkl, where it is, says how many entries it must have.

  Raises:
    ValueError: see load; or if it is no list or has another length.
  """
  found = load(path)
  if not isinstance(found, list):
    raise ValueError(f"{path} holds a {type(found).__name__}, not a list of entries")
  count = path.with_suffix(".count")
  if count.exists():
    said = count.read_text().strip()
    if said != str(len(found)):
      raise ValueError(f"{path} holds {len(found)} entries, {count.name} says {said!r}")
  return found
