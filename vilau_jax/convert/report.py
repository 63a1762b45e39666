"""What a conversion did: a table for people, and manifest.json for machines."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from vilau_jax import checkpoint
from vilau_jax.convert.plan import Plan, component
from vilau_jax.convert.sources import read_json

MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
_ORDER = ("vision", "text", "logit", "encoder", "codebook", "post_quant", "decoder", "projector",
          "llm", "depth")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Part:
  """A component: tensors of the checkpoint, values and bytes in them (copies counted once)."""

  component: str
  tensors: int
  parameters: int
  bytes: int


@dataclasses.dataclass(frozen=True)
class Report:
  """Attributes:
  action: "imported", "exported" or "verified".
  format: of the checkpoint.
  source, output: where from, where to.
  parts: one a component.
  ignored: tensors or entries that are knowingly not used -> why.
  copies: tensors that were (or are written as) copies of another one.
  seconds: how long it took.
  """

  action: str
  format: str
  source: str
  output: str
  parts: tuple[Part, ...]
  ignored: Mapping[str, str]
  copies: int
  seconds: float

  @property
  def total(self) -> Part:
    parts = [dataclasses.astuple(p)[1:] for p in self.parts]
    return Part("total", *(sum(column) for column in zip(*parts)))

  def table(self) -> str:
    """The table for people."""
    rows = [("component", "tensors", "parameters", "bytes")]
    for p in (*self.parts, self.total):
      rows.append((p.component, f"{p.tensors:,}", f"{p.parameters:,}", f"{p.bytes:,}"))
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [
      "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths)))
      for row in rows
    ]
    rule = "-" * len(lines[0])
    lines = [lines[0], rule, *lines[1:-1], rule, lines[-1]]
    if self.copies:
      lines.append(f"{self.copies} tensors are copies of others; all copies are equal")
    for why in sorted(set(self.ignored.values())):
      names = [name for name, reason in self.ignored.items() if reason == why]
      more = f" and {len(names) - 3} more" if len(names) > 3 else ""
      lines.append(f"not used: {', '.join(names[:3])}{more} ({why})")
    return "\n".join(lines)


def summarise(plan: Plan, dtypes: Mapping[str, np.dtype], names: Mapping[str, int]) -> tuple:
  """Parts of a report, from the dtypes of our variables and how many tensors make each."""
  counts: dict[str, list[int]] = {}
  for target, (shape, _) in plan.leaves.items():
    row = counts.setdefault(component(target), [0, 0, 0])
    size = math.prod(shape)
    for i, more in enumerate((names[target], size, size * dtypes[target].itemsize)):
      row[i] += more
  return tuple(Part(name, *counts[name]) for name in _ORDER if name in counts)


def write_manifest(
  folder: pathlib.Path, format: str, source: str, tensors: list[dict[str, Any]]
) -> None:
  """Writes manifest.json beside a model's config.json."""
  value = {"format_version": MANIFEST_VERSION, "format": format, "source": source,
           "tensors": tensors}  # fmt: skip
  checkpoint.write_json(folder / MANIFEST, value)


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
  """The manifest of a model directory.

  Raises:
    ValueError: if there is none, or one of another release.
  """
  file = folder / MANIFEST
  if not file.is_file():
    raise ValueError(f"{folder} has no {MANIFEST}: only imported models can be verified")
  value = read_json(file)
  if value.get("format_version") != MANIFEST_VERSION:
    raise ValueError(f"{file}: format_version {value.get('format_version')!r}, this release reads "
                     f"{MANIFEST_VERSION}")  # fmt: skip
  return value
