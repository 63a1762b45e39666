"""From a family's table to a plan: which source tensor fills which part of which of our arrays; and
the one check that nothing is missing, left over, or of another shape or dtype.

A table is a list of Rows. A row whose names hold "{layer}" fills the layers of a stacked array.
"""

import dataclasses
import difflib
import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from flax import traverse_util

from vilau_jax.config import VilaUConfig
from vilau_jax.convert.sources import Tensors, shorten
from vilau_jax.convert.transforms import Shape, Transform
from vilau_jax.models.vilau import abstract_variables

LAYER = "{layer}"
WEIGHTS = ("float32", "float16", "bfloat16")
# Stored in float32 beside half-precision weights by some trainers: moving averages and scalars.
_OWN_DTYPE = ("quantizer/", "params/tower/logit_")


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of a family's table.

  Attributes:
    target: our variable, for example "params/llm/layers/mlp/up_proj/kernel".
    names: the source's names of the tensor. One must be there; where several are, they are copies
      and must be equal. An export writes all.
    also: more names of copies, which an export does not write.
    how: source layout <-> ours.
    part: (k, n): the source holds n arrays after each other on its first axis, this is the k-th.
    layer: the place in a stacked target, where the names do not say "{layer}".
  """

  target: str
  names: tuple[str, ...]
  how: Transform
  part: tuple[int, int] = (0, 1)
  layer: int | None = None
  also: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Piece:
  """A Row for one layer. `names` are all it may have, `written` those an export writes; `shape` is
  that of our array, or of one layer of it."""

  names: tuple[str, ...]
  written: tuple[str, ...]
  how: Transform
  part: tuple[int, int]
  layer: int | None
  shape: Shape

  @property
  def source_shape(self) -> Shape:
    """Of the whole source tensor, all parts together."""
    first, *rest = self.how.source_shape(self.shape)
    return (first * self.part[1], *rest)

  def to_ours(self, source: np.ndarray) -> np.ndarray:
    k, n = self.part
    size = source.shape[0] // n if n > 1 else 0
    return self.how.to_ours(source[k * size : (k + 1) * size] if n > 1 else source, self.shape)


@dataclasses.dataclass(frozen=True)
class Plan:
  """Attributes:
  leaves: our variable -> its shape and its pieces, ordered by layer.
  ignored: patterns of source names that are knowingly not used -> why.
  """

  leaves: dict[str, tuple[Shape, list[Piece]]]
  ignored: dict[str, str]

  def pieces(self) -> Iterable[tuple[str, Piece]]:
    for target, (_, pieces) in self.leaves.items():
      for piece in pieces:
        yield target, piece

  def reason(self, name: str) -> str | None:
    """Why a source tensor is knowingly ignored; None: it is not."""
    return next((why for p, why in self.ignored.items() if re.fullmatch(p, name)), None)


@functools.lru_cache(maxsize=8)  # tracing a model takes a second
def shapes_of(config: VilaUConfig, *prefixes: str) -> dict[str, Shape]:
  """Our variables below the prefixes ("params/llm", "quantizer") and their shapes."""
  flat = traverse_util.flatten_dict(nn.unbox(abstract_variables(config)), sep="/")
  return {
    path: tuple(leaf.shape)
    for path, leaf in flat.items()
    if any(path == p or path.startswith(f"{p}/") for p in prefixes)
  }


def make_plan(shapes: Mapping[str, Shape], rows: Iterable[Row], ignored: Mapping[str, str]) -> Plan:
  """Expands a table over the layers of our arrays; every array must be filled exactly."""
  pieces: dict[str, list[Piece]] = {path: [] for path in shapes}
  for row in rows:
    shape = shapes[row.target]
    layers = range(shape[0]) if LAYER in row.names[0] else [row.layer]
    for i in layers:
      names, also = (tuple(n.replace(LAYER, str(i)) for n in ns) for ns in (row.names, row.also))
      inner = shape if i is None else shape[1:]
      pieces[row.target].append(Piece(names + also, names, row.how, row.part, i, inner))
  leaves = {path: (shapes[path], sorted(found, key=_order)) for path, found in pieces.items()}
  for path, (shape, found) in leaves.items():
    layers = [piece.layer for piece in found]
    assert layers in ([None], list(range(shape[0] if shape else 0))), (path, shape, layers)
  return Plan(leaves, dict(ignored))


def _order(piece: Piece) -> int:
  return -1 if piece.layer is None else piece.layer


def check(plan: Plan, tensors: Tensors) -> None:
  """Checks names, shapes and dtypes of a source against a plan, before anything is read.

  Raises:
    ValueError: listing everything that does not fit.
  """
  infos, problems = tensors.infos, []
  known = {name: piece for _, piece in plan.pieces() for name in piece.names}
  unused = [n for n in infos if n not in known and plan.reason(n) is None]
  for _, piece in plan.pieces():
    if piece.part[0] == 0 and not any(name in infos for name in piece.names):
      near = _nearest(piece.names[0], unused)
      problems.append(f"{piece.names[0]} {_show(piece.source_shape)}: missing{near}")
  absent = [name for name in known if name not in infos]
  for name in unused:
    info = infos[name]
    near = _nearest(name, absent or known)
    problems.append(f"{name} {_show(info.shape)}: nothing of this model is called so{near}")
  for name, piece in known.items():
    if name in infos and infos[name].shape != piece.source_shape:
      problems.append(
        f"{name}: shape {_show(infos[name].shape)}, the config makes it {_show(piece.source_shape)}"
      )
  problems += _dtype_problems(plan, infos)
  if problems:
    raise ValueError(
      f"{tensors.where} does not fit the model that its config describes "
      f"({len(problems)} problem{'s' if len(problems) > 1 else ''}):\n  "
      + "\n  ".join(shorten(problems, 24))
    )


def _dtype_problems(plan: Plan, infos: Mapping[str, Any]) -> list[str]:
  """Kinds that are no weights, and tensors whose dtype is not that of their component."""
  problems, of_component = [], {}
  for target, piece in plan.pieces():
    for name in piece.names:
      if name not in infos or piece.part[0]:
        continue
      info = infos[name]
      if info.dtype is None or info.dtype.name not in WEIGHTS:
        problems.append(f"{name}: dtype {info.kind} in {info.file.name}; weights are {WEIGHTS}")
      elif not target.startswith(_OWN_DTYPE):
        of_component.setdefault(component(target), {}).setdefault(info.dtype.name, []).append(name)
      elif target.startswith("quantizer/"):
        of_component.setdefault(target, {}).setdefault(info.dtype.name, []).append(name)
  for group, found in of_component.items():
    usual = max(found, key=lambda dtype: len(found[dtype]))
    for dtype, names in found.items():
      if dtype != usual:
        problems += [f"{n}: dtype {dtype}, the rest of {group} is {usual}" for n in names]
  return problems


def component(target: str) -> str:
  """The part of a model that a variable belongs to, as reports name it."""
  parts = target.split("/")
  if parts[0] == "quantizer":
    return "codebook"
  inner = parts[2] if parts[1] == "tower" else parts[1]
  return {"quant": "encoder", "logit_scale": "logit", "logit_bias": "logit"}.get(inner, inner)


def _nearest(name: str, names: Iterable[str]) -> str:
  near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.75)
  return f" (nearest: {near[0]})" if near else ""


def _show(shape: Shape) -> str:
  return "[" + ", ".join(map(str, shape)) + "]"
