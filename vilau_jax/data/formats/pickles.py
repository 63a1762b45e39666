"""Pickles from strangers: plain containers, strings, numbers and bytes, and nothing that runs.

Python's unpickler written in Python reads them: the one in C takes gigabytes for a number that a
damaged file holds in four bytes (the size of its memo). A pickle may say a value once and mean it
many times, and so mean more than any memory holds; what is unfolded is limited too.
"""

import collections
import io
import os
import pickle
import struct
from typing import Any, BinaryIO, ClassVar

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
_BREAKS = (
  EOFError, ValueError, TypeError, LookupError, AttributeError, OverflowError, MemoryError,
  RecursionError, AssertionError, NameError, struct.error,
)  # fmt: skip
_SIMPLE = (str, bytes, int, float, complex, bool, type(None))
_SHARED = 10  # values that a byte of the file may stand for, where it says some of them once


class _Bounded(io.RawIOBase):
  """A file of which no more is asked than it has, or Python would make room for it first."""

  def __init__(self, file: BinaryIO):
    self._file = file
    here = file.tell()
    self._end = file.seek(0, os.SEEK_END)
    file.seek(here)

  def read(self, count: int = -1) -> bytes:
    left = max(self._end - self._file.tell(), 0)
    return self._file.read(left if count < 0 else min(count, left))

  def readline(self, limit: int | None = -1) -> bytes:
    return self._file.readline()


def _hashable(values) -> None:
  """The hash of a tuple in a tuple in a tuple .. may take for ever, so keys are simple."""
  for value in values:
    parts = value if isinstance(value, tuple | frozenset) else (value,)
    if not all(isinstance(part, _SIMPLE) for part in parts):
      raise pickle.UnpicklingError("a key or an element of a set is no string, number or bytes")


class _Plain(pickle._Unpickler):
  """The methods below belong to the opcodes that hash, or that plain data does not have."""

  dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

  def _keys(self, count: int | None) -> None:
    if count is None:  # up to the mark
      _hashable(self.stack[::2])
    else:
      _hashable(self.stack[-count : -count + 1])

  def load_dict(self) -> None:
    self._keys(None)
    super().load_dict()

  def load_setitem(self) -> None:
    self._keys(2)
    super().load_setitem()

  def load_setitems(self) -> None:
    self._keys(None)
    super().load_setitems()

  def load_additems(self) -> None:
    _hashable(self.stack)
    super().load_additems()

  def load_frozenset(self) -> None:
    _hashable(self.stack)
    super().load_frozenset()

  def load_reduce(self) -> None:
    called, arguments = self.stack[-2:]
    if called in (set, frozenset, collections.OrderedDict) and isinstance(arguments, tuple):
      for argument in arguments:
        pairs = called is collections.OrderedDict and not isinstance(argument, dict)
        _hashable([pair[0] for pair in argument] if pairs else argument)
    super().load_reduce()

  def _refuse(self) -> None:
    raise pickle.UnpicklingError("it makes objects, and only plain data is read")

  for _code, _method in (
    (pickle.DICT, load_dict), (pickle.SETITEM, load_setitem), (pickle.SETITEMS, load_setitems),
    (pickle.ADDITEMS, load_additems), (pickle.FROZENSET, load_frozenset),
    (pickle.REDUCE, load_reduce),
  ):  # fmt: skip
    dispatch[_code[0]] = _method
  for _code in (
    pickle.BUILD, pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.PERSID,
    pickle.BINPERSID, pickle.EXT1, pickle.EXT2, pickle.EXT4,
  ):  # fmt: skip
    dispatch[_code[0]] = _refuse

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
    value = _Plain(_Bounded(file), encoding="ASCII").load()
    _check_plain(value, _SHARED * (file.tell() + 1000))
  except pickle.UnpicklingError as error:
    raise ValueError(f"{name} is refused as a pickle: {error!s:.500}") from error
  except _BREAKS as error:
    raise ValueError(f"{name} is no pickle, or is cut off: {error!r:.500}") from error
  return value


def _check_plain(value: Any, most: int) -> None:
  """Raises pickle.UnpicklingError for what is no plain data, holds itself, or unfolds to more than
  `most` values."""
  todo = [value]
  while todo:
    value = todo.pop()
    most -= 1
    if isinstance(value, dict):
      todo += [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
      todo += value
    elif not isinstance(value, _SIMPLE):
      raise pickle.UnpicklingError(f"it holds a {type(value).__name__}")
    if len(todo) > most:
      raise pickle.UnpicklingError("it means far more values than it has bytes")


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
      raise ValueError(f"{path} holds {len(found)} entries, {count.name} says {said!r:.200}")
  return found
