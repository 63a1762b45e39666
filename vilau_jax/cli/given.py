"""Flags that would have no effect are refused: who typed one believes that it has."""

from collections.abc import Collection
from typing import Any

from absl import flags


def none(values: flags.FlagValues, names: Collection[str], why: str) -> None:
  """Checks that none of `names` was given.

  Raises:
    ValueError: names those that were, and says why they count for nothing.
  """
  _refuse([n for n in names if values[n].present], why)


def only(values: flags.FlagValues, names: Collection[str], why: str) -> None:
  """Checks that no flag beside `names` (and the fields of a config among them) was given.

  Raises:
    ValueError: names those that were, and says why they count for nothing.
  """
  _refuse([n for n in values if values[n].present and n.split(".")[0] not in names], why)


def can_be_drawn(settings: dict[str, Any], seed: int, count: int) -> None:
  """Checks, before a model is loaded for minutes, what needs none.

  Args:
    settings: of sampling.Sampling, those that were given.
    seed: of the first output.
    count: of outputs.

  Raises:
    ValueError: for a setting out of range, or where an output would have no seed.
  """
  from vilau_jax.generate.sampling import Sampling  # flags first: jax takes seconds

  Sampling(**settings)
  if not 0 <= seed <= 2**32 - count:
    raise ValueError(
      f"--seed={seed} is no seed for {count} output(s): seeds are integers from 0 to 2**32 - 1"
    )


def _refuse(names: Collection[str], why: str) -> None:
  if names:
    typed = ", ".join(f"--{name}" for name in sorted(names))
    raise ValueError(f"{typed} would have no effect here: {why}")
