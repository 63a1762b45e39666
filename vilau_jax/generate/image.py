"""Image and video generation: T visual positions a frame, R codes a position, guided in pairs."""

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence as List

import jax
import numpy as np

from vilau_jax.data.sequence import Sequence
from vilau_jax.generate import sampling
from vilau_jax.generate.cache import bucket, check_context, left_pad
from vilau_jax.generate.engine import Draws, Engine
from vilau_jax.generate.text import check_finite

Paint = Callable[[np.ndarray, int], np.ndarray]  # codes [n, done, R], total -> pictures


@dataclasses.dataclass(frozen=True)
class Progress:
  """State of a batch that is being drawn.

  Attributes:
    outputs: indices of its outputs among all that were asked for.
    done: visual positions finished.
    total: visual positions of an output, frames * T.
    codes: int32 [n, done, R].
  """

  outputs: range
  done: int
  total: int
  codes: np.ndarray
  paint: Paint | None = dataclasses.field(default=None, repr=False)

  def preview(self) -> np.ndarray:
    """The pictures as far as they are drawn: uint8 [n, S, S, 3], for videos [n, F, S, S, 3]."""
    return self.paint(self.codes, self.total)


def generate_codes(
  engine: Engine,
  prompts: List[Sequence],
  unconditional: Sequence,
  wish: sampling.Sampling,
  seeds: List[int],
  *,
  frames: int = 1,
  batch_size: int = 16,
  drawn: List[int] | None = None,
  on_progress: Callable[[Progress], None] | None = None,
  paint: Paint | None = None,
) -> np.ndarray:
  """Draws one image (frames=1) or video for every prompt.

  Args:
    engine: a model with tower, projector and depth transformer.
    prompts: sequences that end in <im_start> or <vi_start>.
    unconditional: the prompt of the unconditional half, with the same end.
    wish: how to draw.
    seeds: one a prompt.
    frames: of every output.
    batch_size: outputs that are drawn at once; guidance doubles the rows.
    drawn: per prompt, how many positions were drawn for it before (for its keys).
    on_progress: called when a row of the grid is finished.
    paint: how Progress.preview makes pictures of codes.

  Returns:
    int32 [n, frames * T, R].

  Raises:
    ValueError: if a prompt leaves no room in the context, or logits are not finite.
  """
  total = frames * engine.config.tower.image_tokens
  lengths = [len(p.tokens) for p in prompts]
  check_context([*lengths, len(unconditional.tokens)], total - 1, engine.context)
  drawn = [0] * len(prompts) if drawn is None else list(drawn)
  parts = []
  for start in range(0, len(prompts), batch_size):
    at = slice(start, start + batch_size)
    here = range(start, min(start + batch_size, len(prompts)))
    parts.append(
      _batch(engine, prompts[at], unconditional, wish, seeds[at], drawn[at], total, here,
             batch_size, on_progress and (lambda *a: on_progress(Progress(*a, paint))))
    )  # fmt: skip
  return np.concatenate(parts)


def _batch(
  engine, prompts, unconditional, wish, seeds, drawn, total, outputs, batch_size, on_progress
) -> np.ndarray:
  count = len(prompts)
  rows = min(bucket(count, 1), batch_size)  # the last batch rarely needs a program of its own
  extra = rows - count
  prompts = [*prompts, *[prompts[-1]] * extra]
  entries = engine.config.tower.quantizer.entries
  switches, values = wish.switches(entries), wish.values(entries)
  pairs = [*prompts, *[unconditional] * rows] if switches.guided else prompts
  state = engine.start(left_pad(pairs, engine.depth), room=total)
  keys = sampling.output_keys([*seeds, *[0] * extra])
  before = np.asarray([*drawn, *[0] * extra], np.int32)
  grid = engine.config.tower.grid
  steps = engine.steps_at_once
  codes = []
  for first in range(0, total, steps):
    draws = Draws(keys, before + first, values)
    state, new, finite = engine.visual_chunk(state, first, draws, switches, steps)
    codes.append(new)
    done = first + steps
    if done % grid == 0:
      finite = jax.device_get(finite)
      check_finite(finite[:count], f"visual position {done - 1}", "output")
      if on_progress is not None:
        so_far = np.concatenate(jax.device_get(codes), axis=1)[:count]
        on_progress(outputs, done, total, so_far)
  return np.concatenate(jax.device_get(codes), axis=1)[:count]
