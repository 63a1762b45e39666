"""Text and pictures in one output: a state machine on the host over the two compiled programs.

A row is in the state "text" until it writes <im_start> or <vi_start>; then it draws, the end marker
follows by construction, and it is in the state "text" again, until </s>. A prompt that ends in a
start marker begins with drawing. Rows in the same state share a batch. A change of state runs the
prompt again, which costs little beside drawing.
"""

import dataclasses
from collections.abc import Iterator
from collections.abc import Sequence as List
from typing import NamedTuple

import numpy as np

from vilau_jax.data.sequence import Sequence, extended
from vilau_jax.data.tokenizer import Tokenizer
from vilau_jax.generate import image, sampling, text
from vilau_jax.generate.engine import Engine


@dataclasses.dataclass(frozen=True)
class Segment:
  """A stretch of one output: kind "text" with ids, or "image"/"video" with codes [F * T, R]."""

  kind: str
  ids: tuple[int, ...] = ()
  codes: np.ndarray | None = None


class Event(NamedTuple):
  """A segment of a row as far as it is: a token more, or a row of the grid."""

  row: int
  segment: Segment
  finished: bool


@dataclasses.dataclass
class _Row:
  index: int
  prompt: Sequence
  seed: int
  tokens_left: int
  visuals_left: int
  drawn: int = 0
  kind: str | None = "text"  # the state; None = finished


@dataclasses.dataclass(frozen=True)
class Rules:
  """How rows are written and drawn.

  Attributes:
    text_wish, visual_wish: how to draw tokens and codes.
    unconditional: "image" and "video" -> prompt of the unconditional half.
    max_new_tokens: of a row, in all its texts together.
    max_visuals: images and videos of a row.
    video_frames: frames of a video.
    batch_size: rows that draw or write at once.
  """

  text_wish: sampling.Sampling
  visual_wish: sampling.Sampling
  unconditional: dict[str, Sequence]
  max_new_tokens: int
  max_visuals: int
  video_frames: int
  batch_size: int = 16


def generate(
  engine: Engine, tokenizer: Tokenizer, prompts: List[Sequence], rules: Rules, seeds: List[int]
) -> list[list[Segment]]:
  """Runs `stream` to its end: the segments of every row."""
  rows: list[list[Segment]] = [[] for _ in prompts]
  for event in stream(engine, tokenizer, prompts, rules, seeds):
    if event.finished:
      rows[event.row].append(event.segment)
  return rows


def stream(
  engine: Engine, tokenizer: Tokenizer, prompts: List[Sequence], rules: Rules, seeds: List[int]
) -> Iterator[Event]:
  """Lets the model write and draw, and says what it does.

  A row ends with </s>, after max_new_tokens written tokens, where it wants to draw more than
  max_visuals times, or where the context is full.

  Args:
    engine: a complete model.
    tokenizer: knows the markers.
    prompts: one a row.
    rules: see there.
    seeds: one a row.

  Yields:
    Events of all rows, those of one row in order. An unfinished segment comes again, longer.
  """
  starts = {tokenizer.im_start: "image", tokenizer.vi_start: "video"}
  ends = {"image": tokenizer.im_end, "video": tokenizer.vi_end}
  frames = {"image": 1, "video": rules.video_frames}
  rows = [
    _Row(i, prompt, seed, rules.max_new_tokens, rules.max_visuals)
    for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
  ]
  for row in rows:  # told to draw first
    row.kind = starts.get(int(row.prompt.tokens[-1]), "text")
  while any(row.kind for row in rows):
    for row in rows:
      full = len(row.prompt.tokens) >= engine.context or not row.tokens_left
      row.kind = None if full and row.kind == "text" else row.kind
    writing = [row for row in rows if row.kind == "text"]
    for start in range(0, len(writing), rules.batch_size):
      here = writing[start : start + rules.batch_size]
      yield from _write(engine, here, rules.text_wish, text.ends(tokenizer))
    for row in writing:
      row.kind = starts.get(int(row.prompt.tokens[-1]))
    for kind, count in frames.items():
      positions = count * engine.config.tower.image_tokens
      for row in rows:
        full = len(row.prompt.tokens) + positions + 1 > engine.context
        if row.kind == kind and (full or not row.visuals_left):
          row.kind = None
      drawing = [row for row in rows if row.kind == kind]
      if drawing:
        yield from _draw(engine, drawing, rules, count, ends[kind])


def _write(
  engine: Engine, rows: list[_Row], wish: sampling.Sampling, stop: list[int]
) -> Iterator[Event]:
  limits = [min(row.tokens_left, engine.context - len(row.prompt.tokens)) for row in rows]
  new: list[list[int]] = [[] for _ in rows]
  written: list[tuple[int, ...]] = [()] * len(rows)
  steps = text.stream(
    engine,
    [row.prompt for row in rows],
    wish,
    [row.seed for row in rows],
    max_new_tokens=limits,
    stop=stop,
    drawn=[row.drawn for row in rows],
  )
  for step in steps:
    for i, token in enumerate(step.tolist()):
      if token >= 0:
        new[i].append(token)
      if token >= 0 and token not in stop:
        written[i] += (token,)
        yield Event(rows[i].index, Segment("text", ids=written[i]), False)
  for row, ids, shown in zip(rows, new, written):
    row.prompt = extended(row.prompt, ids)
    row.drawn += len(ids)
    row.tokens_left -= len(ids)
    if shown:
      yield Event(row.index, Segment("text", ids=shown), True)


def _draw(engine: Engine, rows: list[_Row], rules: Rules, frames: int, end: int) -> Iterator[Event]:
  kind = rows[0].kind
  steps = image.stream_codes(
    engine,
    [row.prompt for row in rows],
    rules.unconditional[kind],
    rules.visual_wish,
    [row.seed for row in rows],
    frames=frames,
    batch_size=rules.batch_size,
    drawn=[row.drawn for row in rows],
  )
  for progress in steps:
    for i, codes in zip(progress.outputs, progress.codes):
      finished = progress.done == progress.total
      yield Event(rows[i].index, Segment(kind, codes=codes), finished)
      if finished:
        _close(rows[i], codes, end)


def _close(row: _Row, codes: np.ndarray, end: int) -> None:
  """The end marker follows the last visual position by construction."""
  row.prompt = extended(extended(row.prompt, codes=codes), [end])
  row.drawn += len(codes)
  row.visuals_left -= 1
  row.kind = "text"
