"""Big text files in parts: JSON arrays, JSON lines and CSV, with flat memory and exact positions.

A file is scanned once from its beginning, which gives ranges of bytes with some entries each;
other processes read them at their places. (The kept-up streaming parsers of JSON do not tell where
in the file an entry stands, so neither could be had with them.)
"""

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from etils import epath

from vilau_jax import jsons

ENTRIES = 1000  # of a range
BLOCK = 1 << 20
LARGEST = 1 << 28  # bytes of one entry
MULTILINE = 100  # lines that one CSV row may have
_SPACE = re.compile(r"[ \t\r\n]*")


class Range(NamedTuple):
  """Bytes [start, stop) of a file.

  Attributes:
    first: number of the first entry (JSON, from 0) or line (JSON lines and CSV, from 1).
    kind: "array", "lines" or "csv".
    problem: the file cannot be read from here on, and why.
  """

  path: str
  start: int
  stop: int
  first: int
  kind: str
  columns: tuple[str, ...] = ()
  problem: str = ""

  @property
  def name(self) -> str:
    what = "entry" if self.kind == "array" else "line"
    return f"{epath.Path(self.path).name}, from {what} {self.first}"


class Entry(NamedTuple):
  """A value and its place for people; or no value and what is wrong with it."""

  where: str
  number: int
  value: Any
  problem: str = ""


class _Broken(Exception):
  pass


def split_json(path: epath.Path, entries: int = ENTRIES) -> Iterator[Range]:
  """Ranges of a JSON array or of JSON lines.

  Raises:
    ValueError: if the file is neither, is empty or is not UTF-8 from the start.
  """
  with path.open("rb") as f:
    head = f.read(BLOCK)
    _check_encoding(path, head)
    start = 3 if head.startswith(b"\xef\xbb\xbf") else 0
    opening = head[start:].lstrip()[:1]
    if not opening:
      raise ValueError(f"{path} is empty")
    f.seek(start)
    yield from (_split_array if opening == b"[" else _split_lines)(path, f, start, entries)


def read_range(part: Range) -> Iterator[Entry]:
  """The entries of a range; those that cannot be read come with a problem.

  Raises:
    ValueError: if the range says that the file cannot be read from there.
  """
  if part.problem:
    raise ValueError(part.problem)
  with epath.Path(part.path).open("rb") as f:
    f.seek(part.start)
    data = f.read(part.stop - part.start)
  if part.kind == "csv":
    for line, row, problem in _csv_rows(io.BytesIO(data), part):
      yield Entry(f"{os.path.basename(part.path)}, line {line}", line, row, problem)
  elif part.kind == "lines":
    for number, line in enumerate(data.split(b"\n"), part.first):
      if line.strip():
        yield _entry(part, "line", number, line)
  else:
    text = _Window(data=data)
    for number, (start, stop) in enumerate(_elements(text), part.first):
      yield _entry(part, "entry", number, data[start:stop])


def _entry(part: Range, what: str, number: int, data: bytes) -> Entry:
  where = f"{os.path.basename(part.path)}, {what} {number}"
  try:
    return Entry(where, number, jsons.parse(data))
  except ValueError as error:
    return Entry(where, number, None, str(error))


def _check_encoding(path: epath.Path, head: bytes) -> None:
  if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\x00" in head[:4]:
    raise ValueError(f"{path} is UTF-16 or UTF-32: convert it to UTF-8 (iconv -t UTF-8)")


class _Window:
  """The unread part of a file as Latin-1: a character is a byte, so places are offsets, and what
  gives JSON its structure reads the same as in UTF-8."""

  def __init__(self, file: BinaryIO | None = None, base: int = 0, data: bytes = b""):
    self.file, self.base, self.text = file, base, data.decode("latin-1")
    self.ended = file is None

  def more(self) -> bool:
    """Reads on, twice as much as is there already; False at the end."""
    data = b"" if self.ended else self.file.read(max(BLOCK, len(self.text)))
    self.ended = self.ended or not data
    self.text += data.decode("latin-1")
    return bool(data)

  def drop(self, count: int) -> None:
    self.text, self.base = self.text[count:], self.base + count

  def skip(self, place: int) -> int:
    """The place of the next character that is no space; the text's length at the end."""
    place = _SPACE.match(self.text, place).end()
    while place == len(self.text) and self.more():
      place = _SPACE.match(self.text, place).end()
    return place


def _elements(text: _Window) -> Iterator[tuple[int, int]]:
  """(start, stop) offsets of the elements up to "]" or the end of a range.

  Raises:
    _Broken: where the text is no list of JSON values.
  """
  decoder, place = json.JSONDecoder(strict=False), 0
  while (place := text.skip(place)) < len(text.text):
    if text.text[place] == "]":
      return
    start = place
    while True:
      try:
        _, place = decoder.raw_decode(text.text, start)
        if place < len(text.text) or not text.more():
          break  # else it may be a number that goes on
      except json.JSONDecodeError as error:
        cut = error.msg.startswith("Unterminated string") or error.pos >= len(text.text) - 16
        if not cut or len(text.text) - start > LARGEST or not text.more():
          raise _Broken(f"{error.msg} at byte {text.base + error.pos}") from error
      except ValueError as error:  # a number of thousands of digits
        raise _Broken(f"{error} at byte {text.base + start}") from error
      except RecursionError as error:
        raise _Broken(f"nested too deeply at byte {text.base + start}") from error
    yield text.base + start, text.base + place
    place = text.skip(place)
    if place < len(text.text) and text.text[place] == ",":
      place += 1
    elif place < len(text.text) and text.text[place] != "]":
      raise _Broken(f"',' or ']' expected at byte {text.base + place}")
    if place > BLOCK:
      text.drop(place)
      place = 0
  if text.file is not None:
    raise _Broken(f"the array is not closed: the file ends at byte {text.base + place}")


def _split_array(path, f: BinaryIO, start: int, entries: int) -> Iterator[Range]:
  text = _Window(f, start)
  text.drop(text.skip(0) + 1)
  first = number = begin = stop = 0
  problem = ""
  try:
    for place, stop in _elements(text):
      begin = place if number == first else begin
      number += 1
      if number - first == entries:
        yield Range(str(path), begin, stop, first, "array")
        first = number
  except _Broken as error:
    problem = f"{path} cannot be read behind entry {number - 1}: {error}"
  if number > first:
    yield Range(str(path), begin, stop, first, "array")
  if problem:
    yield Range(str(path), stop, stop, number, "array", problem=problem)


def _split_lines(path, f: BinaryIO, start: int, entries: int) -> Iterator[Range]:
  begin, first, stop, number = start, 1, start, 0
  while line := f.readline(LARGEST + 1):
    if len(line) > LARGEST:
      problem = f"{path} has a line of more than {LARGEST} bytes: line {number + 1}"
      yield Range(str(path), begin, stop, first, "lines")
      yield Range(str(path), stop, stop, number + 1, "lines", problem=problem)
      return
    stop += len(line)
    number += 1
    if number - first + 1 == entries:
      yield Range(str(path), begin, stop, first, "lines")
      begin, first = stop, number + 1
  if stop > begin:
    yield Range(str(path), begin, stop, first, "lines")


def split_csv(path: epath.Path, needed: Sequence[str] = (), rows: int = ENTRIES) -> Iterator[Range]:
  """Ranges of a CSV file with a header row.

  Raises:
    ValueError: if the header lacks a needed column.
  """
  with path.open("rb") as f:
    head = f.readline(BLOCK)
    _check_encoding(path, head)
    start = len(head)
    try:
      (columns,) = csv.reader([head.decode("utf-8-sig")], strict=True)
    except (csv.Error, ValueError) as error:
      raise ValueError(f"{path}, line 1: no header of a CSV file: {head[:80]!r}") from error
    missing = [name for name in needed if name not in columns]
    if missing:
      raise ValueError(f"{path} lacks the columns {missing}; it has {columns!s:.500}")
    whole = Range(str(path), start, start, 2, "csv", tuple(columns))
    begin, first, stop, count, consumed = start, 2, start, 0, []

    def lines():
      while line := f.readline(LARGEST):  # a longer one is broken, or many
        consumed.append(len(line))
        yield line

    reader = _csv_rows(lines(), whole)
    for line, _, _ in reader:
      # Rows that were read ahead belong to later ranges.
      while len(consumed) and first + count < line:
        stop += consumed.pop(0)
        count += 1
      if count >= rows:
        yield whole._replace(start=begin, stop=stop, first=first)
        begin, first, count = stop, first + count, 0
    stop += sum(consumed)
    if stop > begin:
      yield whole._replace(start=begin, stop=stop, first=first)


def _csv_rows(lines: Iterator[bytes], part: Range) -> Iterator[tuple[int, dict[str, str], str]]:
  """(line, row, problem). A row with broken quotes costs its own first line, not the rest of the
  file: the lines behind it are tried anew."""
  waiting: list[bytes] = []
  number = part.first
  while True:
    if not waiting:
      waiting = [line for line in [next(lines, b"")] if line]
      if not waiting:
        return
    used, row, problem = 1, [], ""
    while True:
      try:
        text = b"".join(waiting[:used]).decode("utf-8")
        row = next(csv.reader([text], strict=True), [])
        break
      except UnicodeDecodeError as error:
        problem = f"not UTF-8 (byte {error.start} of the row)"
      except csv.Error as error:
        problem = f"broken quoting: {error}"
      if "unexpected end of data" not in problem or used == MULTILINE:
        break
      if used == len(waiting):
        if not (line := next(lines, b"")):
          break
        waiting.append(line)
      used += 1
    if row:
      if len(row) != len(part.columns):
        problem = f"broken row: {len(row)} columns, the header has {len(part.columns)}"
      else:
        problem = ""
    used = 1 if problem else used
    if row or problem:
      yield number, {} if problem else dict(zip(part.columns, row)), problem
    number, waiting = number + used, waiting[used:]
