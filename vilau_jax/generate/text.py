"""Text generation: batches of prompts of different lengths, one token a row and step."""

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as List

import jax
import numpy as np

from vilau_jax.data.sequence import Sequence
from vilau_jax.data.tokenizer import Tokenizer
from vilau_jax.generate import sampling
from vilau_jax.generate.cache import bucket, check_context
from vilau_jax.generate.engine import Draws, Engine
from vilau_jax.generate.start import begin

LONGEST = 512  # ids of an answer, where nothing is said


def stream(
  engine: Engine,
  prompts: List[Sequence],
  wish: sampling.Sampling,
  seeds: List[int],
  *,
  max_new_tokens: int | List[int] | None,
  stop: List[int],
  drawn: List[int] | None = None,
) -> Iterator[np.ndarray]:
  """Yields one step at a time: the next id of every row, -1 for rows that have stopped.

  Args:
    engine: the model.
    prompts: B sequences.
    wish: how to draw; guidance is not defined for text.
    seeds: one a prompt.
    max_new_tokens: at most so many ids; one number, or one a prompt. None: LONGEST, or less where
      the context ends.
    stop: ids that end a row; they are yielded.
    drawn: per prompt, how many positions were drawn for it before (for its keys).

  Raises:
    ValueError: if a prompt and max_new_tokens exceed the context, or logits are not finite.
  """
  most = limits(prompts, max_new_tokens, engine.context)
  rows = bucket(len(prompts), 1)
  filled = [*prompts, *[prompts[-1]] * (rows - len(prompts))]
  before = np.zeros(rows, np.int32)
  if drawn is not None:
    before[: len(prompts)] = drawn
  entries = engine.config.llm.vocab_size
  switches, values = wish.switches(entries), wish.values(entries)
  keys = sampling.output_keys([*seeds, *[0] * (rows - len(prompts))])
  state = begin(engine, filled, room=bucket(max(most)))
  running = np.ones(len(prompts), bool)
  for i in range(max(most)):
    state, tokens, finite = engine.text_step(state, Draws(keys, before + i, values), switches)
    tokens, finite = jax.device_get((tokens, finite))
    check_finite(finite[: len(prompts)], f"token {i}", "prompt")
    step = np.where(running, tokens[: len(prompts)], -1)
    yield step
    running &= ~np.isin(step, stop) & (i + 1 < np.asarray(most))
    if not running.any():
      return


def limits(
  prompts: List[Sequence], max_new_tokens: int | List[int] | None, context: int
) -> list[int]:
  """How many ids each answer may have; see stream.

  Raises:
    ValueError: if it is less than one, or exceeds the context together with the prompt.
  """
  lengths = [len(p.tokens) for p in prompts]
  if max_new_tokens is None:
    max_new_tokens = [max(1, min(LONGEST, context - length)) for length in lengths]
  most = np.broadcast_to(np.asarray(max_new_tokens, int), len(prompts))
  if most.min() < 1:
    raise ValueError(f"max_new_tokens must be at least 1, got {most.min()}")
  check_context(lengths, most, context)
  return most.tolist()


def complete(engine: Engine, prompts: List[Sequence], *args, **kwargs) -> list[list[int]]:
  """Runs `stream` to its end: the new ids of every prompt, with the stop id if it came."""
  steps = np.stack(list(stream(engine, prompts, *args, **kwargs)), axis=1)
  return [[int(t) for t in row if t >= 0] for row in steps]


def ends(tokenizer: Tokenizer) -> list[int]:
  """Ids that end an answer in words: </s>, and where the model begins a picture or a video. Read as
  a token, a start marker would have it write on without what it meant to draw."""
  return [tokenizer.eos, tokenizer.im_start, tokenizer.vi_start]


def pieces(
  tokenizer: Tokenizer, ids: Iterable[int], on_draw: Callable[[str], None] = lambda kind: None
) -> Iterator[str]:
  """Ids as they come -> the text they add; bytes of an unfinished character are held back.

  Args:
    tokenizer: of the ids.
    ids: one by one.
    on_draw: called with "image" or "video" where a start marker comes.
  """
  kinds = {tokenizer.im_start: "image", tokenizer.vi_start: "video"}
  seen: list[int] = []
  shown = ""
  for i in ids:
    if i in kinds:
      on_draw(kinds[i])
    seen.append(i)
    whole = tokenizer.decode(seen)
    if not whole.endswith("\ufffd"):
      if len(whole) > len(shown):
        yield whole[len(shown) :]
      shown = whole
  rest = tokenizer.decode(seen)[len(shown) :]
  if rest:
    yield rest


def check_finite(finite: np.ndarray, where: str, what: str) -> None:
  """Refuses to go on with broken weights or an overflow.

  Raises:
    ValueError: naming the rows.
  """
  if not finite.all():
    rows = np.flatnonzero(~finite).tolist()
    raise ValueError(
      f"the model's logits are not finite (NaN or infinity) at {where}, {what}s {rows[:10]}: "
      "its weights are damaged, or the compute dtype overflows (try float32)"
    )
