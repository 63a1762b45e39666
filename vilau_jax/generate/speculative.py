"""Drawing several visual positions a pass: coupled speculative Jacobi decoding of residual codes.

A window of W drafted positions goes through the language model at once. The depth transformer then
gives, for every position, the distribution p of each code under the codes before it; a drafted code
that was drawn from q is kept with probability min(1, p/q) and else replaced by a draw from what p
has and q lacks, so that its distribution becomes p (a maximal coupling). A position whose context
was right is final, whatever became of it; those behind the first that changed are drafts of the
next pass. Finished pictures have exactly the distribution of drawing position after position; those
of a seed are others.

Speculative Jacobi decoding (arXiv 2410.01699) with couplings instead of fresh drafts (arXiv
2603.18599), carried to R codes a position. Axis letters: n outputs, b rows of one output (2 with
guidance), W window, R residual depth, E entries, D width, M cache columns.
"""

from collections.abc import Iterator
from collections.abc import Sequence as List
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vilau_jax.config import VilaUConfig
from vilau_jax.data.sequence import Sequence
from vilau_jax.generate import engine as programs
from vilau_jax.generate import image, sampling
from vilau_jax.generate.cache import bucket, check_context
from vilau_jax.generate.engine import Engine, compiled
from vilau_jax.generate.start import begin
from vilau_jax.generate.text import check_finite
from vilau_jax.models import depth as depth_transformer
from vilau_jax.models.vilau import VilaU


@flax.struct.dataclass
class Window:
  """One output between two passes; the program carries n of them.

  Attributes:
    caches: (keys, values) a layer, each [b, K, M, C].
    valid: bool [b, M], columns of the prompt.
    column: int32, the column that the next pass writes first.
    position: int32 [b], its rotary position.
    pending: [b, 1, D], the embedding of the last final position.
    done: int32, final positions.
    codes: int32 [W, R], drafts of positions done, done + 1, ...
    q: float32 [W, R, E], what each drafted code was drawn from.
    fresh: bool [W], placeholders, which were not drawn from anything.
  """

  caches: list[Any]
  valid: jax.Array
  column: jax.Array
  position: jax.Array
  pending: jax.Array
  done: jax.Array
  codes: jax.Array
  q: jax.Array
  fresh: jax.Array


def generate_codes(
  engine: Engine,
  prompts: List[Sequence],
  unconditional: Sequence,
  wish: sampling.Sampling,
  seeds: List[int],
  *,
  window: int = 8,
  **kwargs,
) -> tuple[np.ndarray, np.ndarray]:
  """Draws one image (frames=1) or video for every prompt; see stream_codes for the arguments.

  Returns:
    Codes int32 [n, frames * T, R], and int32 [n]: the passes each output took.

  Raises:
    ValueError: as stream_codes.
  """
  steps = stream_codes(engine, prompts, unconditional, wish, seeds, window=window, **kwargs)
  ends = [progress for progress in steps if progress.done == progress.total]
  codes, passes = zip(*((end.codes, end.passes) for end in ends))
  return np.concatenate(codes), np.concatenate(passes)


def stream_codes(
  engine: Engine,
  prompts: List[Sequence],
  unconditional: Sequence,
  wish: sampling.Sampling,
  seeds: List[int],
  *,
  window: int,
  frames: int = 1,
  batch_size: int = 16,
  given: np.ndarray | None = None,
  paint: image.Paint | None = None,
) -> Iterator[image.Progress]:
  """Draws as image.stream_codes does, and from the same distribution, whatever `wish` makes it.

  Args:
    window: W, drafted positions a pass; at most those of an output.
    given: not supported; must be None.
    engine, prompts, unconditional, wish, seeds, frames, batch_size, paint: as there.

  Yields:
    A Progress whenever the slowest output of a batch has finished a row of the grid.

  Raises:
    ValueError: if the window is no positive number, a prompt leaves no room in the context, logits
      are not finite, or for an engine or `given` that this does not support.
  """
  if window < 1:
    raise ValueError(f"window must be at least 1, got {window}")
  for wanted, what in (
    (engine.quantized, f"weights in {engine.quantized}"),
    (engine.mesh is not None, "a model that lies on a mesh of devices"),
    (given is not None, "outputs with a given beginning (first frames)"),
  ):
    if wanted:
      raise ValueError(f"speculative drawing does not support {what}; leave it out")
  total, n = frames * engine.config.tower.image_tokens, len(prompts)
  window = min(window, total)  # more are never kept, and would take memory
  lengths = [len(p.tokens) for p in prompts]
  check_context([*lengths, len(unconditional.tokens)], total - 1, engine.context)
  for start in range(0, n, batch_size):
    here = range(start, min(start + batch_size, n))
    rows = min(bucket(len(here), 1), batch_size)  # few programs, as in image.py
    at = [*here, *[here[-1]] * (rows - len(here))]
    batch = [prompts[i] for i in at], unconditional, wish, [seeds[i] for i in at]
    for codes, passes in _batch(engine, *batch, total, window, len(here)):
      yield image.Progress(here, codes.shape[1], total, codes, paint, passes)


def _batch(
  engine, prompts, unconditional, wish, seeds, total: int, window: int, count: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Codes that all of the first `count` outputs have [count, done, R] and passes [count], whenever
  there is another row of the grid."""
  entries, grid, n = engine.config.tower.quantizer.entries, engine.config.tower.grid, len(prompts)
  switches, values = wish.switches(entries), wish.values(entries)
  pairs = [*prompts, *[unconditional] * n] if switches.guided else prompts
  windows = open_windows(begin(engine, pairs, room=total + window), n, window, engine.config)
  keys = sampling.output_keys(seeds)
  codes = np.zeros((n, total + window, engine.depth), np.int32)
  done, passes = np.zeros(n, int), np.zeros(n, np.int32)
  shown = 0
  for number in range(total):
    running = done < total
    windows, drawn, final, finite = advance(
      engine.params, engine.codebook, windows, keys, np.int32(number), values,
      config=engine.config, switches=switches, total=total,
    )  # fmt: skip
    drawn, final, finite = jax.device_get((drawn, final, finite))
    check_finite(finite[:count] | ~running[:count], f"pass {number}", "output")
    for i in np.flatnonzero(running):
      codes[i, done[i] : done[i] + final[i]] = drawn[i, : final[i]]
    passes += running
    done = np.minimum(done + final, total)
    ready = done[:count].min() // grid * grid
    if ready > shown:
      shown = ready
      yield codes[:count, :ready].copy(), passes[:count].copy()
    if ready == total:
      return


def open_windows(state: programs.State, n: int, window: int, config: VilaUConfig) -> Window:
  """A state after its prompts -> placeholders; axis 0 becomes outputs, axis 1 their rows."""
  codes = config.tower.quantizer
  rows = lambda leaf: jnp.swapaxes(leaf.reshape(-1, n, *leaf.shape[1:]), 0, 1)  # noqa: E731
  return Window(
    caches=jax.tree.map(rows, state.caches),
    valid=rows(state.valid),
    column=jnp.broadcast_to(state.column, (n,)),
    position=rows(state.position),
    pending=rows(state.pending),
    done=jnp.zeros(n, jnp.int32),
    codes=jnp.zeros((n, window, codes.depth), jnp.int32),
    q=jnp.zeros((n, window, codes.depth, codes.entries)),
    fresh=jnp.ones((n, window), bool),
  )


@compiled("switches", "total", donate=("windows",))
def advance(
  params, codebook, windows: Window, keys, number, values, *, config: VilaUConfig, switches, total
):
  """One pass for every output; those that have `total` positions run on without effect.

  Returns:
    The new windows, codes int32 [n, W, R] of positions done, done + 1, ..., int32 [n]: how many of
    them are final, and finite bool [n].
  """

  def one(window: Window, key):
    run = lambda m: _pass(m, codebook, window, key, values, switches)  # noqa: E731
    new, codes, final, finite = programs._apply(params, config, run)
    return _held(new, total), codes, final, finite

  return jax.vmap(one)(windows, sampling.fold(keys, number))


def _held(window: Window, total: int) -> Window:
  """Keeps a finished output inside its cache."""
  over = jnp.maximum(window.done - total, 0)
  return window.replace(
    done=window.done - over, column=window.column - over, position=window.position - over
  )


def _pass(m: VilaU, codebook, w: Window, key, values, switches):
  size, rows = w.codes.shape[0], w.pending.shape[0]
  place = w.done + jnp.arange(size, dtype=jnp.int32)
  drafts = _embed(m, codebook, w.codes[:-1], place[:-1], rows)
  x = jnp.concatenate([w.pending, drafts], axis=1)
  columns = jnp.arange(w.valid.shape[1])
  own = w.column - w.done  # where the columns of drawn positions begin
  reach = w.column + jnp.arange(size)
  mask = jnp.where(columns < own, w.valid[:, None], columns <= reach[:, None])
  positions = w.position[:, None] + jnp.arange(size, dtype=jnp.int32)
  hidden, caches = m.llm.decode(x, positions, mask, w.caches, w.column)
  codes, p, kept, finite = _couple(m, codebook, hidden, w, key, values, switches)
  # A position is final if none before it changed: its context was the final one.
  final = jnp.minimum(1 + jnp.cumprod(kept.astype(jnp.int32)).sum(), size)
  last = jax.lax.dynamic_slice_in_dim(codes, final - 1, 1)
  ahead = jnp.arange(size) + final
  moved = jnp.minimum(ahead, size - 1)  # placeholders look like their left neighbour
  new = w.replace(
    caches=caches,
    column=w.column + final,
    position=w.position + final,
    pending=_embed(m, codebook, last, place[:1] + final - 1, rows),
    done=w.done + final,
    codes=codes[moved],
    q=p[moved],
    fresh=ahead >= size,
  )
  usable = (jnp.arange(size) >= final) | finite  # what lies behind saw drafts only
  return new, codes, final, usable.all()


def _embed(m: VilaU, codebook, codes, place, rows: int) -> jax.Array:
  """Codes [N, R] of places [N] -> [b, N, D], the same for every row."""
  x = m.embed_codes(codebook, codes[None], place[None], place[None])
  return jnp.broadcast_to(x, (rows, *x.shape[1:]))


def _couple(m: VilaU, codebook, hidden, w: Window, key, values, switches):
  """Draws the window's codes from p, keeping drafts where that is possible.

  Args:
    hidden: [b, W, D].

  Returns:
    Codes int32 [W, R], p float32 [W, R, E], kept bool [W] (no code of the position changed), and
    finite bool [W].
  """
  c, size = m.config, w.codes.shape[0]
  codes_config = c.tower.quantizer
  hidden = hidden.reshape(-1, hidden.shape[-1])  # conditional rows first
  rows = hidden.shape[0] // size
  caches = depth_transformer.init_cache(c.depth, codes_config, hidden.shape[0], jnp.dtype(c.dtype))
  token, summed, same = m.depth.from_hidden(hidden), 0.0, ~w.fresh
  codes, tables, finite = [], [], []
  for d in range(codes_config.depth):
    features, caches = m.depth.step(token, d, caches)
    p, ok = distribution(m.code_logits(features), values, switches)
    code, accepted = couple(w.codes[:, d], w.q[:, d], p, same, jax.random.fold_in(key, d))
    same = same & accepted
    codes.append(code)
    tables.append(p)
    finite.append(ok)
    if d + 1 < codes_config.depth:
      summed = summed + codebook[0 if codes_config.shared else d][code]
      token = m.depth.from_codes(c.code_scale * jnp.tile(summed, (rows, 1)))
  stack = lambda parts: jnp.stack(parts, axis=1)  # noqa: E731
  return stack(codes), stack(tables), same, stack(finite).all(axis=1)


def distribution(
  logits: jax.Array, values: dict[str, jax.Array], switches: sampling.Switches
) -> tuple[jax.Array, jax.Array]:
  """What sampling.draw draws from: logits [B, E] (guided [2B, E]) -> float32 [B, E], finite [B]."""
  if switches.guided:
    logits = sampling.guide(logits, values["cfg_scale"])
  finite = jnp.isfinite(logits).all(axis=-1)
  if switches.greedy:
    return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1]), finite
  return jax.nn.softmax(sampling.filtered(logits, values, switches), axis=-1), finite


def couple(
  draft: jax.Array, q: jax.Array, p: jax.Array, drafted: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Turns drafts that were drawn from q into draws from p, changing as few as possible.

  Args:
    draft: int32 [B].
    q: float32 [B, E].
    p: float32 [B, E].
    drafted: bool [B]; where False there is no draft, and p is drawn from afresh.
    key: of this draw.

  Returns:
    int32 [B], and bool [B]: whether the draft was kept.
  """
  accept, redraw = jax.random.split(key)
  at = lambda table: jnp.take_along_axis(table, draft[:, None], axis=1)[:, 0]  # noqa: E731
  kept = drafted & (jax.random.uniform(accept, draft.shape) * at(q) < at(p))
  lacking = jnp.maximum(p - q, 0)
  some = drafted & (lacking.sum(axis=-1) > 0)  # rounding may leave nothing
  source = jnp.where(some[:, None], lacking, p)
  noise = jax.random.gumbel(redraw, p.shape)
  drawn = jnp.argmax(jnp.log(source) + noise, axis=-1).astype(jnp.int32)
  return jnp.where(kept, draft, drawn), kept
