"""How prompts enter the cache: every different prompt is read once, and what nearly all of them
begin with (the system prompt) once in the life of an engine.

Axis letters: B rows, P positions of the shared beginning.
"""

from collections.abc import Sequence as List

import numpy as np

from vilau_jax.data.sequence import Sequence
from vilau_jax.generate.cache import State, bucket, left_pad
from vilau_jax.generate.engine import Engine

WORTH = 8  # positions below which a shared beginning is not kept apart


def begin(engine: Engine, prompts: List[Sequence], room: int) -> State:
  """Runs prompts and leaves `room` free columns behind them.

  Args:
    engine: the model.
    prompts: B sequences; one that stands there several times is read once.
    room: columns.

  Returns:
    The state of B rows, in the order of the prompts.
  """
  place: dict[tuple[bytes, ...], int] = {}
  keys = [_content(prompt) for prompt in prompts]
  order = [place.setdefault(key, len(place)) for key in keys]
  distinct = list(dict(zip(keys, prompts)).values())
  distinct += [distinct[-1]] * (_rows(len(distinct), engine.ways) - len(distinct))
  prefix = _shared(engine, distinct)
  skip = prefix[0][0].shape[2] if prefix else 0
  take = None if order == list(range(len(distinct))) else np.asarray(order, np.int32)
  return engine.start(left_pad(distinct, engine.depth, skip), room, prefix, take)


def _content(prompt: Sequence) -> tuple[bytes, ...]:
  parts = (prompt.tokens, prompt.visual_position, prompt.codes)
  return tuple(np.ascontiguousarray(part, np.int32).tobytes() for part in parts)


def _rows(count: int, ways: int) -> int:
  """Few sizes, so few programs: a power of two, or one more (the unconditional prompt)."""
  rows = count if bucket(count - 1, 1) + 1 == count else bucket(count, 1)
  return -(-rows // ways) * ways


def _shared(engine: Engine, prompts: List[Sequence]):
  """Caches [1, K, P, C] a layer of the engine's prefix, or () where a prompt lacks it."""
  ids = engine.prefix
  if len(ids) < WORTH or not all(_begins(prompt, ids) for prompt in prompts):
    return ()
  if engine.prefix_caches is None:
    tokens = np.asarray([*ids, 0], np.int32)[None]
    batch = dict(
      tokens=tokens,
      valid=np.ones(tokens.shape, bool),
      positions=np.arange(tokens.shape[1], dtype=np.int32)[None],
      visual_position=np.zeros((1, 0), np.int32),
      codes=np.zeros((1, 0, engine.depth), np.int32),
    )
    engine.prefix_caches = tuple(engine.start(batch, room=0).caches)
  return engine.prefix_caches


def _begins(prompt: Sequence, ids: tuple[int, ...]) -> bool:
  count = len(ids)
  first = prompt.visual_position[0] if len(prompt.visual_position) else len(prompt.tokens)
  return len(prompt.tokens) > count <= first and tuple(prompt.tokens[:count].tolist()) == ids
