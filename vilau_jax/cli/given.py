"""Flags that would have no effect are refused: who typed one believes that it has."""

from collections.abc import Collection

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


def _refuse(names: Collection[str], why: str) -> None:
  if names:
    typed = ", ".join(f"--{name}" for name in sorted(names))
    raise ValueError(f"{typed} would have no effect here: {why}")
