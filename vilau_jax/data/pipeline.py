"""Batches for training: a weighted mixture of records whose order is a pure function.

Every stage reads a Grain MapDataset whose element i is this process's part of the global batch of
step i. It depends on the seed and i alone, so the position in the data is one integer, and neither
the number of processes nor that of reading threads changes what is trained on.

Language model: the mixture is an endless stream of samples; every `window` of them is planned into
rows by first fit (data/packing.py), and the rows of a window come in a drawn order. Finding row g
means counting the rows of earlier windows, which is done once, on demand, from the samples' sizes,
about 80 microseconds a sample. A run that goes on is spared that: each of its batches says in which
window it began and how many rows came before it (an anchor), and a checkpoint keeps that.
"""

import bisect
import dataclasses
import functools
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import logging
from etils import epath

from vilau_jax.data import forms, packing, scanned, sequence
from vilau_jax.data.records import Records
from vilau_jax.data.tokenizer import Tokenizer

ENDLESS = 2**40
Anchor = tuple[int, int]  # a window of the mixture, and how many rows the windows before it gave
START: Anchor = (0, 0)
NAMED = 20  # of the records that are left out
LIGHT_RECORDS = 200_000  # data sets up to this size keep their records' texts in memory
HEAVY = ("images", "frames", "codes", "codes_crop", "scene")


def lm_dataset(
  data: Mapping[str, Any],
  settings: forms.SequenceSettings,
  tokenizer: Tokenizer,
  quantizer_depth: int,
  *,
  batch_size: int,
  seed: int,
  tower_id: str | None = None,
  process_index: int | None = None,
  process_count: int | None = None,
  anchor: Anchor | None = None,
  cache: epath.PathLike | None = None,
) -> grain.MapDataset:
  """Packed rows for the language model.

  Args:
    data: `mixture`, a sequence of dict(path, form, weight) (weight: relative number of samples),
      and `row` with length, slots, targets and window (samples planned together, default 512).
    settings: how records become sequences.
    quantizer_depth: R.
    batch_size: rows of all processes together.
    tower_id: of the model's tower; records with codes of another one are refused.
    process_index, process_count: those of JAX when None.
    anchor: (window, rows before it), as a batch said it: rows from there on are found without
      counting. It changes no row. None: batches carry no anchor.
    cache: directory where the sizes of all samples are kept for the next time; None keeps none.

  Returns:
    element i: the arrays of packing.pack with a leading axis of batch_size / process_count, and
    with an anchor "anchor" int64 [2], that of the batch.

  Raises:
    ValueError: for records without codes or with those of another tower, a form that the records
      cannot give, no sample that fits into a row, or a batch that the processes cannot share.
  """
  row = data["row"]
  shape = packing.RowShape(row["length"], row["slots"], row["targets"], quantizer_depth)
  sources = [
    Source(entry["path"], entry["form"], tokenizer, settings, shape, tower_id, cache)
    for entry in data["mixture"]
  ]
  stream = mixture([s.usable for s in sources], [e["weight"] for e in data["mixture"]], seed)
  rows = PackedRows(sources, stream, shape, int(row.get("window", 512)), seed, anchor or START)
  dataset = steps(rows.__getitem__, batch_size, process_index, process_count)
  if anchor is None:
    return dataset
  return grain.MapDataset.range(ENDLESS).map(
    lambda step: dataset[step] | {"anchor": np.array(rows.anchor(step * batch_size))}
  )


def lm_records(
  data: Mapping[str, Any],
  settings: forms.SequenceSettings,
  tokenizer: Tokenizer,
  quantizer_depth: int,
  *,
  batch_size: int,
  seed: int,
  step: int,
  anchor: Anchor = START,
  tower_id: str | None = None,
  cache: epath.PathLike | None = None,
) -> list[list[dict[str, Any]]]:
  """Which records make the rows of one batch: path, number and id of each, row by row.

  Args are those of lm_dataset.
  """
  row = data["row"]
  shape = packing.RowShape(row["length"], row["slots"], row["targets"], quantizer_depth)
  sources = [
    Source(e["path"], e["form"], tokenizer, settings, shape, tower_id, cache)
    for e in data["mixture"]
  ]
  stream = mixture([s.usable for s in sources], [e["weight"] for e in data["mixture"]], seed)
  rows = PackedRows(sources, stream, shape, int(row.get("window", 512)), seed, anchor)
  first = step * batch_size
  return [
    [named(sources[which].records, number) for which, number in map(stream.__getitem__, positions)]
    for positions in map(rows.positions, range(first, first + batch_size))
  ]


def named(records: Records, number: int) -> dict[str, Any]:
  """How a record is called in messages."""
  return {
    "path": str(records.path), "number": int(number), "id": records[int(number)].get("id")
  }  # fmt: skip


def mixture(
  members: Sequence[Sequence[int]], weights: Sequence[float], seed: int
) -> grain.MapDataset:
  """An endless stream of (source, record number): every source shuffled anew in each of its
  epochs, drawn in proportion to the weights.

  Raises:
    ValueError: for no source, an empty one, or weights that are not positive.
  """
  if not members:
    raise ValueError("data.mixture is empty: give at least one dict(path=.., form=.., weight=..)")
  if any(not weight > 0 for weight in weights):
    raise ValueError(f"the weights of data.mixture must be positive, got {list(weights)}")
  parts = []
  for which, numbers in enumerate(members):
    own = int(np.random.SeedSequence((seed, which)).generate_state(1)[0])
    part = grain.MapDataset.source(numbers).seed(own).shuffle()
    parts.append(part.map(functools.partial(_tagged, which)).repeat(None))
  return grain.MapDataset.mix(parts, weights)


def _tagged(which: int, number: int) -> tuple[int, int]:
  return which, int(number)


class Source:
  """One entry of the mixture: its records, their form, and how large their samples are.

  Attributes:
    usable: numbers of the records whose largest sample fits into a row.

  Raises:
    ValueError: see lm_dataset.
  """

  def __init__(
    self,
    path: str,
    form: str,
    tokenizer: Tokenizer,
    settings: forms.SequenceSettings,
    shape: packing.RowShape,
    tower_id: str | None,
    cache: epath.PathLike | None = None,
  ):
    if form not in forms.FORMS:
      raise ValueError(f"data.mixture: unknown form {form!r} of {path}; known: {forms.FORMS}")
    self.records, self.form = Records(path), form
    self.tokenizer, self.settings = tokenizer, settings
    self.random = settings.is_random(form)
    self._light: dict[int, dict[str, Any]] = {}
    facts = [form, dataclasses.asdict(settings), tower_id, _hash(tokenizer.path)]
    sizes = scanned.load(cache, self.records, facts)
    if sizes is None:
      sizes = np.zeros((len(self.records), 3), np.int32)
      for number, record in enumerate(self.records):
        _check_tower(record, tower_id, self.records.path)
        sizes[number] = self._located(sequence.largest, self._keep(number, record))
      scanned.save(cache, self.records, facts, sizes)
    good = packing.fits(sizes, shape)
    self.sizes = sizes
    self.usable = np.flatnonzero(good)
    if not len(self.usable):
      raise ValueError(
        f"no sample of {path} ({form}) fits into a row: the smallest needs "
        f"{sizes[sizes[:, 0].argmin()].tolist()} (tokens, slots, targets), data.row has "
        f"{shape.room.tolist()}"
      )
    self.dropped = len(good) - len(self.usable)
    if self.dropped:
      names = [str(self.records[int(n)].get("id")) for n in np.flatnonzero(~good)[:NAMED]]
      logging.warning(
        "%s (%s): %d of %d records are left out, because their samples need more than a row of %s "
        "(tokens, slots, targets); the largest needs %s: %s%s",
        path, form, self.dropped, len(good), shape.room.tolist(), sizes.max(0).tolist(),
        ", ".join(names), ", .." if self.dropped > NAMED else "",
      )  # fmt: skip

  def size(self, number: int, rng: Callable[[], np.random.Generator]) -> np.ndarray:
    """(tokens, slots, targets) of a visit."""
    if not self.random:
      return self.sizes[number]
    light = self._light.get(number) or self._keep(number, self.records[number])
    return np.array(sequence.measure(light, self.form, self.tokenizer, self.settings, rng()))

  def _keep(self, number: int, record: dict[str, Any]) -> dict[str, Any]:
    light = _light(record)
    if len(self.records) <= LIGHT_RECORDS:
      self._light[number] = light
    return light

  def sample(self, number: int, rng: np.random.Generator) -> sequence.Sequence:
    """The sequence of a visit."""
    return self._located(sequence.from_record, self.records[number], rng)

  def _located(self, function, record, *rest):
    try:
      return function(record, self.form, self.tokenizer, self.settings, *rest)
    except ValueError as error:
      raise ValueError(f"{self.records.path}: {error}") from error


class PackedRows:
  """Random access to the endless list of packed rows; safe to use from several threads."""

  def __init__(
    self,
    sources: Sequence[Source],
    stream: grain.MapDataset,
    shape: packing.RowShape,
    window: int,
    seed: int,
    anchor: Anchor = START,
  ):
    if window < 1:
      raise ValueError(f"data.row.window must be at least 1, got {window}")
    self.sources, self.stream, self.shape = sources, stream, shape
    self.window, self.seed = window, seed
    self.branches = any(source.settings.independent_turns for source in sources)
    # Number of rows before each window that was counted; the first of them is window self._first.
    self._first, self._starts = anchor[0], [anchor[1]]
    self._remember()

  def _remember(self) -> None:
    self._lock = threading.Lock()
    self._plan = functools.lru_cache(maxsize=8)(self._plan_window)

  def __getstate__(self) -> dict[str, Any]:  # on its way to a process that reads ahead
    return {name: value for name, value in vars(self).items() if name not in ("_lock", "_plan")}

  def __setstate__(self, state: dict[str, Any]) -> None:
    vars(self).update(state)
    self._remember()

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    samples = [self._sample(p) for p in self.positions(index)]
    return packing.pack(samples, self.shape, branches=self.branches)

  def positions(self, index: int) -> list[int]:
    """Where in the stream the samples of row `index` stand."""
    window, before = self.anchor(index)
    return self._plan(window)[index - before]

  def anchor(self, index: int) -> Anchor:
    """The window that row `index` is in, and the number of rows before that window."""
    with self._lock:
      if index < self._starts[0]:
        self._first, self._starts = START[0], [START[1]]
      while self._starts[-1] <= index:
        window = self._first + len(self._starts) - 1
        self._starts.append(self._starts[-1] + len(self._plan(window)))
      place = bisect.bisect_right(self._starts, index) - 1
      return self._first + place, self._starts[place]

  def _plan_window(self, window: int) -> list[list[int]]:
    first = window * self.window
    sizes = []
    for position in range(first, first + self.window):
      which, number = self.stream[position]
      sizes.append(self.sources[which].size(number, functools.partial(self._rng, position)))
    rows = packing.plan(np.stack(sizes), self.shape)
    order = np.random.default_rng((self.seed, 1, window)).permutation(len(rows))
    return [[first + place for place in rows[i]] for i in order]

  def _sample(self, position: int) -> sequence.Sequence:
    which, number = self.stream[position]
    return self.sources[which].sample(number, self._rng(position))

  def _rng(self, position: int) -> np.random.Generator:
    return np.random.default_rng((self.seed, 0, position))


def steps(
  sample: Callable[[int], dict[str, np.ndarray]],
  batch_size: int,
  process_index: int | None,
  process_count: int | None,
) -> grain.MapDataset:
  """Element i: samples [i*B, (i+1)*B) of the stream, this process's contiguous part, stacked."""
  index = jax.process_index() if process_index is None else process_index
  count = jax.process_count() if process_count is None else process_count
  if batch_size < 1 or batch_size % count:
    raise ValueError(f"batch_size {batch_size} cannot be shared by {count} processes")
  share = batch_size // count

  def batch(step: int) -> dict[str, np.ndarray]:
    first = step * batch_size + index * share
    rows = [sample(i) for i in range(first, first + share)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

  return grain.MapDataset.range(ENDLESS).map(batch)


def _hash(file: epath.PathLike) -> str:
  return hashlib.sha256(epath.Path(file).read_bytes()).hexdigest()


def _light(record: Mapping[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in record.items() if name not in HEAVY}


def _check_tower(record: Mapping[str, Any], tower_id: str | None, path) -> None:
  made_by = record.get("tower_id")
  if tower_id is not None and made_by is not None and made_by != tower_id:
    raise ValueError(
      f"{path}: its codes were made by tower {made_by}, the model's tower is {tower_id}: run "
      "`vilau tokenize --model=.. --records=.. --output=..` with this tower"
    )
