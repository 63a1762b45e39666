"""Flags that would have no effect are refused: who typed one believes that it has."""

from collections.abc import Collection

from absl import flags


def only(values: flags.FlagValues, names: Collection[str], why: str) -> None:
  """Checks that no flag beside `names` (and the fields of a config among them) was given.

  Raises:
    ValueError: names those that were, and says why they count for nothing.
  """
  found = [f"--{n}" for n in values if values[n].present and n.split(".")[0] not in names]
  if found:
    raise ValueError(f"{', '.join(sorted(found))} would have no effect here: {why}")
