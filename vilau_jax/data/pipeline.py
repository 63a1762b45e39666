"""Batches for training: a weighted mixture of records whose order is a pure function.

Every stage reads a Grain MapDataset whose element i is this process's part of the global batch of
step i. It depends on the seed and i alone, so the position in the data is one integer, and neither
the number of processes nor that of reading threads changes what is trained on.

Language model: the mixture is an endless stream of samples; every `window` of them is planned into
rows by first fit (data/packing.py), and the rows of a window come in a drawn order. Finding row g
means counting the rows of earlier windows, which is done once, on demand, from the samples' sizes:
about 80 microseconds a sample, so a run resumed after 100,000 samples thinks for eight seconds.
"""

import bisect
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np
from absl import logging

from vilau_jax.data import forms, packing, sequence
from vilau_jax.data.records import Records
from vilau_jax.data.tokenizer import Tokenizer

ENDLESS = 2**40
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

  Returns:
    element i: the arrays of packing.pack with a leading axis of batch_size / process_count.

  Raises:
    ValueError: for records without codes or with those of another tower, a form that the records
      cannot give, no sample that fits into a row, or a batch that the processes cannot share.
  """
  row = data["row"]
  shape = packing.RowShape(row["length"], row["slots"], row["targets"], quantizer_depth)
  sources = [
    Source(entry["path"], entry["form"], tokenizer, settings, shape, tower_id)
    for entry in data["mixture"]
  ]
  stream = mixture([s.usable for s in sources], [e["weight"] for e in data["mixture"]], seed)
  rows = PackedRows(sources, stream, shape, int(row.get("window", 512)), seed)
  return steps(rows.__getitem__, batch_size, process_index, process_count)


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
  ):
    if form not in forms.FORMS:
      raise ValueError(f"data.mixture: unknown form {form!r} of {path}; known: {forms.FORMS}")
    self.records, self.form = Records(path), form
    self.tokenizer, self.settings = tokenizer, settings
    self.random = settings.is_random(form)
    self._light: list[dict[str, Any]] | None = [] if len(self.records) <= LIGHT_RECORDS else None
    sizes = np.zeros((len(self.records), 3), np.int32)
    for number, record in enumerate(self.records):
      _check_tower(record, tower_id, self.records.path)
      light = _light(record)
      sizes[number] = self._located(sequence.largest, light)
      if self._light is not None:
        self._light.append(light)
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
    light = self._light[number] if self._light is not None else _light(self.records[number])
    return np.array(sequence.measure(light, self.form, self.tokenizer, self.settings, rng()))

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
  ):
    if window < 1:
      raise ValueError(f"data.row.window must be at least 1, got {window}")
    self.sources, self.stream, self.shape = sources, stream, shape
    self.window, self.seed = window, seed
    self.branches = any(source.settings.independent_turns for source in sources)
    self._starts = [0]  # number of rows before each window that was counted
    self._lock = threading.Lock()
    self._plan = functools.lru_cache(maxsize=8)(self._plan_window)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    samples = [self._sample(p) for p in self.positions(index)]
    return packing.pack(samples, self.shape, branches=self.branches)

  def positions(self, index: int) -> list[int]:
    """Where in the stream the samples of row `index` stand."""
    with self._lock:
      while self._starts[-1] <= index:
        self._starts.append(self._starts[-1] + len(self._plan(len(self._starts) - 1)))
      window = bisect.bisect_right(self._starts, index) - 1
      return self._plan(window)[index - self._starts[window]]

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


def _light(record: Mapping[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in record.items() if name not in HEAVY}


def _check_tower(record: Mapping[str, Any], tower_id: str | None, path) -> None:
  made_by = record.get("tower_id")
  if tower_id is not None and made_by is not None and made_by != tower_id:
    raise ValueError(
      f"{path}: its codes were made by tower {made_by}, the model's tower is {tower_id}: run "
      "`vilau tokenize --model=.. --records=.. --output=..` with this tower"
    )
