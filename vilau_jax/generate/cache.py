"""What decoding carries from step to step, and how prompts of different lengths enter it.

Axis letters: B rows, L columns of the prompt, M columns of the cache, N visual slots, D width,
R residual depth, K kv heads, C head dim.
"""

from collections.abc import Sequence as List

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vilau_jax.data.sequence import Sequence
from vilau_jax.layers.attention import Cache

SMALLEST_BUCKET = 32


@flax.struct.dataclass
class State:
  """The language model between two steps; donated to the next step.

  Attributes:
    caches: (keys, values) a layer, each [B, K, M, C].
    valid: bool [B, M], columns that hold a position of the row; padding never becomes valid.
    column: int32 scalar, the column that is written next; behind the last one comes the first, as
      the place of a position in the cache means nothing (its keys are rotated already).
    position: int32 [B], the rotary position of the next step.
    pending: [B, 1, D], the input embedding that the next step reads.
  """

  caches: list[Cache]
  valid: jax.Array
  column: jax.Array
  position: jax.Array
  pending: jax.Array


def bucket(length: int, smallest: int = SMALLEST_BUCKET) -> int:
  """The next power of two, at least `smallest`: a new length rarely needs a new program."""
  return max(smallest, 1 << max(0, length - 1).bit_length())


def left_pad(prompts: List[Sequence], depth: int, skip: int = 0) -> dict[str, np.ndarray]:
  """Prompts -> one batch whose rows end in the last column.

  The last column is the one that stays pending, so there are bucket(longest - 1) + 1 of them.

  Args:
    prompts: sequences of at least one position behind `skip`.
    depth: R.
    skip: leaves out the first positions of every prompt, which are text.

  Returns:
    tokens int32 [B, L], valid bool [B, L], positions int32 [B, L] (0 on padding), and
    visual_position int32 [B, N] (-1 = empty) and codes int32 [B, N, R], where N may be 0.
  """
  columns = bucket(max(len(p.tokens) for p in prompts) - skip - 1) + 1
  most = max(len(p.visual_position) for p in prompts)
  slots = bucket(most) if most else 0
  rows = len(prompts)
  tokens = np.zeros((rows, columns), np.int32)
  valid = np.zeros((rows, columns), bool)
  visual_position = np.full((rows, slots), -1, np.int32)
  codes = np.zeros((rows, slots, depth), np.int32)
  for i, prompt in enumerate(prompts):
    pad, count = columns - len(prompt.tokens) + skip, len(prompt.visual_position)
    tokens[i, pad:] = prompt.tokens[skip:]
    valid[i, pad:] = True
    visual_position[i, :count] = prompt.visual_position + pad - skip
    if count:
      codes[i, :count] = prompt.codes
  positions = np.where(valid, np.cumsum(valid, axis=1) - 1 + skip, 0).astype(np.int32)
  return dict(
    tokens=tokens,
    valid=valid,
    positions=positions,
    visual_position=visual_position,
    codes=codes,
  )


def check_context(lengths: List[int], new: int | np.ndarray, context: int) -> None:
  """Refuses prompts that leave no room.

  Raises:
    ValueError: if a prompt and `new` further positions (all the same, or one a prompt) exceed
      `context`.
  """
  for i, (length, more) in enumerate(zip(lengths, np.broadcast_to(new, len(lengths)))):
    if length + more > context:
      raise ValueError(
        f"prompt {i} has {length} positions; with {more} to generate that is {length + more}, but "
        f"the model's context is {context}. Shorten the prompt or generate less"
      )


def grow(caches: list[Cache], room: int) -> list[Cache]:
  """Appends `room` empty columns to caches [B, K, L, C]."""
  pad = ((0, 0), (0, 0), (0, room), (0, 0))
  return [(jnp.pad(k, pad), jnp.pad(v, pad)) for k, v in caches]
