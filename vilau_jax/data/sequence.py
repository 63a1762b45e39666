"""A sample as positions: text ids, visual slots, codes, and what is supervised.

Labels follow one rule: text of the assistant is supervised from behind "ASSISTANT:" up to and with
</s>; a picture is supervised when the assistant draws it. `text_target[t]` is the id predicted AT
t, that is the id at t+1; the last visual position predicts the end marker, and the codes of the
first visual slot are predicted from the position before it (the start marker).
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vilau_jax.data import conversation as C
from vilau_jax.data import forms
from vilau_jax.data.forms import SequenceSettings
from vilau_jax.data.tokenizer import Tokenizer

IGNORED = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Sequence:
  """One sample.

  Attributes:
    tokens: int32 [L]; 0 at visual positions.
    text_target: int32 [L], the id predicted at this index, -1 = ignored.
    visual_position: int32 [N], the place of each visual slot.
    codes: int32 [N,R]; R is 0 without slots.
    visual_target: bool [N], supervised slots.
    branches: int32 [L]: behind a stem (0) come branches 1, 2, .. that see the stem and themselves,
      not each other. None: a stem only.
  """

  tokens: np.ndarray
  text_target: np.ndarray
  visual_position: np.ndarray
  codes: np.ndarray
  visual_target: np.ndarray
  branches: np.ndarray | None = None

  @property
  def positions(self) -> np.ndarray:
    """int32 [L]: from 0; every branch goes on where the stem ends."""
    places = np.arange(len(self.tokens), dtype=np.int32)
    if self.branches is None:
      return places
    stem = np.count_nonzero(self.branches == 0)
    starts = np.searchsorted(self.branches, self.branches)
    return np.where(self.branches > 0, places - starts + stem, places).astype(np.int32)

  @property
  def size(self) -> tuple[int, int, int]:
    """(tokens, slots, supervised slots): what a row must have room for."""
    return len(self.tokens), len(self.visual_position), int(self.visual_target.sum())


def from_record(
  record: Mapping[str, Any],
  form: str,
  tokenizer: Tokenizer,
  settings: SequenceSettings,
  rng: np.random.Generator | None = None,
) -> Sequence:
  """The training sequence of a record.

  Args:
    record: decoded, with codes (see data/records.py).
    form: one of forms.FORMS. "i2t" and "v2t" take a record's questions as independent of each
      other, all about its pictures; "sft" keeps a conversation and its "<image>" placeholders as
      stored.
    rng: draws caption dropout and turns; None drops nothing and takes the first turns in order.

  Raises:
    ValueError: if the record lacks what the form needs, or its codes have another shape.
  """
  return build(*forms.spans(record, form, settings, rng), tokenizer=tokenizer)


def measure(
  record: Mapping[str, Any],
  form: str,
  tokenizer: Tokenizer,
  settings: SequenceSettings,
  rng: np.random.Generator | None = None,
) -> tuple[int, int, int]:
  """The `size` of the sequence that from_record builds; the record needs codes_shape only."""
  stem, *branches = forms.spans(record, form, settings, rng)
  tokens, slots, targets = _measure(stem, tokenizer)
  return tokens + sum(_measure(b, tokenizer, 0)[0] for b in branches), slots, targets


def _measure(
  spans: Iterable[C.Span], tokenizer: Tokenizer, tokens: int = 1
) -> tuple[int, int, int]:
  slots, targets, opens = 0, 0, True
  for span in spans:
    if isinstance(span.content, str):
      tokens += len(tokenizer.encode(span.content, prefix=opens))
      opens = False
    else:
      count = span.content.shape[0] * span.content.shape[1]
      tokens, slots, targets = tokens + count, slots + count, targets + count * span.supervised
      opens = True
  return tokens, slots, targets


def largest(
  record: Mapping[str, Any], form: str, tokenizer: Tokenizer, settings: SequenceSettings
) -> tuple[int, int, int]:
  """The largest `measure` of everything that may be drawn."""
  if form not in ("i2t", "v2t") or not settings.is_random(form):
    return measure(record, form, tokenizer, settings)
  everything = dataclasses.replace(settings, max_turns=0)
  if settings.independent_turns:
    stem, *branches = forms.spans(record, form, everything, None)
    costs = sorted((_measure(b, tokenizer, 0)[0] for b in branches), reverse=True)
    tokens, slots, targets = _measure(stem, tokenizer)
    return tokens + sum(costs[: settings.max_turns or len(costs)]), slots, targets
  turns = forms.questions(record, form, everything, None)
  pairs = [(asked.parts[-1], said.parts[0]) for asked, said in zip(turns[::2], turns[1::2])]
  system = "" if record.get("no_system_prompt") else settings.system_prompt
  spans = C.render(turns[:2], system_prompt=system, markers=settings.markers, training=True)
  *head, asked, _ = spans  # `asked` ends with the first question; the others may stand there too
  stem = asked.content.removesuffix(C.asked(pairs[0][0]))
  fixed, slots, targets = _measure(head, tokenizer)

  def cost(opening: str, question: str, answer: str, prefix: bool) -> int:
    text = len(tokenizer.encode(opening + C.asked(question), prefix=prefix))
    return text + len(tokenizer.encode(C.answered(answer), prefix=False))

  first = [fixed + cost(stem, *pair, True) for pair in pairs]
  later = [cost(C.NEXT, *pair, False) for pair in pairs]
  count = (settings.max_turns or len(pairs)) - 1
  tokens = max(
    opens + sum(sorted(later[:j] + later[j + 1 :], reverse=True)[:count])
    for j, opens in enumerate(first)
  )
  return tokens, slots, targets


def prompt(
  turns: Iterable[C.Turn],
  tokenizer: Tokenizer,
  settings: SequenceSettings,
  answer: str = "text",
) -> Sequence:
  """A generation prompt: ends with "ASSISTANT:", for answer "image" or "video" with the start
  marker behind it. Nothing is supervised."""
  spans = C.render(
    list(turns), system_prompt=settings.system_prompt, markers=settings.markers, answer=answer
  )
  return build(spans, tokenizer=tokenizer)


def drawing_prompt(
  text: str, tokenizer: Tokenizer, settings: SequenceSettings, kind: str = "image"
) -> Sequence:
  """Asks for an image or video; an empty text gives the unconditional prompt of guidance."""
  return prompt([C.turn(C.USER, text)], tokenizer, settings, answer=kind)


def unconditional_prompt(
  tokenizer: Tokenizer, settings: SequenceSettings, kind: str = "image"
) -> Sequence:
  """What caption dropout trains: "... USER:ASSISTANT: <im_start>"."""
  return drawing_prompt("", tokenizer, settings, kind)


def shared_beginning(tokenizer: Tokenizer, settings: SequenceSettings) -> tuple[int, ...]:
  """Ids with which every prompt begins: <s> and the system prompt, as far as no text that follows
  can change them."""
  texts = ("", "a", "1", " ", "<im_start>")
  rows = [drawing_prompt(text, tokenizer, settings).tokens.tolist() for text in texts]
  same = [len(set(column)) == 1 for column in zip(*rows)]
  return tuple(rows[0][: same.index(False) if False in same else len(same)])


def extended(
  prompt: Sequence, ids: Iterable[int] = (), codes: np.ndarray | None = None
) -> Sequence:
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


def build(*branches: Iterable[C.Span], tokenizer: Tokenizer) -> Sequence:
  """Spans with codes -> a sequence that begins with <s>.

  Args:
    branches: the stem, and what forks behind its end; the stem then ends with a visual, and only
      the stem has any.
  """
  ids, labels, forks = [tokenizer.bos], [IGNORED], [0]
  positions: list[np.ndarray] = []
  codes: list[np.ndarray] = []
  supervised: list[np.ndarray] = []
  for number, spans in enumerate(branches):
    opens = True  # a text at the start or behind a visual is a piece of its own
    for span in spans:
      if isinstance(span.content, str):
        piece = tokenizer.encode(span.content, prefix=opens)
        ids += piece
        labels += piece if span.supervised else [IGNORED] * len(piece)
        opens = False
        continue
      if span.content.codes is None:
        raise ValueError("a sequence needs the codes of its visuals; this one has none")
      flat = np.asarray(span.content.codes, np.int32).reshape(-1, span.content.codes.shape[-1])
      positions.append(np.arange(len(ids), len(ids) + len(flat), dtype=np.int32))
      codes.append(flat)
      supervised.append(np.full(len(flat), span.supervised))
      ids += [0] * len(flat)
      labels += [IGNORED] * len(flat)
      opens = True
    forks += [number] * (len(ids) - len(forks))
  empty = np.zeros(0, np.int32)
  return Sequence(
    tokens=np.array(ids, np.int32),
    text_target=np.array([*labels[1:], IGNORED], np.int32),
    visual_position=np.concatenate(positions) if positions else empty,
    codes=np.concatenate(codes) if codes else np.zeros((0, 0), np.int32),
    visual_target=np.concatenate(supervised) if supervised else empty.astype(bool),
    branches=np.array(forks, np.int32) if forks[-1] else None,
  )
