"""From logits to one drawn index: guidance, temperature, top-k, top-p, in the reference's order.

Which filters run is static (it shapes the compiled program); their values are traced, so another
temperature never recompiles. Axis letters: B rows, E entries (codes or text ids).
"""

import dataclasses
import functools
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vilau_jax import sharding

# Binary digits of a threshold that a pass over the entries finds, see _threshold.
_DIGITS = {"cpu": 1}
_DIGITS_ELSEWHERE = 4
COLDEST = 1e-5  # temperature; colder ones are greedy in all but name
_LARGEST = float(np.finfo(np.float32).max)


class Switches(NamedTuple):
  """What a compiled program does; hashable, a static argument."""

  guided: bool
  greedy: bool
  top_k: bool
  top_p: bool


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How to draw.

  Attributes:
    temperature: 0 takes the most likely entry and ignores top_k and top_p; above it at least
      COLDEST.
    top_k: entries below the k-th largest logit are dropped, ties with it stay; None keeps all,
      and a value above the number of entries is clipped to it.
    top_p: of the sorted probabilities those stay whose predecessors sum to less than top_p.
    cfg_scale: classifier-free guidance, unconditional + cfg_scale * (conditional - unconditional);
      1 needs no unconditional rows.
  """

  temperature: float = 1.0
  top_k: int | None = None
  top_p: float = 1.0
  cfg_scale: float = 1.0

  def __post_init__(self):
    for name in ("temperature", "top_p", "cfg_scale"):
      value = getattr(self, name)
      if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"{name} must be a number, got {value!r:.200}")
    if not (self.temperature == 0 or COLDEST <= self.temperature <= _LARGEST):
      raise ValueError(
        f"temperature must be at least 0 (0 is greedy; above it at least {COLDEST}, below which "
        f"logits divided by it overflow), got {self.temperature}"
      )
    if self.top_k is not None and whole("top_k", self.top_k) < 1:
      raise ValueError(f"top_k must be at least 1, got {self.top_k}; None keeps every entry")
    if not 0 < self.top_p <= 1:
      raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")
    if not 0 <= self.cfg_scale <= _LARGEST:
      raise ValueError(f"cfg_scale must be at least 0 (1 is no guidance), got {self.cfg_scale}")

  def switches(self, entries: int) -> Switches:
    """The program these settings need over `entries` choices."""
    greedy = self.temperature == 0
    return Switches(
      guided=self.cfg_scale != 1,
      greedy=greedy,
      top_k=not greedy and self.top_k is not None and self.top_k < entries,
      top_p=not greedy and self.top_p < 1,
    )

  def values(self, entries: int) -> dict[str, np.generic]:
    """The traced half of the settings."""
    return {
      "temperature": np.float32(self.temperature),
      "top_k": np.int32(min(self.top_k or entries, entries)),
      "top_p": np.float32(self.top_p),
      "cfg_scale": np.float32(self.cfg_scale),
    }


def whole(name: str, value: Any) -> int:
  """The value, if it is an integer.

  Raises:
    ValueError: also for True, and for 2.0.
  """
  if isinstance(value, bool) or not isinstance(value, numbers.Integral):
    raise ValueError(f"{name} must be an integer, got {value!r:.200}")
  return int(value)


def guide(logits: jax.Array, scale: jax.Array) -> jax.Array:
  """[2n, E], conditional rows first, -> guided float32 [n, E]; before any filter."""
  conditional, unconditional = jnp.split(logits.astype(jnp.float32), 2)
  return unconditional + scale * (conditional - unconditional)


def keep_top_k(logits: jax.Array, k: jax.Array | int) -> jax.Array:
  """Sets logits below the k-th largest of their row to -inf; ties with it stay.

  Args:
    logits: float32 [B, E].
    k: 1..E.
  """
  order = _ordered_bits(logits)
  threshold = _threshold(order, jnp.ones_like(order), k)
  return jnp.where(order >= threshold[:, None], logits, -jnp.inf)


def keep_top_p(logits: jax.Array, p: jax.Array | float) -> jax.Array:
  """Nucleus filter: in descending order an entry stays if those before it sum to less than p.

  Equal logits keep their order of index. Probabilities are those of `logits` as given, so
  what top-k dropped (-inf) has none.

  Args:
    logits: float32 [B, E].
    p: above 0, at most 1.
  """
  # Compared are the logits: compilers compute a softmax anew in each kernel that reads it, and a
  # probability that is rounded otherwise the second time falls below its own threshold.
  order, probs = _ordered_bits(logits), jax.nn.softmax(logits, axis=-1)
  threshold = jnp.minimum(_threshold(order, probs, p), jnp.max(order, axis=-1))[:, None]
  tied = order == threshold
  value = jnp.max(jnp.where(tied, probs, 0), axis=-1, keepdims=True)
  rank = jnp.cumsum(tied, axis=-1) - 1
  above = jnp.sum(jnp.where(order > threshold, probs, 0), axis=-1, keepdims=True)
  room = above + rank * value < p
  return jnp.where((order > threshold) | (tied & room), logits, -jnp.inf)


def filtered(logits: jax.Array, values: dict[str, jax.Array], switches: Switches) -> jax.Array:
  """Temperature, then top-k on the logits, then top-p: float32 [B, E] -> [B, E].

  softmax of the result is the distribution that is drawn from.
  """
  logits = logits.astype(jnp.float32) / values["temperature"]
  if switches.top_k or switches.top_p:  # compared bit by bit, so they are computed once
    logits = jax.lax.optimization_barrier(logits)
  if switches.top_k:
    logits = keep_top_k(logits, values["top_k"])
  if switches.top_p:
    logits = keep_top_p(logits, values["top_p"])
  return logits


def draw(
  logits: jax.Array, keys: jax.Array, values: dict[str, jax.Array], switches: Switches
) -> tuple[jax.Array, jax.Array]:
  """Draws one entry a row.

  Args:
    logits: [B, E]; with `switches.guided` [2B, E], conditional rows first.
    keys: one key a row, [B].

  Returns:
    int32 [B], and bool [B]: whether the row's logits were finite.
  """
  if switches.guided:
    logits = guide(logits, values["cfg_scale"])
  finite = jnp.isfinite(logits).all(axis=-1)
  if switches.greedy:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32), finite
  kept = filtered(logits, values, switches)
  noise = jax.vmap(lambda key: jax.random.gumbel(key, kept.shape[1:], jnp.float32))(keys)
  return jnp.argmax(kept + noise, axis=-1).astype(jnp.int32), finite


def output_seeds(seed: int | Sequence[int], count: int) -> list[int]:
  """One seed an output: a scalar s gives output i the seed s + i.

  Raises:
    ValueError: for a list of another length, or a seed that is no integer in 0..2**32-1.
  """
  alone = not isinstance(seed, Sequence | np.ndarray)
  given: list[Any] = [seed] if alone else list(seed)  # type: ignore[arg-type]
  for s in given:
    whole("seed", s)
  seeds = [int(given[0]) + i for i in range(count)] if alone else [int(s) for s in given]
  if len(seeds) != count:
    raise ValueError(f"{len(seeds)} seeds for {count} outputs; give one integer or one an output")
  wrong = next((s for s in seeds if not 0 <= s < 2**32), None)
  if wrong is not None:
    raise ValueError(f"seeds are integers from 0 to 2**32 - 1, got {wrong}")
  return seeds


def output_keys(seeds: list[int]) -> jax.Array:
  """Seeds -> keys [B]. Of threefry, whatever JAX's default is: a seed is the same picture on every
  machine, and rbg's depends on the batch."""
  key = functools.partial(jax.random.key, impl="threefry2x32")
  return jax.vmap(key)(np.asarray(seeds, np.uint32))


def fold(keys: jax.Array, numbers: jax.Array) -> jax.Array:
  """fold_in by row: keys [B] and numbers int32 [B] (or one for all) -> keys [B]."""
  numbers = jnp.broadcast_to(jnp.asarray(numbers), keys.shape)
  return jax.vmap(jax.random.fold_in)(keys, numbers)


def _ordered_bits(x: jax.Array) -> jax.Array:
  """float32 -> int32 that sorts like it, so that a threshold is found by halving integers."""
  bits = jax.lax.bitcast_convert_type(x, jnp.int32)
  bits = jnp.where(x == 0, 0, bits)  # -0 equals 0; XLA would drop an addition of 0
  return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def _threshold(order: jax.Array, weights: jax.Array, goal: jax.Array | float) -> jax.Array:
  """The largest threshold at or above which the weights of a row still sum to `goal`.

  Its binary digits are found from the highest down, _DIGITS of them a pass over the entries: on a
  CPU a pass costs its comparisons, which one digit needs the fewest of; elsewhere it costs its
  start.

  Args:
    order: int32 [B, E].
    weights: [B, E], not negative.
    goal: what a row sums to is enough; a higher one gives the lowest integer.

  Returns:
    int32 [B].
  """
  digits = _DIGITS.get(sharding.platform(), _DIGITS_ELSEWHERE)
  higher = jnp.arange(1, 2**digits, dtype=jnp.int32)

  def refine(i, low):  # sums of signed integers wrap, so all 32 digits count up from the lowest
    shift = 32 - digits * (i + 1)
    candidates = low[:, None] + (higher << shift)
    reaching = order[:, None] >= candidates[:, :, None]
    sums = jnp.sum(jnp.where(reaching, weights[:, None], 0), axis=-1)
    return low + (jnp.sum(sums >= goal, axis=-1, dtype=jnp.int32) << shift)

  lowest = jnp.full(order.shape[:1], jnp.iinfo(jnp.int32).min)
  return jax.lax.fori_loop(0, 32 // digits, refine, lowest, unroll=digits > 1)
