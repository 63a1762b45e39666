"""A record as a conversation: what is said, shown and supervised, by form.

The forms are those of VILA-U's training: [image, text], [text, image], [text, video], [video,
text], interleaved documents, and conversations as stored.
"""

import dataclasses
from typing import Any

import numpy as np

from vilau_jax.config import SYSTEM_PROMPT, VilaUConfig
from vilau_jax.data import conversation as C
from vilau_jax.data.conversation import CAPTION_QUESTION

FORMS = ("i2t", "t2i", "t2v", "v2t", "interleaved", "text", "sft")


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
    independent_turns: extension; questions that share a picture do not see each other and stand at
      the same positions, as if each were asked alone. Every answer then has to come from the
      picture, none from the answers before it.
  """

  system_prompt: str = SYSTEM_PROMPT
  markers: str = "always"
  frames: int = 8
  tokens_per_image: int = 0
  cfg_dropout: float = 0.0
  max_turns: int = 0
  shuffle_turns: bool = False
  caption_turn: bool = False
  independent_turns: bool = False

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


def spans(record, form, settings, rng) -> list[list[C.Span]]:
  """The stem of a sample and its branches; most forms have a stem only.

  Arguments and errors as for sequence.from_record.
  """
  if form not in FORMS:
    raise ValueError(f"unknown form {form!r}; known: {FORMS}")
  system = "" if record.get("no_system_prompt") else settings.system_prompt
  if form == "interleaved":
    return [C.render_document(_document(record, settings), markers=settings.markers)]
  turns = {
    "t2i": _drawing,
    "t2v": _drawing,
    "i2t": questions,
    "v2t": questions,
    "text": _conversation,
    "sft": _conversation,
  }[form](record, form, settings, rng)
  # The released code puts no markers around VFlan's images, whose records are those without system
  # prompt.
  bare = bool(record.get("no_system_prompt"))
  said = dict(system_prompt=system, markers=settings.markers, training=True, bare=bare)
  if form not in ("i2t", "v2t") or not settings.independent_turns:
    return [C.render(turns, **said)]
  visuals = [part for part in turns[0].parts if isinstance(part, C.Visual)]
  alone = [
    C.render([C.turn(C.USER, *visuals, asked.parts[-1]), answer], **said)
    for asked, answer in zip(turns[::2], turns[1::2])
  ]
  stem = 1 + max(i for i, span in enumerate(alone[0]) if isinstance(span.content, C.Visual))
  return [alone[0][:stem], *(spans[stem:] for spans in alone)]


def _drawing(record, form, settings, rng) -> list[C.Turn]:
  caption = record.get("caption", "").strip()
  if not caption:
    raise _error(record, f"form {form!r} needs a caption, and it is empty")
  visuals = _visuals(record, settings, "codes_crop" if "codes_crop_shape" in record else "codes")
  visual = _only(record, visuals, "video" if form == "t2v" else "image", form)
  drop = rng is not None and rng.random() < settings.cfg_dropout
  return [C.turn(C.USER, "" if drop else caption), C.turn(C.ASSISTANT, visual)]


def questions(record, form, settings, rng) -> list[C.Turn]:
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
