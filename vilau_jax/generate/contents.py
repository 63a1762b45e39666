"""What users hand in: conversations of text, images and videos, brought into one form.

A conversation is a string, a list of parts (str, Image, Video), or a list of
{"role": .., "content": ..} turns whose content is again a string or a list of parts.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vilau_jax.data import conversation as C
from vilau_jax.data import media


@dataclasses.dataclass(frozen=True, eq=False)
class Image:
  """A picture of any size and mode in a conversation.

  Attributes:
    source: path, encoded bytes, uint8 array [H, W], [H, W, 3] or [H, W, 4], or PIL image.
  """

  source: media.Source


@dataclasses.dataclass(frozen=True, eq=False)
class Video:
  """A video in a conversation; as many frames as the model takes are read, evenly spread.

  Attributes:
    source: a video file, a folder of pictures, or a list of frames (what Image takes).
    choose: another way to spread the frames, see media.frame_indices.
  """

  source: str | os.PathLike | Sequence[media.Source]
  choose: media.Choose = media.frame_indices


Part = str | Image | Video
Conversation = str | Sequence[Part] | Sequence[dict[str, Any]]
Contents = Sequence[Conversation] | str
Encode = Callable[[np.ndarray], np.ndarray]


def as_list(contents: Sequence[Conversation] | str) -> list[Conversation]:
  """The conversations; a single string counts as one.

  Raises:
    ValueError: for anything else than a list, or an empty one.
  """
  if isinstance(contents, str):
    return [contents]
  if isinstance(contents, Image | Video | dict) or not isinstance(contents, Sequence):
    raise ValueError(
      "contents is a list of conversations, for example "
      f'[[Image("cat.png"), "What is this?"]]; got {type(contents).__name__}'
    )
  if not contents:
    raise ValueError("contents holds no conversation")
  return list(contents)


def to_turns(
  conversations: Sequence[Conversation], side: int, frames: int, encode: Encode, first: int = 0
) -> list[list[C.Turn]]:
  """Conversations -> turns whose pictures are codes; all pictures are encoded together.

  Args:
    conversations: see above.
    side: S of the tower; 0 = there is none.
    frames: taken from a video.
    encode: uint8 [n, S, S, 3] -> codes [n, T, R].
    first: number of the first conversation, for messages.

  Raises:
    ValueError: naming the conversation and what is wrong in it.
  """
  plain = [_turns(talk, f"conversation {i}") for i, talk in enumerate(conversations, first)]
  pictures: list[np.ndarray] = []
  places: dict[int, tuple[str, int, int]] = {}  # id of a part -> kind, first picture, count
  for i, talk in enumerate(plain, first):
    for _, parts in talk:
      for part in parts:
        if not isinstance(part, str) and id(part) not in places:
          opened = _open(part, side, frames, f"conversation {i}")
          places[id(part)] = (_kind(part), len(pictures), len(opened))
          pictures += opened
  codes = encode(np.stack(pictures)) if pictures else np.zeros((0, 0, 0), np.int32)

  def visual(part: Image | Video) -> C.Visual:
    kind, start, count = places[id(part)]
    return C.Visual(kind, codes[start : start + count])

  return [
    [C.turn(role, *(p if isinstance(p, str) else visual(p) for p in parts)) for role, parts in talk]
    for talk in plain
  ]


def _turns(talk: Conversation, name: str) -> list[tuple[str, list[Part]]]:
  if isinstance(talk, Sequence) and not isinstance(talk, str) and len(talk):
    if all(isinstance(turn, dict) for turn in talk):
      turns = [_turn(turn, f"{name}, turn {i}") for i, turn in enumerate(talk)]
      if turns[-1][0] not in ("user", "human"):
        raise ValueError(f"{name} must end with a turn of the user, not of {turns[-1][0]!r:.200}")
      return turns
  return [("user", _parts(talk, name))]


def _turn(turn: Any, name: str) -> tuple[str, list[Part]]:
  if set(turn) != {"role", "content"}:
    raise ValueError(f'{name} needs the keys "role" and "content", got {sorted(turn)!s:.200}')
  if turn["role"] not in ("user", "human", "assistant", "gpt"):
    raise ValueError(f'{name}: role must be "user" or "assistant", got {turn["role"]!r:.200}')
  return turn["role"], _parts(turn["content"], name)


def _parts(content: Any, name: str) -> list[Part]:
  if isinstance(content, str | Image | Video):
    parts = [content]
  elif isinstance(content, Sequence):
    parts = list(content)
  else:
    raise ValueError(f"{name} is no text and no list of parts, but {type(content).__name__}")
  for part in parts:
    if not isinstance(part, str | Image | Video):
      raise ValueError(
        f"{name} holds a {type(part).__name__}; its parts are strings, vilau_jax.Image(..) and "
        "vilau_jax.Video(..)"
      )
  if not any(part.strip() if isinstance(part, str) else True for part in parts):
    raise ValueError(f"{name} is empty")
  return parts


def _kind(part: Image | Video) -> str:
  return "image" if isinstance(part, Image) else "video"


def _open(part: Image | Video, side: int, frames: int, name: str) -> list[np.ndarray]:
  if not side:
    raise ValueError(f"{name} holds pictures, but this model has no vision tower to see them")
  try:
    sources: Sequence[media.Source]
    if isinstance(part, Image):
      sources = [part.source]
    else:
      sources = media.read_video(part.source, frames, part.choose)
    return [media.to_square(source, side) for source in sources]
  except ValueError as error:
    raise ValueError(f"{name}: {error}") from error
