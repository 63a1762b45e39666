"""Image and video generation: T visual positions a frame, R codes a position, guided in pairs."""

import dataclasses
from collections.abc import Callable, Iterator
from collections.abc import Sequence as List

import jax
import numpy as np

from vilau_jax.data.sequence import Sequence, extended
from vilau_jax.generate import sampling
from vilau_jax.generate.cache import bucket, check_context
from vilau_jax.generate.engine import Draws, Engine
from vilau_jax.generate.start import begin
from vilau_jax.generate.text import check_finite

Paint = Callable[[np.ndarray, int], np.ndarray]  # codes [n, done, R'], total -> pictures


class Cancelled(Exception):
  """Generation was ended by the `cancel` that was handed in."""


@dataclasses.dataclass(frozen=True)
class Progress:
  """State of a batch that is being drawn.

  Attributes:
    outputs: indices of its outputs among all that were asked for.
    done: visual positions finished.
    total: visual positions of an output, frames * T.
    codes: int32 [n, done, R].
    passes: int32 [n], what each output took so far where it is drawn speculatively, else None.
  """

  outputs: range
  done: int
  total: int
  codes: np.ndarray
  paint: Paint | None = dataclasses.field(default=None, repr=False)
  passes: np.ndarray | None = None

  def preview(self, depths: int | None = None) -> np.ndarray:
    """The pictures as far as they are drawn: uint8 [n, S, S, 3], for videos [n, F, S, S, 3].

    Args:
      depths: draws from the first so many codes of every position, a coarser picture; None: all.

    Raises:
      ValueError: if `depths` is not in 1..R.
    """
    r = self.codes.shape[-1]
    if depths is not None and not 1 <= depths <= r:
      raise ValueError(f"depths must be in 1..{r}, got {depths}")
    return self.paint(self.codes[..., :depths], self.total)


def generate_codes(
  engine: Engine,
  prompts: List[Sequence],
  unconditional: Sequence,
  wish: sampling.Sampling,
  seeds: List[int],
  **kwargs,
) -> np.ndarray:
  """Draws one image (frames=1) or video for every prompt; see stream_codes for the arguments.

  Returns:
    int32 [n, frames * T, R].

  Raises:
    ValueError: if a prompt leaves no room in the context, or logits are not finite.
  """
  return finished(stream_codes(engine, prompts, unconditional, wish, seeds, **kwargs))


def finished(
  steps: Iterator[Progress],
  on_progress: Callable[[Progress], None] | None = None,
  cancel: Callable[[], bool] | None = None,
) -> np.ndarray:
  """Runs to the end of what stream_codes yields: codes int32 [n, frames * T, R].

  Args:
    steps: of image.stream_codes or speculative.stream_codes.
    on_progress: called with each of them.
    cancel: asked after each but the last of a batch; True ends the work.

  Raises:
    Cancelled: if `cancel` said so.
  """
  parts = []
  for progress in steps:
    if on_progress is not None:
      on_progress(progress)
    if progress.done == progress.total:
      parts.append(progress.codes)
    elif cancel is not None and cancel():
      raise Cancelled(f"after {progress.done} of {progress.total} visual positions")
  return np.concatenate(parts)


def stream_codes(
  engine: Engine,
  prompts: List[Sequence],
  unconditional: Sequence,
  wish: sampling.Sampling,
  seeds: List[int],
  *,
  frames: int = 1,
  batch_size: int = 16,
  drawn: List[int] | None = None,
  given: np.ndarray | None = None,
  paint: Paint | None = None,
) -> Iterator[Progress]:
  """Draws one image (frames=1) or video for every prompt, and says how far it is.

  Args:
    engine: a model with tower, projector and depth transformer.
    prompts: sequences that end in <im_start> or <vi_start>.
    unconditional: the prompt of the unconditional half, with the same end.
    wish: how to draw.
    seeds: one a prompt.
    frames: of every output.
    batch_size: outputs that are drawn at once; guidance doubles the rows.
    drawn: per prompt, how many positions were drawn for it before (for its keys).
    given: int32 [n, g, R], codes with which the outputs begin, or None. Both halves see them, so
      guidance is about the text.
    paint: how Progress.preview makes pictures of codes.

  Yields:
    A Progress for every finished row of the grid, batch after batch; the last one of a batch has
    done == total.

  Raises:
    ValueError: if a prompt leaves no room in the context, or logits are not finite.
  """
  total = frames * engine.config.tower.image_tokens
  lengths = [len(p.tokens) for p in prompts]
  check_context([*lengths, len(unconditional.tokens)], total - 1, engine.context)
  drawn = [0] * len(prompts) if drawn is None else list(drawn)
  for start in range(0, len(prompts), batch_size):
    at = slice(start, start + batch_size)
    here = range(start, min(start + batch_size, len(prompts)))
    known = None if given is None else given[at]
    steps = _batch(
      engine, prompts[at], unconditional, wish, seeds[at], drawn[at], total, batch_size, known
    )
    for codes in steps:
      yield Progress(here, codes.shape[1], total, codes, paint)


def _batch(
  engine, prompts, unconditional, wish, seeds, drawn, total, batch_size, given
) -> Iterator[np.ndarray]:
  """Codes so far [n, done, R], whenever a row of the grid is finished."""
  count = len(prompts)
  rows = min(bucket(count, 1), batch_size)  # the last batch rarely needs a program of its own
  extra = rows - count
  known = 0 if given is None else given.shape[1]
  halves = [unconditional] * count
  if known:
    prompts = [extended(p, codes=c) for p, c in zip(prompts, given)]
    halves = [extended(unconditional, codes=c) for c in given]
  prompts, halves = ([*half, *[half[-1]] * extra] for half in (prompts, halves))
  entries = engine.config.tower.quantizer.entries
  switches, values = wish.switches(entries), wish.values(entries)
  state = begin(engine, [*prompts, *halves] if switches.guided else prompts, room=total - known)
  keys = sampling.output_keys([*seeds, *[0] * extra])
  before = np.asarray([*drawn, *[0] * extra], np.int32)
  grid, steps = engine.config.tower.grid, engine.steps_at_once
  so_far = np.zeros((count, 0, engine.depth), np.int32) if given is None else given
  waiting = []  # codes and finiteness of the positions behind so_far
  for first in range(known, total, steps):
    draws = Draws(keys, before + first, values)
    state, *new = engine.visual_chunk(state, first, draws, switches, steps)
    waiting.append(new)
    done = first + steps
    if done % grid == 0:
      codes, finite = zip(*jax.device_get(waiting))
      waiting = []
      check_finite(np.all(finite, axis=0)[:count], f"visual position {done - 1}", "output")
      so_far = np.concatenate([so_far, *(c[:count] for c in codes)], axis=1)
      yield so_far
