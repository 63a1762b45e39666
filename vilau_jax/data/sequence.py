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

from vilau_jax.config import SYSTEM_PROMPT, VilaUConfig
from vilau_jax.data import conversation as C
from vilau_jax.data.conversation import CAPTION_QUESTION
from vilau_jax.data.tokenizer import Tokenizer

FORMS = ("i2t", "t2i", "t2v", "v2t", "interleaved", "text", "sft")
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
  """

  tokens: np.ndarray
  text_target: np.ndarray
  visual_position: np.ndarray
  codes: np.ndarray
  visual_target: np.ndarray

  @property
  def size(self) -> tuple[int, int, int]:
    """(tokens, slots, supervised slots): what a row must have room for."""
    return len(self.tokens), len(self.visual_position), int(self.visual_target.sum())


@dataclasses.dataclass(frozen=True)
class SequenceSettings:
  """How records become sequences.

  Attributes:
    system_prompt: opening of every conversation; "" leaves a single space.
    markers: "always" or "release", see conversation.render.
    frames: frames of a video; records with another number are refused. 0 accepts any.
    tokens_per_image: T; codes of another size are refused. 0 accepts any.
    cfg_dropout: share of [text, image] and [text, video] samples whose caption is dropped, so that
      the prompt is exactly the unconditional one.
    max_turns: questions of an "i2t" or "v2t" record that go into one sample; 0 takes all.
    shuffle_turns: which questions share a sample, and their order, is drawn at every visit.
    caption_turn: a record's caption joins its questions as "Describe the picture.".
  """

  system_prompt: str = SYSTEM_PROMPT
  markers: str = "always"
  frames: int = 8
  tokens_per_image: int = 0
  cfg_dropout: float = 0.0
  max_turns: int = 0
  shuffle_turns: bool = False
  caption_turn: bool = False

  @classmethod
  def from_model(cls, config: VilaUConfig, **changes: Any) -> "SequenceSettings":
    """The settings that a model implies, with changes."""
    implied = dict(
      system_prompt=config.system_prompt,
      markers=config.markers,
      frames=config.video_frames,
      tokens_per_image=config.tower.image_tokens if config.tower else 0,
    )
    return cls(**{**implied, **changes})

  def is_random(self, form: str) -> bool:
    """Whether a record gives another sample at every visit."""
    if form in ("t2i", "t2v"):
      return self.cfg_dropout > 0
    return form in ("i2t", "v2t") and self.shuffle_turns


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
    form: one of FORMS. "i2t" and "v2t" take a record's questions as independent of each other, all
      about its pictures; "sft" keeps a conversation and its "<image>" placeholders as stored.
    rng: draws caption dropout and turns; None drops nothing and takes the first turns in order.

  Raises:
    ValueError: if the record lacks what the form needs, or its codes have another shape.
  """
  return build(_spans(record, form, settings, rng), tokenizer)


def measure(
  record: Mapping[str, Any],
  form: str,
  tokenizer: Tokenizer,
  settings: SequenceSettings,
  rng: np.random.Generator | None = None,
) -> tuple[int, int, int]:
  """The `size` of the sequence that from_record builds; the record needs codes_shape only."""
  return _measure(_spans(record, form, settings, rng), tokenizer)


def _measure(spans: Iterable[C.Span], tokenizer: Tokenizer) -> tuple[int, int, int]:
  tokens, slots, targets = 1, 0, 0
  opens = True
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
  turns = _questions(record, form, dataclasses.replace(settings, max_turns=0), None)
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
  return build(spans, tokenizer)


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


def build(spans: Iterable[C.Span], tokenizer: Tokenizer) -> Sequence:
  """Spans with codes -> a sequence that begins with <s>."""
  ids, labels = [tokenizer.bos], [IGNORED]
  positions: list[np.ndarray] = []
  codes: list[np.ndarray] = []
  supervised: list[np.ndarray] = []
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
  empty = np.zeros(0, np.int32)
  return Sequence(
    tokens=np.array(ids, np.int32),
    text_target=np.array([*labels[1:], IGNORED], np.int32),
    visual_position=np.concatenate(positions) if positions else empty,
    codes=np.concatenate(codes) if codes else np.zeros((0, 0), np.int32),
    visual_target=np.concatenate(supervised) if supervised else empty.astype(bool),
  )


def _spans(record, form, settings, rng) -> list[C.Span]:
  if form not in FORMS:
    raise ValueError(f"unknown form {form!r}; known: {FORMS}")
  system = "" if record.get("no_system_prompt") else settings.system_prompt
  if form == "interleaved":
    return C.render_document(_document(record, settings), markers=settings.markers)
  turns = {
    "t2i": _drawing,
    "t2v": _drawing,
    "i2t": _questions,
    "v2t": _questions,
    "text": _conversation,
    "sft": _conversation,
  }[form](record, form, settings, rng)
  return C.render(turns, system_prompt=system, markers=settings.markers, training=True)


def _drawing(record, form, settings, rng) -> list[C.Turn]:
  caption = record.get("caption", "").strip()
  if not caption:
    raise _error(record, f"form {form!r} needs a caption, and it is empty")
  visuals = _visuals(record, settings, "codes_crop" if "codes_crop_shape" in record else "codes")
  visual = _only(record, visuals, "video" if form == "t2v" else "image", form)
  drop = rng is not None and rng.random() < settings.cfg_dropout
  return [C.turn(C.USER, "" if drop else caption), C.turn(C.ASSISTANT, visual)]


def _questions(record, form, settings, rng) -> list[C.Turn]:
  kind = "video" if form == "v2t" else "image"
  visuals = [v for v in _visuals(record, settings) if v.kind == kind]
  if not visuals:
    raise _error(record, f"form {form!r} needs a record with {kind}s")
  pairs = [(_without_placeholders(question), answer.strip()) for question, answer in _pairs(record)]
  if not all(question and answer for question, answer in pairs):
    raise _error(record, "a question or its answer is empty")
  caption = record.get("caption", "").strip()
  if settings.caption_turn and caption:
    pairs.append((CAPTION_QUESTION[kind], caption))
  if not pairs:
    raise _error(record, f"form {form!r} needs conversations (or caption_turn and a caption)")
  count = min(settings.max_turns or len(pairs), len(pairs))
  order = range(count)
  if rng is not None and settings.shuffle_turns:
    order = rng.permutation(len(pairs))[:count]
  turns: list[C.Turn] = []
  for place, index in enumerate(order):
    question, answer = pairs[index]
    turns += [
      C.turn(C.USER, *(visuals if place == 0 else []), question),
      C.turn(C.ASSISTANT, answer),
    ]
  return turns


def _conversation(record, form, settings, rng) -> list[C.Turn]:
  visuals = _visuals(record, settings) if form == "sft" and "codes_shape" in record else []
  roles, values = _stored(record)
  if not values:
    raise _error(record, f"form {form!r} needs conversations")
  stored = any(C.PLACEHOLDER in value for value in values)
  if visuals and (not stored or visuals[0].kind == "video"):
    values = [_without_placeholders(value) for value in values]
    first = roles.index("human") if "human" in roles else 0
    turns = [C.turn(role, value) for role, value in zip(roles, values)]
    turns[first] = C.turn(roles[first], *visuals, values[first])
    return turns
  turns = []
  for role, value in zip(roles, values):
    parts, visuals = C.from_values(value, visuals)
    turns.append(C.turn(role, *parts))
  if visuals:
    raise _error(record, f"{len(visuals)} images are not asked for by any <image> placeholder")
  return turns


def _document(record, settings) -> list[C.Part]:
  """Sentences joined by spaces; each image directly before its sentence, without spaces."""
  sentences = record.get("sentences") or []
  if not sentences:
    raise _error(record, "form 'interleaved' needs sentences")
  visuals = _visuals(record, settings)
  places = record.get("image_sentence_index") or []
  if len(places) != len(visuals) or any(not 0 <= p < len(sentences) for p in places):
    raise _error(record, f"image_sentence_index {places} does not place {len(visuals)} images")
  parts: list[C.Part] = []
  for index, sentence in enumerate(sentences):
    here = [v for v, place in zip(visuals, places) if place == index]
    sentence = sentence.replace(C.PLACEHOLDER, C.PLACEHOLDER.upper())
    if parts and not here:
      parts[-1] += " " + sentence
    else:
      parts += [*here, sentence]
  return [p.strip(" ") if isinstance(p, str) else p for p in parts]


def _visuals(record, settings, name: str = "codes") -> list[C.Visual]:
  shape = record.get(f"{name}_shape")
  if shape is None:
    raise _error(record, "it has no codes: run `vilau tokenize` on its records first")
  images, positions, depths = shape
  if settings.tokens_per_image and positions != settings.tokens_per_image:
    raise _error(
      record,
      f"its codes have {positions} positions an image, the model has {settings.tokens_per_image}",
    )
  codes = None
  if name in record:
    codes = np.frombuffer(record[name], "<u2").reshape(images, positions, depths)
  if "n_frames" in record:
    if settings.frames and images != settings.frames:
      raise _error(record, f"its video has {images} frames, the model takes {settings.frames}")
    return [C.Visual("video", codes, (images, positions))]
  each = [None] * images if codes is None else [c[None] for c in codes]
  return [C.Visual("image", c, (1, positions)) for c in each]


def _only(record, visuals, kind: str, form: str) -> C.Visual:
  if len(visuals) != 1 or visuals[0].kind != kind:
    found = [v.kind for v in visuals]
    raise _error(record, f"form {form!r} needs exactly one {kind}, it has {found}")
  return visuals[0]


def _stored(record) -> tuple[list[str], list[str]]:
  roles = record.get("conversations_from") or []
  values = record.get("conversations_value") or []
  if len(roles) != len(values):
    raise _error(record, f"{len(roles)} speakers for {len(values)} messages")
  return list(roles), list(values)


def _pairs(record) -> list[tuple[str, str]]:
  roles, values = _stored(record)
  if roles[:1] == ["gpt"]:
    roles, values = roles[1:], values[1:]
  if roles != ["human", "gpt"] * (len(roles) // 2):
    raise _error(record, f"questions and answers must alternate, got {roles}")
  return list(zip(values[::2], values[1::2]))


def _without_placeholders(text: str) -> str:
  for name in (C.PLACEHOLDER, "<video>"):
    text = text.replace(f"{name}\n", "").replace(f"\n{name}", "").replace(name, "")
  return text.strip()


def _error(record, problem: str) -> ValueError:
  name = record.get("id") or "without id"
  return ValueError(f"record {name!r} of {record.get('source') or 'unknown source'}: {problem}")
