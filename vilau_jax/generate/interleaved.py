"""Text and pictures in one output: a state machine on the host over the two compiled programs.

A row is in the state "text" until it writes <im_start> or <vi_start>; then it draws, the end marker
follows by construction, and it is in the state "text" again, until </s>. Rows in the same state
share a batch. A change of state runs the prompt again, which costs little beside drawing.
"""

import dataclasses
from collections.abc import Sequence as List

import numpy as np

from vilau_jax.data.sequence import Sequence
from vilau_jax.data.tokenizer import Tokenizer
from vilau_jax.generate import image, sampling, text
from vilau_jax.generate.engine import Engine


@dataclasses.dataclass(frozen=True)
class Segment:
  """A stretch of one output: kind "text" with ids, or "image"/"video" with codes [F * T, R]."""

  kind: str
  ids: tuple[int, ...] = ()
  codes: np.ndarray | None = None


@dataclasses.dataclass
class _Row:
  prompt: Sequence
  seed: int
  tokens_left: int
  visuals_left: int
  drawn: int = 0
  kind: str | None = "text"  # the state; None = finished
  segments: list[Segment] = dataclasses.field(default_factory=list)


def generate(
  engine: Engine,
  tokenizer: Tokenizer,
  prompts: List[Sequence],
  unconditional: dict[str, Sequence],
  *,
  text_wish: sampling.Sampling,
  visual_wish: sampling.Sampling,
  seeds: List[int],
  max_new_tokens: int,
  max_visuals: int,
  video_frames: int,
  batch_size: int = 16,
) -> list[list[Segment]]:
  """Lets the model write and draw.

  A row ends with </s>, after max_new_tokens written tokens, where it wants to draw more than
  max_visuals times, or where the context is full.

  Args:
    engine: a complete model.
    tokenizer: knows the markers.
    prompts: one a row.
    unconditional: "image" and "video" -> prompt of the unconditional half.
    text_wish, visual_wish: how to draw tokens and codes.
    seeds: one a row.
    max_new_tokens: of a row, in all its texts together.
    max_visuals: images and videos of a row.
    video_frames: frames of a video.
    batch_size: rows that draw at once.

  Returns:
    The segments of every row.
  """
  starts = {tokenizer.im_start: "image", tokenizer.vi_start: "video"}
  ends = {"image": tokenizer.im_end, "video": tokenizer.vi_end}
  frames = {"image": 1, "video": video_frames}
  rows = [_Row(p, s, max_new_tokens, max_visuals) for p, s in zip(prompts, seeds, strict=True)]
  for row in rows:  # told to draw first
    row.kind = starts.get(int(row.prompt.tokens[-1]), "text")
  while any(row.kind for row in rows):
    for row in rows:
      full = len(row.prompt.tokens) >= engine.context or not row.tokens_left
      row.kind = None if full and row.kind == "text" else row.kind
    writing = [row for row in rows if row.kind == "text"]
    _write(engine, writing, text_wish, [tokenizer.eos, *starts])
    for row in writing:
      row.kind = starts.get(int(row.prompt.tokens[-1]))
    for kind, count in frames.items():
      drawing = [row for row in rows if row.kind == kind]
      positions = count * engine.config.tower.image_tokens
      for row in drawing:
        full = len(row.prompt.tokens) + positions + 1 >= engine.context
        if full or not row.visuals_left:
          row.kind = None
      drawing = [row for row in drawing if row.kind]
      if drawing:
        _draw(engine, drawing, unconditional[kind], visual_wish, count, ends[kind], batch_size)
  return [row.segments for row in rows]


def _write(engine: Engine, rows: list[_Row], wish: sampling.Sampling, stop: list[int]) -> None:
  if not rows:
    return
  limits = [min(row.tokens_left, engine.context - len(row.prompt.tokens)) for row in rows]
  new = text.complete(
    engine,
    [row.prompt for row in rows],
    wish,
    [row.seed for row in rows],
    max_new_tokens=limits,
    stop=stop,
    drawn=[row.drawn for row in rows],
  )
  for row, ids in zip(rows, new):
    row.prompt = extended(row.prompt, ids)
    row.drawn += len(ids)
    row.tokens_left -= len(ids)
    written = tuple(i for i in ids if i not in stop)
    if written:
      row.segments.append(Segment("text", ids=written))


def _draw(engine, rows: list[_Row], unconditional, wish, frames: int, end: int, batch_size) -> None:
  codes = image.generate_codes(
    engine,
    [row.prompt for row in rows],
    unconditional,
    wish,
    [row.seed for row in rows],
    frames=frames,
    batch_size=batch_size,
    drawn=[row.drawn for row in rows],
  )
  for row, new in zip(rows, codes):
    row.segments.append(Segment(row.kind, codes=new))
    row.prompt = extended(extended(row.prompt, codes=new), [end])
    row.drawn += len(new)
    row.visuals_left -= 1
    row.kind = "text"


def extended(prompt: Sequence, ids: List[int] = (), codes: np.ndarray | None = None) -> Sequence:
  """A prompt with ids, or with the codes [N, R] of new visual positions, behind it."""
  if codes is None:
    codes = np.zeros((0, prompt.codes.shape[1]), np.int32)
  length, count = len(prompt.tokens), len(codes)
  ids = [0] * count if count else list(ids)
  places = np.arange(length, length + count, dtype=np.int32)
  old = prompt.codes if len(prompt.codes) else np.zeros((0, codes.shape[1]), np.int32)
  return Sequence(
    tokens=np.concatenate([prompt.tokens, np.asarray(ids, np.int32)]),
    text_target=np.full(length + len(ids), -1, np.int32),
    visual_position=np.concatenate([prompt.visual_position, places]),
    codes=np.concatenate([old, codes]) if count else prompt.codes,
    visual_target=np.zeros(len(prompt.visual_position) + count, bool),
  )
