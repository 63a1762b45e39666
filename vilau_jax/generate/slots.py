"""Continuous batching: a fixed number of rows of the cache, each refilled when its output is done.

All rows write into the same column, and behind the last column comes the first. A new prompt is put
into the columns before the present one, wherever the others are; what its row held is forgotten. So
the step programs know nothing of refilling, and a row has its place in the ring as long as prompt
and output fit into it together. Axis letters: n slots, B rows of the cache (with guidance B = 2n,
conditional rows first), M columns, L columns of new prompts, b new rows, R residual depth.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as List
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vilau_jax.data.sequence import Sequence
from vilau_jax.generate import sampling
from vilau_jax.generate.cache import State, bucket, check_context
from vilau_jax.generate.engine import Draws, Engine
from vilau_jax.generate.start import begin
from vilau_jax.generate.text import check_finite


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
  """One output.

  Attributes:
    prompt: what it begins with.
    seed: of its own.
    steps: tokens at most, or visual positions exactly.
    tag: whatever the caller wants back.
  """

  prompt: Sequence
  seed: int
  steps: int
  tag: Any = None


class Slots:
  """The rows and who has them.

  Attributes:
    count: n.
    jobs: who is in each slot, None = free.
    numbers: int32 [n], steps that each one has made.
    state: of B rows, or None before the first job.
  """

  def __init__(self, engine: Engine, count: int, unconditional: Sequence | None = None):
    """Args: n, rounded up to a multiple of the engine's shares; the prompt of unconditional rows
    for guidance, or None."""
    self.engine = engine
    self.count = -(-count // engine.ways) * engine.ways
    self.jobs: list[Job | None] = [None] * self.count
    self.numbers = np.zeros(self.count, np.int32)
    self.state: State | None = None
    self._unconditional = [] if unconditional is None else [unconditional]
    self._seeds = [0] * self.count
    self._keys = None
    self._waiting: collections.deque[Job] = collections.deque()
    self._too_long: Job | None = None

  @property
  def running(self) -> list[int]:
    """Slots that are not free."""
    return [i for i, job in enumerate(self.jobs) if job is not None]

  def fill(self, jobs: Iterator[Job]) -> bool:
    """Gives free slots to the next jobs; False when nothing is left to do."""
    free = [i for i, job in enumerate(self.jobs) if job is None]
    self._waiting += itertools.islice(jobs, max(0, len(free) - len(self._waiting)))
    if self._waiting and len(free) == self.count:
      self._restart()
    elif self._waiting and free and self._waiting[0] is not self._too_long:
      self._refill(free)
    return bool(self.running)

  def free(self, slot: int) -> Job:
    """Ends the job of a slot."""
    job, self.jobs[slot] = self.jobs[slot], None
    return job

  def draws(self, values: dict[str, Any]) -> Draws:
    """Randomness of the next step."""
    if self._keys is None:
      self._keys = sampling.output_keys(self._seeds)
    return Draws(self._keys, self.numbers.copy(), values)

  def _restart(self) -> None:
    here = [self._waiting.popleft() for _ in range(min(self.count, len(self._waiting)))]
    prompts = [job.prompt for job in here]
    prompts += prompts[-1:] * (self.count - len(prompts))
    room = bucket(max(job.steps for job in here))
    self.state = None  # its memory is free before the next one is made
    self.state = begin(self.engine, [*prompts, *self._unconditional * self.count], room)
    self._enter(here, range(len(here)))

  def _refill(self, free: List[int]) -> None:
    here = [self._waiting[i] for i in range(min(len(free), len(self._waiting)))]
    rows = bucket(len(here), 1)
    prompts = [job.prompt for job in here]
    prompts += prompts[-1:] * (rows - len(prompts))
    fresh = begin(self.engine, [*prompts, *self._unconditional * rows], room=0)
    columns = fresh.valid.shape[1] + max(job.steps for job in here)
    if columns > self.state.valid.shape[1]:
      self._too_long = here[0]  # for the ring: it waits until all slots are free
      return
    slots = np.full(rows, 2 * self.count, np.int32)  # beyond the last row: dropped
    slots[: len(here)] = free[: len(here)]
    if self._unconditional:
      slots = np.concatenate([slots, slots + self.count])
    with self.engine.scope():
      self.state = insert(self.state, fresh, slots)
    for _ in here:
      self._waiting.popleft()
    self._enter(here, free)

  def _enter(self, jobs: List[Job], slots: Iterable[int]) -> None:
    for job, slot in zip(jobs, slots):
      self.jobs[slot], self._seeds[slot], self.numbers[slot] = job, job.seed, 0
    self._keys = None


@functools.partial(jax.jit, donate_argnames=("state",))
def insert(state: State, fresh: State, rows: jax.Array) -> State:
  """Puts new rows into a running state, so that they too go on in its present column.

  Args:
    state: B rows of M columns; donated.
    fresh: b rows of L <= M columns, without room behind.
    rows: int32 [b], the row of `state` that each takes; rows beyond B are dropped.
  """
  columns, length = state.valid.shape[1], fresh.valid.shape[1]
  at = (state.column - length + jnp.arange(length)) % columns

  def put(old: jax.Array, new: jax.Array) -> jax.Array:
    return old.at[rows[:, None], :, at[None]].set(new.swapaxes(1, 2), mode="drop")

  valid = jnp.zeros((len(rows), columns), bool).at[:, at].set(fresh.valid)
  return State(
    caches=jax.tree.map(put, state.caches, fresh.caches),
    valid=state.valid.at[rows].set(valid, mode="drop"),
    column=state.column,
    position=state.position.at[rows].set(fresh.position, mode="drop"),
    pending=state.pending.at[rows].set(fresh.pending, mode="drop"),
  )


def write(
  engine: Engine,
  jobs: Iterable[Job],
  wish: sampling.Sampling,
  *,
  slots: int,
  stop: List[int],
  on_step: Callable[[int], None] = lambda made: None,
) -> Iterator[tuple[Job, list[int]]]:
  """Writes texts; yields each job with its ids (and the stop id, if it came) when it is finished.

  Args:
    engine: the model.
    jobs: read as slots become free, so there may be any number of them.
    wish: how to draw.
    slots: n.
    stop: ids that end a text.
    on_step: called before every step, so only while there is something to do, with how many tokens
      the one before it made; what it raises ends the work.

  Raises:
    ValueError: if a job exceeds the context, or logits are not finite.
  """
  rows, jobs = Slots(engine, slots), _checked(jobs, engine.context, 0)
  entries = engine.config.llm.vocab_size
  switches, values = wish.switches(entries), wish.values(entries)
  made: list[list[int]] = [[] for _ in range(rows.count)]
  running: list[int] = []
  while rows.fill(jobs):
    on_step(len(running))
    rows.state, tokens, finite = engine.text_step(rows.state, rows.draws(values), switches)
    tokens, finite = jax.device_get((tokens, finite))
    running = rows.running
    check_finite(finite[running], f"a token of rows {running[:10]}", "output")
    rows.numbers += 1
    for i in running:
      made[i].append(int(tokens[i]))
      if tokens[i] in stop or len(made[i]) == rows.jobs[i].steps:
        yield rows.free(i), made[i]
        made[i] = []


def draw(
  engine: Engine,
  jobs: Iterable[Job],
  unconditional: Sequence,
  wish: sampling.Sampling,
  *,
  slots: int,
  on_step: Callable[[int], None] = lambda made: None,
) -> Iterator[tuple[Job, np.ndarray]]:
  """Draws pictures and videos; yields each job with its codes int32 [steps, R] when it is finished.

  Args:
    engine: a model with tower, projector and depth transformer.
    jobs: as for write; `steps` is a multiple of the grid's side.
    unconditional: the prompt of the unconditional half.
    wish: how to draw.
    slots: n; guidance doubles the rows.
    on_step: as for write, before every row of the grid, with positions.

  Raises:
    ValueError: if a job exceeds the context, or logits are not finite.
  """
  entries, grid = engine.config.tower.quantizer.entries, engine.config.tower.grid
  switches, values = wish.switches(entries), wish.values(entries)
  rows = Slots(engine, slots, unconditional if switches.guided else None)
  jobs = _checked(jobs, engine.context, -1)
  made: list[list[np.ndarray]] = [[] for _ in range(rows.count)]
  running: list[int] = []
  while rows.fill(jobs):
    on_step(len(running) * grid)
    results = []
    for _ in range(0, grid, engine.steps_at_once):
      first = np.tile(rows.numbers, 2 if switches.guided else 1)[:, None]
      rows.state, *new = engine.visual_chunk(
        rows.state, first, rows.draws(values), switches, engine.steps_at_once
      )
      results.append(new)
      rows.numbers += engine.steps_at_once
    codes, finite = zip(*jax.device_get(results))
    running = rows.running
    check_finite(np.all(finite, axis=0)[running], f"a position of rows {running[:10]}", "output")
    codes = np.concatenate(codes, axis=1)
    for i in running:
      made[i].append(codes[i])
      if rows.numbers[i] == rows.jobs[i].steps:
        yield rows.free(i), np.concatenate(made[i])
        made[i] = []


def _checked(jobs: Iterable[Job], context: int, more: int) -> Iterator[Job]:
  for job in jobs:
    check_context([len(job.prompt.tokens)], job.steps + more, context)
    yield job
