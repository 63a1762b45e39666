"""Teacher-forced scoring of answers: log-likelihoods, and whether greedy decoding would give them.

One pass over prompt and answer replaces a decoding run. Axis letters: B rows, L columns, A answer
tokens, V vocabulary.
"""

from collections.abc import Iterable, Iterator
from collections.abc import Sequence as List

import jax
import jax.numpy as jnp
import numpy as np

from vilau_jax.config import VilaUConfig
from vilau_jax.data.sequence import Sequence
from vilau_jax.generate import engine as programs
from vilau_jax.generate.cache import bucket, check_context
from vilau_jax.generate.engine import Engine
from vilau_jax.generate.text import check_finite

POSITIONS_A_BATCH = 4096


def score(
  engine: Engine, prompts: Iterable[Sequence], answers: List[List[int]]
) -> tuple[np.ndarray, np.ndarray]:
  """Scores answer i behind prompt i.

  Rows of similar length share a batch of fixed shape, so thousands of questions need few programs.

  Args:
    engine: the model.
    prompts: n sequences.
    answers: n lists of ids, each with its end token.

  Returns:
    Log-likelihoods float32 [n], and bool [n]: every id is the most likely one, which is to say that
    greedy decoding writes exactly this answer.

  Raises:
    ValueError: if a row exceeds the context, or logits are not finite.
  """
  prompts = list(prompts)
  sizes = [len(p.tokens) + len(a) - 1 for p, a in zip(prompts, answers, strict=True)]
  check_context(sizes, 0, engine.context)
  likelihood = np.zeros(len(prompts), np.float32)
  exact = np.zeros(len(prompts), bool)
  for chosen, batch in _batches(prompts, answers, sizes, engine.depth):
    results = answer_scores(engine.params, engine.codebook, batch, config=engine.config)
    found, right, finite = (r[: len(chosen)] for r in jax.device_get(results))
    check_finite(finite, "an answer", "row of the batch: prompt")
    likelihood[chosen], exact[chosen] = found, right
  return likelihood, exact


@programs.compiled()
def answer_scores(params, codebook, batch, *, config: VilaUConfig):
  """Log-likelihood float32 [B], greedy match bool [B] and finiteness bool [B] of a batch's answers.

  Args:
    params: decoding parameters.
    codebook: float32 [K, E, Z] or None.
    batch: see engine.hidden_states, with target_at [B, A], the place that predicts, and target
      [B, A], the id (-1 = empty).
    config: of the model.
  """
  hidden = programs.hidden_states(params, codebook, batch, config=config)
  hidden = jnp.take_along_axis(hidden, batch["target_at"][..., None], axis=1)
  logits = programs.text_logits(params, hidden, config=config)
  target, used = batch["target"], batch["target"] >= 0
  logs = jax.nn.log_softmax(logits, axis=-1)
  logs = jnp.take_along_axis(logs, jnp.maximum(target, 0)[..., None], axis=-1)[..., 0]
  match = (logits.argmax(axis=-1) == target) | ~used
  finite = jnp.isfinite(logits).all(axis=-1) | ~used
  total = jnp.where(used, logs, 0).sum(axis=1)
  return total, match.all(axis=1), finite.all(axis=1)


def _batches(prompts, answers, sizes, depth) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
  groups: dict[tuple[int, int, int], list[int]] = {}
  for i, (prompt, answer, size) in enumerate(zip(prompts, answers, sizes)):
    slots = len(prompt.visual_position)
    shape = (bucket(size), bucket(slots) if slots else 0, bucket(len(answer), 8))
    groups.setdefault(shape, []).append(i)
  for (length, slots, targets), members in sorted(groups.items()):
    rows = max(1, POSITIONS_A_BATCH // length)
    rows = min(rows, bucket(len(members), 1))
    for start in range(0, len(members), rows):
      chosen = members[start : start + rows]
      batch = dict(
        tokens=np.zeros((rows, length), np.int32),
        segment_ids=np.zeros((rows, length), np.int32),
        positions=np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        visual_position=np.full((rows, slots), -1, np.int32),
        codes=np.zeros((rows, slots, depth), np.int32),
        target_at=np.zeros((rows, targets), np.int32),
        target=np.full((rows, targets), -1, np.int32),
      )
      for row, i in enumerate(chosen):
        _fill(batch, row, prompts[i], answers[i])
      yield np.asarray(chosen), batch


def _fill(batch: dict[str, np.ndarray], row: int, prompt: Sequence, answer: List[int]) -> None:
  start, count, slots = len(prompt.tokens), len(answer), len(prompt.visual_position)
  batch["tokens"][row, :start] = prompt.tokens
  batch["tokens"][row, start : start + count - 1] = answer[:-1]
  batch["segment_ids"][row, : start + count - 1] = 1
  batch["visual_position"][row, :slots] = prompt.visual_position
  if slots:
    batch["codes"][row, :slots] = prompt.codes
  batch["target_at"][row, :count] = np.arange(start - 1, start - 1 + count)
  batch["target"][row, :count] = answer
