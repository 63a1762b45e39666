"""What the devices of an optimised program send each other: collectives, and their mesh axes."""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vilau_jax.plan.hlo import Instruction, Program, runs, shape_of

COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute",
               "collective-broadcast", "ragged-all-to-all")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Collective:
  """Communication of one kind within groups of devices.

  Attributes:
    kind: one of COLLECTIVES.
    groups: device numbers that talk to each other (pairs, for a permutation).
    bytes: of the whole array once a run: what an all-gather makes, what a reduce-scatter reads; of
      a device's part of it, for an all-to-all and a permutation.
    times: how often it runs.
  """

  kind: str
  groups: tuple[tuple[int, ...], ...]
  bytes: float
  times: float
  name: str = ""


def collectives(program: Program, devices: int) -> list[Collective]:
  """All communication, as often as it runs.

  A TPU overlaps one with other work by writing it into several fusions, of which the first, marked
  as its start, is counted.
  """
  found, started = [], _split_channels(program)
  for computation, i, times, _ in runs(program):
    kind = i.op.removesuffix("-start")
    if i.op == "send" and "_xla_megascale_transfer_type" in i.rest:
      size = shape_of(program, computation, i.operands[0]).bytes
      found.append(_between_slices(i, size, times, devices))
    if kind not in COLLECTIVES:
      continue
    if _channel(i) in started and not _starts(program, computation):
      continue
    ins = [shape_of(program, computation, o).bytes for o in i.operands]
    outs = [a.bytes for a in i.arrays]
    if i.op.endswith("-start") and len(outs) > len(ins):
      outs = outs[len(ins) :]
    size = {"all-gather": sum(outs), "reduce-scatter": sum(ins)}.get(kind, sum(ins))
    kind = "reduce-scatter" if _scatters(kind, computation) else kind
    found.append(Collective(kind, _groups(i, devices), size, times, i.name))
  return found


def _between_slices(i: Instruction, size: float, times: float, devices: int) -> Collective:
  """What a TPU hands to its host for other slices: target {1,2}x{0:3} is devices 0 to 3 of the
  first two, each with its likes; a program's devices are ordered by slice."""
  kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', i.rest)[1].lower().replace("_", "-")
  target = re.search(r'_xla_megascale_target="\{([\d,]+)\}x\{([\d,:]+)\}"', i.rest)
  if not target:
    raise ValueError(f"{i.name}: slices of a kind that is not understood: {i.rest[:300]}")
  slices = [n - 1 for n in _numbers(target[1])]
  low, _, high = target[2].partition(":")
  members = range(int(low), int(high) + 1) if high else _numbers(target[2])
  apart = devices // len(slices)
  groups = tuple(tuple(s * apart + d for s in slices) for d in members)
  return Collective(kind, groups, size, times, i.name)


def _channel(i: Instruction) -> str:
  match = re.search(r"channel_id=(\d+)", i.rest)
  return match[1] if match else i.name


def _starts(program: Program, computation: str) -> bool:
  body = program.computations[computation].values()
  return any('custom_call_target="AsyncCollectiveStart"' in i.rest for i in body)


def _split_channels(program: Program) -> set[str]:
  """Channels of collectives that are written into several fusions."""
  return {
    _channel(i)
    for name, body in program.computations.items()
    if _starts(program, name)
    for i in body.values()
    if i.op in COLLECTIVES
  }


def _scatters(kind: str, computation: str) -> bool:
  """TPUs write a reduce-scatter as a fusion of an all-reduce and the slice of it that is kept."""
  return kind == "all-reduce" and "all-reduce-scatter" in computation


def _groups(i: Instruction, devices: int) -> tuple[tuple[int, ...], ...]:
  """Who talks to whom; XLA has five ways to write it.

  Raises:
    ValueError: for a sixth.
  """
  pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", i.rest)
  if pairs:
    return tuple(tuple(map(int, p)) for p in re.findall(r"\{(\d+),(\d+)", pairs[0]))
  iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", i.rest)
  if iota:
    return _rows(_iota(iota[2], iota[3]).reshape(_numbers(iota[1])))
  named = re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}", i.rest)
  if named:
    return _named_groups(named[1], named[2], named[3])
  listed = re.search(r"replica_groups=(\{\{.*?\}\}|\{\})", i.rest)
  if not listed:
    raise ValueError(f"{i.name}: replica groups of a kind that is not understood: {i.rest[:300]}")
  groups = tuple(tuple(_numbers(g)) for g in re.findall(r"\{(\d[\d,]*)\}", listed[1]))
  return groups or (tuple(range(devices)),)


def _numbers(text: str) -> list[int]:
  return [int(n) for n in text.split(",")]


def _rows(ids: np.ndarray) -> tuple[tuple[int, ...], ...]:
  return tuple(map(tuple, ids.tolist()))


def _iota(shape: str, order: str | None) -> np.ndarray:
  """0, 1, 2, .. in a shape whose axes are then permuted."""
  sizes = _numbers(shape)
  ids = np.arange(math.prod(sizes)).reshape(sizes)
  return ids.transpose(_numbers(order)) if order else ids


def _named_groups(mesh: str, devices: str | None, axes: str) -> tuple[tuple[int, ...], ...]:
  """mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_1'}: groups along named axes."""
  sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", mesh)}
  inside = re.findall(r"'(\w+)'", axes)
  order = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", devices) if devices else None
  if "(" in axes or bool(devices) != bool(order):
    raise ValueError(f"replica groups not understood: mesh[{mesh}] ({devices}) {{{axes}}}")
  ids = _iota(order[1], order[2]) if order else np.arange(math.prod(sizes.values()))
  ids = ids.reshape(tuple(sizes.values()))
  names = list(sizes)
  outside = [k for k, name in enumerate(names) if name not in inside]
  width = math.prod(sizes[name] for name in inside)
  return _rows(ids.transpose(outside + [names.index(n) for n in inside]).reshape(-1, width))


def mesh_axes(groups: Sequence[Sequence[int]], sizes: Mapping[str, int]) -> str:
  """The mesh axes within which the groups lie: "fsdp", "data,fsdp", or "none" for alone."""
  place = np.array(np.unravel_index(np.arange(math.prod(sizes.values())), tuple(sizes.values())))
  moving = set()
  for group in groups:
    different = (place[:, list(group)] != place[:, [group[0]]]).any(axis=1)
    moving |= {name for name, moves in zip(sizes, different) if moves}
  return ",".join(name for name in sizes if name in moving) or "none"


def by_axis(found: Sequence[Collective], sizes: Mapping[str, int]) -> list[dict[str, Any]]:
  """[{"kind", "axis", "bytes", "count"}], largest first; groups of one device are left out."""
  totals: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
  for c in found:
    axis = mesh_axes(c.groups, sizes)
    if axis != "none":
      totals[c.kind, axis][0] += c.bytes * c.times
      totals[c.kind, axis][1] += c.times
  rows = [
    {"kind": kind, "axis": axis, "bytes": size, "count": int(count)}
    for (kind, axis), (size, count) in totals.items()
  ]
  return sorted(rows, key=lambda row: -row["bytes"])
