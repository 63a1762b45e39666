"""What a benchmark is: requests read from official files, predictions, scores.

A task turns annotations into requests, a chunk of requests into predictions, and all predictions
into scores. The runner (runner.py) does the rest: it keeps predictions, resumes, stamps, compares
with the paper. Requests and predictions meet by id, never by order.
"""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from vilau_jax import jsons
from vilau_jax.evaluate.judge import JudgeSettings

Rows = Mapping[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
  """One thing to predict.

  Attributes:
    id: unique in its task.
    content: what the model gets: parts of a conversation, a prompt, a picture.
    truth: what scoring needs.
    number: its place in the whole task; seeds follow it, so batches don't matter.
  """

  id: str
  content: Any
  truth: Any = None
  number: int = 0


@dataclasses.dataclass(frozen=True)
class Options:
  """What a command line may say; None takes the task's own default. A task refuses what it does not
  use (`check`)."""

  protocol: str | None = None
  split: str | None = None
  limit: int = 0
  batch_size: int = 16
  seed: int = 0
  max_new_tokens: int | None = None
  strict: bool = False
  judge: JudgeSettings | None = None
  judge_prompt: str | None = None
  unparsed: str | None = None
  inception: str | None = None
  lpips: str | None = None
  resize: str | None = None
  classnames: str | None = None
  templates: str | None = None
  reference: str | None = None
  external_scores: str | None = None
  cfg_scales: tuple[float, ...] = ()
  num: int | None = None

  def check(self, task: str, uses: Iterable[str]) -> None:
    """Raises ValueError for an option that is set but not used by the task."""
    known = {"protocol", "split", "limit", "batch_size", "seed", *uses}
    for field in dataclasses.fields(self):
      if getattr(self, field.name) != field.default and field.name not in known:
        raise ValueError(f"{task} has no use for --{field.name}; leave it out")


@dataclasses.dataclass
class Scores:
  """What scoring found.

  Attributes:
    metrics: name -> value; the names are those of paper.json.
    n: requests that count.
    missing: requests without a prediction; they count as wrong.
    categories: kind -> name -> value.
    details: whatever else belongs into scores.json (the judge, for example).
    notes: said below the table.
    partial: why the scores are not final, or None.
  """

  metrics: dict[str, float]
  n: int
  missing: int = 0
  categories: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  details: dict[str, Any] = dataclasses.field(default_factory=dict)
  notes: list[str] = dataclasses.field(default_factory=list)
  partial: str | None = None


class Found(Protocol):
  """Predictions so far; see store.Store."""

  directory: pathlib.Path
  rows: Rows

  def arrays(self, requests: Sequence[Request]) -> Iterator[dict[str, np.ndarray]]: ...


class Task(Protocol):
  """A benchmark.

  Attributes:
    name: as typed.
    protocol: whose rules; scores of different protocols are not comparable.
    split: of the data.
    settings: everything else that changes predictions; must fit into JSON.
    sources: annotation files, for the data hash.
  """

  name: str
  protocol: str
  split: str
  settings: dict[str, Any]
  sources: list[pathlib.Path]

  def requests(self) -> list[Request]:
    """All requests. Raises ValueError for files that are missing, broken or contradictory."""

  def predict(
    self, model, requests: Sequence[Request], directory: pathlib.Path
  ) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """A row for each request (its id is added), and arrays with a first axis over the requests."""

  def adopt(self, rows: list[dict[str, Any]], requests: Sequence[Request]) -> list[dict[str, Any]]:
    """Given predictions (--predictions) under the ids of the requests."""

  def score(self, requests: Sequence[Request], found: Found) -> Scores: ...


def pick(what: str, value: str | None, known: Sequence[str]) -> str:
  """`value`, or the first of `known` for None.

  Raises:
    ValueError: if it is not among them.
  """
  if value is None:
    return known[0]
  if value not in known:
    raise ValueError(f"--{what} must be one of {', '.join(known)}; got {value!r}")
  return value


def find_file(root: pathlib.Path, *names: str) -> pathlib.Path:
  """The first of `names` that lies in `root` or in a folder of it.

  Raises:
    ValueError: saying which file is missing.
  """
  found = find_optional(root, *names)
  if found is None:
    raise ValueError(
      f"{root} lacks the annotations: {' or '.join(names)}; see the benchmark's page"
    )
  return found


def find_optional(root: pathlib.Path, *names: str) -> pathlib.Path | None:
  for name in names:
    if (root / name).is_file():
      return root / name
  for name in names:
    below = sorted(root.glob(f"*/{name}"))
    if below:
      return below[0]
  return None


def find_media(root: pathlib.Path, record: str, *candidates: str) -> str:
  """The first of the relative paths that exists.

  Raises:
    ValueError: naming the record and what was looked for.
  """
  for candidate in candidates:
    path = root / candidate
    if path.exists():
      return str(path)
  raise ValueError(f"{record}: none of {', '.join(candidates)} is in {root}")


def read_json(path: str | os.PathLike) -> Any:
  """Raises ValueError with the place where the file is broken, or if an object has a key twice: ids
  are keys in some files, and the first of two would be lost."""

  def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
      twice = next(k for k, n in collections.Counter(k for k, _ in pairs).items() if n > 1)
      raise ValueError(f"{path}: {twice} appears twice in one object")
    return found

  try:
    text = pathlib.Path(path).read_text(encoding="utf-8")
    return json.loads(text, object_pairs_hook=once)
  except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
    raise ValueError(f"{path} is no JSON: {error}") from error


def read_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
  """A file with a JSON object a line, or one JSON array of objects.

  Raises:
    ValueError: naming the line that is broken.
  """
  text = pathlib.Path(path).read_text(encoding="utf-8")
  if text.lstrip().startswith("["):
    rows = read_json(path)
  else:
    rows = jsons.parse_lines(text, path)
  for number, row in enumerate(rows, 1):
    if not isinstance(row, dict):
      raise ValueError(f"{path}, record {number}: not an object but {type(row).__name__}")
  return rows


def field(row: Mapping[str, Any], key: str, source: str) -> Any:
  """row[key]. Raises ValueError naming the source if it is absent."""
  if key not in row:
    raise ValueError(f"{source}: a record has no {key!r}; it has {', '.join(map(str, row))}")
  return row[key]


def by_id(rows: Iterable[Mapping[str, Any]], key: str, source: str) -> dict[str, Any]:
  """Rows by the text of row[key].

  Raises:
    ValueError: if an id is absent or appears twice.
  """
  found: dict[str, Any] = {}
  for row in rows:
    name = str(field(row, key, source))
    if name in found:
      raise ValueError(f"{source}: {key} {name} appears twice")
    found[name] = row
  return found


def numbered(requests: Sequence[Request], source: str) -> list[Request]:
  """The requests with their numbers.

  Raises:
    ValueError: if there is none, or two have one id.
  """
  if not requests:
    raise ValueError(f"{source} holds nothing to evaluate")
  seen: set[str] = set()
  for request in requests:
    if request.id in seen:
      raise ValueError(f"{source}: id {request.id} appears twice")
    seen.add(request.id)
  return [dataclasses.replace(request, number=i) for i, request in enumerate(requests)]


def mean(values: Iterable[float]) -> float:
  """Raises ValueError instead of giving NaN."""
  values = list(values)
  if not values:
    raise ValueError("there is nothing to average: no prediction counts")
  return float(sum(values) / len(values))


def percent(values: Iterable[float]) -> float:
  return 100 * mean(values)


def grouped(pairs: Iterable[tuple[str, float]]) -> dict[str, list[float]]:
  groups: dict[str, list[float]] = {}
  for name, value in pairs:
    groups.setdefault(name, []).append(value)
  return groups
