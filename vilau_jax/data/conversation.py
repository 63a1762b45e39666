"""The conversation template "vicuna_v1" and where pictures stand in it.

A conversation is a list of turns; a turn is a role and a list of parts; a part is text or a
`Visual`. `render` turns it into spans: text and visuals in order, each supervised or not. Training
sequences and generation prompts come out of this one function.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from vilau_jax.config import SYSTEM_PROMPT

USER, ASSISTANT = "user", "assistant"
_ROLES = {
  "user": USER,
  "human": USER,
  "assistant": ASSISTANT,
  "gpt": ASSISTANT,
}
_NAMES = {USER: "USER", ASSISTANT: "ASSISTANT"}
_MARKERS = {"image": ("<im_start>", "<im_end>"), "video": ("<vi_start>", "<vi_end>")}
PLACEHOLDER = "<image>"
# The question to which a caption is the answer.
CAPTION_QUESTION = {"image": "Describe the picture.", "video": "Describe the video."}


@dataclasses.dataclass(frozen=True, eq=False)
class Visual:
  """One image, or the frames of one video.

  Attributes:
    kind: "image" or "video".
    codes: [F,T,R] integers, F = 1 for an image; None where only the place matters.
    shape: (F, T); taken from the codes when they are given.
  """

  kind: str
  codes: np.ndarray | None = None
  shape: tuple[int, int] = (1, 1)

  def __post_init__(self):
    if self.kind not in _MARKERS:
      raise ValueError(f"a visual is an 'image' or a 'video', got {self.kind!r}")
    if self.codes is not None:
      if np.ndim(self.codes) != 3:
        raise ValueError(f"codes of a visual must be [frames,T,R], got {np.shape(self.codes)}")
      object.__setattr__(self, "shape", tuple(np.shape(self.codes)[:2]))
    if self.kind == "image" and self.shape[0] != 1:
      raise ValueError(f"an image is one frame, got {self.shape[0]}")

  def frames(self) -> list["Visual"]:
    """The frames as images."""
    one = (1, self.shape[1])
    codes = [None] * self.shape[0] if self.codes is None else [c[None] for c in self.codes]
    return [Visual("image", frame, one) for frame in codes]


Part = str | Visual


@dataclasses.dataclass(frozen=True)
class Turn:
  """What one side says; role is "user"/"human" or "assistant"/"gpt"."""

  role: str
  parts: tuple[Part, ...]

  def __post_init__(self):
    if self.role not in _ROLES:
      raise ValueError(f"unknown role {self.role!r:.200}; known: {sorted(_ROLES)}")
    object.__setattr__(self, "role", _ROLES[self.role])


def turn(role: str, *parts: Part) -> Turn:
  """Turn("user", (image, "What is this?")) with less typing."""
  return Turn(role, parts)


@dataclasses.dataclass(frozen=True, eq=False)
class Span:
  """A stretch of a sequence: text or a visual, and whether it is supervised."""

  content: Part
  supervised: bool = False


def render(
  turns: Sequence[Turn],
  *,
  system_prompt: str = SYSTEM_PROMPT,
  markers: str = "always",
  training: bool = False,
  answer: str | None = None,
  bare: bool = False,
) -> list[Span]:
  """A conversation as spans, without <s>.

  SYSTEM + " " + "USER: question ASSISTANT: answer</s>USER: ...". An empty message leaves the bare
  role and colon. An empty system prompt leaves its space. A turn of the assistant that stands first
  is left out. Messages are stripped.

  Images in a user's turn get <im_start>/<im_end> and one newline behind them; a video gets
  <vi_start>/<vi_end> around all of its frames. markers="release" does what the released code does:
  no markers in prompts (training=False), every image or frame followed by a newline; and in
  training markers around images, but none around the frames of a video.

  Args:
    turns: alternate, beginning with the user.
    markers: "always" or "release".
    training: supervise what the assistant says, from behind "ASSISTANT:" up to and with </s>.
    answer: None, or "text", "image", "video": end with "ASSISTANT:" and, to draw, " <im_start>" or
      " <vi_start>".
    bare: with markers="release", images have none in training either (VFlan).

  Raises:
    ValueError: if turns don't alternate, the assistant says nothing, or with an unknown switch.
  """
  if markers not in ("always", "release"):
    raise ValueError(f"markers must be 'always' or 'release', got {markers!r}")
  if answer not in (None, "text", "image", "video"):
    raise ValueError(f"answer must be None, 'text', 'image' or 'video', got {answer!r}")
  if turns and turns[0].role == ASSISTANT:
    turns = turns[1:]
  spans = [Span(system_prompt + " ")]
  for index, said in enumerate(turns):
    if said.role != (USER, ASSISTANT)[index % 2]:
      raise ValueError(f"turn {index} of the conversation is by {said.role}: turns must alternate")
    spans.append(Span(f"{_NAMES[said.role]}:"))
    message = _message(said, markers, training and not bare)
    if said.role == USER:  # the same texts as asked() and answered() give
      spans += [Span(part) for part in (" ", *message, " ")] if message else []
    elif not message:
      raise ValueError(f"turn {index} of the conversation: the assistant's answer is empty")
    else:
      spans += [Span(part, training) for part in (" ", *message, "</s>")]
  if answer is not None:
    if turns and turns[-1].role == ASSISTANT:
      raise ValueError("a prompt must end with the user's turn")
    start = f" {_MARKERS[answer][0]}" if answer in _MARKERS else ""
    spans.append(Span(f"{_NAMES[ASSISTANT]}:{start}"))
  return _merge(spans)


NEXT = "USER: "  # what stands between </s> and the next question


def asked(question: str) -> str:
  """A question of plain text and what follows it, as render writes them."""
  return f"{question} ASSISTANT:"


def answered(answer: str) -> str:
  """An answer of plain text as render writes it."""
  return f" {answer}</s>"


def render_document(parts: Sequence[Part], *, markers: str = "always") -> list[Span]:
  """Running text with pictures in it (the MMC4 form): no template, every text is supervised, no
  picture is; </s> at the end. The released code puts no markers around its images."""
  spans = []
  for part in parts:
    if isinstance(part, Visual) and markers == "always":
      start, end = _MARKERS[part.kind]
      spans += [Span(start, True), Span(part), Span(end, True)]
    else:
      spans.append(Span(part, isinstance(part, str)))
  return _merge([*spans, Span("</s>", True)])


def from_values(value: str, visuals: Sequence[Visual]) -> tuple[list[Part], list[Visual]]:
  """Replaces "<image>" in a stored message by visuals in order; returns the parts and what is left.

  Raises:
    ValueError: if there are more placeholders than visuals.
  """
  texts = value.split(PLACEHOLDER)
  count = len(texts) - 1
  if count > len(visuals):
    raise ValueError(f"{value!r:.200} asks for {count} more images, but {len(visuals)} are left")
  parts: list[Part] = [texts[0]]
  for visual, text in zip(visuals, texts[1:]):
    parts += [visual, text]
  return parts, list(visuals[count:])


def _message(said: Turn, markers: str, training: bool) -> list[Part]:
  """The stripped parts of a message with newlines and markers around its visuals."""
  if said.role == USER and markers == "release" and (not training or _has_video(said.parts)):
    # What the released code does outside of its LLaVA records: every frame and a newline.
    parts: list[Part] = []
    for part in said.parts:
      frames = [part] if isinstance(part, str) else part.frames()
      parts += [p for f in frames for p in ((f,) if isinstance(f, str) else (f, "\n"))]
    return _strip(parts)
  parts = _strip(_with_newlines(said.parts))
  return [p for part in parts for p in (_marked(part) if isinstance(part, Visual) else [part])]


def _has_video(parts: Sequence[Part]) -> bool:
  return any(isinstance(part, Visual) and part.kind == "video" for part in parts)


def _with_newlines(parts: Sequence[Part]) -> list[Part]:
  """Text around visuals is stripped; a space before each visual, a newline behind it (the released
  preprocessing of LLaVA conversations)."""
  if not any(isinstance(part, Visual) for part in parts):
    return list(parts)
  chunks, visuals = [""], []
  for part in parts:
    if isinstance(part, Visual):
      visuals.append(part)
      chunks.append("")
    else:
      chunks[-1] += part
  chunks = [chunk.strip() for chunk in chunks]
  out: list[Part] = []
  for index, (chunk, visual) in enumerate(zip(chunks, visuals)):
    out += ["\n" * (index > 0) + chunk + " ", visual]
  return [*out, "\n" + chunks[-1]]


def _strip(parts: Sequence[Part]) -> list[Part]:
  """Strips a message as if it were one string, and drops empty texts."""
  parts = [p for p in _joined(parts) if p != ""]
  if parts and isinstance(parts[0], str):
    parts[0] = parts[0].lstrip()
  if parts and isinstance(parts[-1], str):
    parts[-1] = parts[-1].rstrip()
  return [p for p in parts if p != ""]


def _marked(visual: Visual) -> list[Part]:
  start, end = _MARKERS[visual.kind]
  return [start, visual, end]


def _joined(parts: Sequence[Part]) -> list[Part]:
  out: list[Part] = []
  for part in parts:
    if isinstance(part, str) and out and isinstance(out[-1], str):
      out[-1] += part
    else:
      out.append(part)
  return out


def _merge(spans: Sequence[Span]) -> list[Span]:
  """Joins neighbouring texts of the same supervision and drops empty ones."""
  out: list[Span] = []
  for span in spans:
    text = isinstance(span.content, str)
    if text and not span.content:
      continue
    same = out and isinstance(out[-1].content, str) and out[-1].supervised == span.supervised
    if text and same:
      out[-1] = Span(out[-1].content + span.content, span.supervised)
    else:
      out.append(span)
  return out
