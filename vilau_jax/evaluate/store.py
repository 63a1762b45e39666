"""Predictions on disk: predictions.jsonl, a row a prediction, and arrays beside it.

Rows are appended a chunk at a time and synced, so a process that is killed loses the chunk it was
at, at most; half a line at the end is dropped when the file is opened again. Processes that work
together append to a file each (predictions.1.jsonl is the second's) and read all of them.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vilau_jax import jsons
from vilau_jax.evaluate.parts import replacing
from vilau_jax.evaluate.task import Request, read_json, read_lines

Adopt = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


class Store:
  """The predictions of one run.

  Args:
    directory: the run's; made when absent.
    stamp: what the predictions depend on. A directory with another stamp is refused.
    process: which process this is.

  Attributes:
    rows: id -> row.

  Raises:
    ValueError: if the directory holds predictions of something else, or broken ones.
  """

  def __init__(self, directory: str | os.PathLike, stamp: Mapping[str, Any], process: int = 0):
    self.directory = pathlib.Path(directory)
    self.directory.mkdir(parents=True, exist_ok=True)
    self.path = self.directory / (
      f"predictions.{process}.jsonl" if process else "predictions.jsonl"
    )
    self._check(json.loads(json.dumps(stamp)))
    self._mend()
    self.rows: dict[str, dict[str, Any]] = {}
    self._read: dict[pathlib.Path, int] = {}  # bytes
    self.refresh()

  def refresh(self) -> None:
    """Reads what has been added to any file since; a line that is being written has to wait."""
    for path in sorted(self.directory.glob("predictions*.jsonl")):
      with open(path, "rb") as f:
        f.seek(self._read.get(path, 0))
        data = f.read()
      whole = data.rfind(b"\n") + 1
      self._take(jsons.parse_lines(data[:whole].decode("utf-8"), path))
      self._read[path] = self._read.get(path, 0) + whole

  def add(
    self, requests: Sequence[Request], rows: Sequence[dict[str, Any]], arrays: dict[str, np.ndarray]
  ) -> None:
    """Keeps a chunk: arrays first, so a row never points to arrays that are not there."""
    rows = [{"id": r.id, **row} for r, row in zip(requests, rows, strict=True)]
    if arrays:
      digest = hashlib.sha256("\n".join(r.id for r in requests).encode()).hexdigest()[:16]
      (self.directory / "arrays").mkdir(exist_ok=True)
      with replacing(self.directory / "arrays" / f"{digest}.npz") as temporary:
        with open(temporary, "wb") as f:
          np.savez(f, **arrays)
      rows = [{**row, "arrays": digest, "at": i} for i, row in enumerate(rows)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    with open(self.path, "ab") as f:
      f.write(lines)
      f.flush()
      os.fsync(f.fileno())
    self._read[self.path] = self._read.get(self.path, 0) + len(lines)
    self._take(rows)

  def arrays(self, requests: Sequence[Request]) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of each request, in the order of the requests."""
    name, loaded = None, {}
    for request in requests:
      row = self.rows[request.id]
      if row["arrays"] != name:
        name = row["arrays"]
        with np.load(self.directory / "arrays" / f"{name}.npz", allow_pickle=False) as archive:
          loaded = dict(archive)
      yield {key: value[row["at"]] for key, value in loaded.items()}

  def check(self, requests: Sequence[Request]) -> None:
    """Raises ValueError if there is a prediction for an id that no request has."""
    unknown = sorted(set(self.rows) - {request.id for request in requests})
    if unknown:
      raise ValueError(
        f"{self.path}: {len(unknown)} predictions for unknown ids, the first: {unknown[0]}"
      )

  def _check(self, stamp: dict[str, Any]) -> None:
    path = self.directory / "run.json"
    if not path.exists():
      if self.path.exists():
        raise ValueError(
          f"{self.directory} holds predictions but no run.json; use another --output"
        )
      with replacing(path) as temporary:
        temporary.write_text(json.dumps(stamp, indent=1, ensure_ascii=False) + "\n", "utf-8")
      return
    stored = read_json(path)
    differ = sorted(k for k in {*stamp, *stored} if stamp.get(k) != stored.get(k))
    if differ:
      first = differ[0]
      raise ValueError(
        f"{self.directory} holds another run: {', '.join(differ)} differ ({first} was "
        f"{stored.get(first)!r}, is {stamp.get(first)!r}); use another --output or remove it"
      )

  def _mend(self) -> None:
    if not self.path.exists():
      return
    data = self.path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
      os.truncate(self.path, whole)

  def _take(self, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
      if "id" not in row:
        raise ValueError(f"{self.path}: a row has no id: {row}")
      if row["id"] in self.rows:
        raise ValueError(f"{self.path}: id {row['id']} appears twice")
      self.rows[row["id"]] = row


class Given:
  """Predictions from a file that somebody else wrote; the same interface as Store.

  Args:
    path: a JSON object a line, or one array. The id may be called id, question_id or questionId,
      the answer answer, text, pred or prediction.
    directory: the run's.
    adopt: the task's own reading of rows of another form, rows -> rows; see Textvqa.

  Raises:
    ValueError: for rows without either, or two with one id.
  """

  def __init__(
    self, path: str | os.PathLike, directory: str | os.PathLike, adopt: Adopt = lambda rows: rows
  ):
    self.path, self.directory = pathlib.Path(path), pathlib.Path(directory)
    self.directory.mkdir(parents=True, exist_ok=True)
    if not self.path.is_file():
      raise ValueError(f"no predictions at {self.path}")
    self.rows: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(adopt(_rows(self.path)), 1):
      name = _first(row, ("id", "question_id", "questionId"), self.path, number)
      answer = _first(row, ("answer", "text", "prediction", "pred"), self.path, number)
      if str(name) in self.rows:
        raise ValueError(f"{self.path}, record {number}: id {name} appears twice")
      self.rows[str(name)] = {**row, "id": str(name), "answer": str(answer)}

  check = Store.check

  def arrays(self, requests: Sequence[Request]) -> Iterator[dict[str, np.ndarray]]:
    raise ValueError("this benchmark can't be scored from a file of predictions; give --model")


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
  if path.suffix == ".json":
    content = read_json(path)
    if isinstance(content, dict):  # MM-Vet's {id: text}
      return [{"id": key, "answer": value} for key, value in content.items()]
  return read_lines(path)


def _first(row: Mapping[str, Any], keys: Sequence[str], path, number: int) -> Any:
  for key in keys:
    if key in row:
      return row[key]
  raise ValueError(f"{path}, record {number} has none of {', '.join(keys)}")
