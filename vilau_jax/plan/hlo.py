"""Reads an optimised program, the text of a compiled executable: what it computes and sends.

Loops count as often as they run. Products are counted where they stand, inside fusions too. What a
program moves is in traffic.py.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s2": 0.25, "u2": 0.25, "token": 0, "opaque": 0,
          "f4e2m1fn": 0.5, "c64": 8, "c128": 16}  # fmt: skip
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(calls|to_apply|body|condition|branch_computations|true_computation"
                     r"|false_computation|called_computations)=(\{[^}]*\}|%[\w.\-]+)")  # fmt: skip
COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute",
               "collective-broadcast", "ragged-all-to-all")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Array:
  """A shape as printed; `space` 0 is device memory, others are on-chip."""

  dtype: str
  dims: tuple[int, ...]
  space: int = 0

  @property
  def size(self) -> int:
    return math.prod(self.dims)

  @property
  def bytes(self) -> float:
    return self.size * width_of(self.dtype)


def width_of(dtype: str) -> float:
  """Bytes of an element."""
  if dtype in _BYTES:
    return _BYTES[dtype]
  bits = re.match(r"(?:bf|f|s|u)(\d+)", dtype)
  return int(bits[1]) / 8 if bits else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line: its result's arrays (a tuple's in order), operation, operands' names, attributes."""

  name: str
  arrays: tuple[Array, ...]
  op: str
  operands: tuple[str, ...]
  rest: str
  literal: str

  @property
  def calls(self) -> dict[str, list[str]]:
    """Attribute -> computations it names."""
    return {kind: _NAME.findall(names) for kind, names in _CALLED.findall(self.rest)}


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
  """Computations by name, each an ordered dict of instructions, the root last known by `roots`."""

  computations: Mapping[str, Computation]
  roots: Mapping[str, str]
  entry: str


def parse(text: str) -> Program:
  """Reads a module.

  Raises:
    ValueError: if the text has no entry computation.
  """
  computations: dict[str, Computation] = {}
  roots: dict[str, str] = {}
  entry, current = "", None
  for line in text.splitlines():
    stripped = line.strip()
    if line and not line[0].isspace():
      head = re.match(r"(ENTRY )?%?([\w.\-]+)\s*\(", line)
      if head and stripped.endswith("{"):
        current = head[2]
        computations[current] = {}
        entry = current if head[1] else entry
      continue
    if current is None or " = " not in stripped:
      continue
    instruction = _instruction(stripped)
    computations[current][instruction.name] = instruction
    if stripped.startswith("ROOT "):
      roots[current] = instruction.name
  if not entry:
    raise ValueError("not the text of a compiled program: it has no ENTRY computation")
  return Program(computations, roots, entry)


def _instruction(line: str) -> Instruction:
  name, right = line.removeprefix("ROOT ").split(" = ", 1)
  end = _closing(right, 0) + 1 if right.startswith("(") else _first_space(right)
  shape, right = right[:end], right[end:].lstrip()
  start = right.index("(")
  stop = _closing(right, start)
  inside = right[start + 1 : stop]
  rest = right[stop + 1 :]
  return Instruction(
    name.lstrip("%"), _arrays(shape), right[:start], tuple(_NAME.findall(inside)), rest, inside
  )


def _first_space(text: str) -> int:
  return text.index(" ")


def _closing(text: str, start: int) -> int:
  """Index of the parenthesis that closes the one at `start`."""
  depth = 0
  for match in re.finditer(r"[()]", text[start:]):
    depth += 1 if match[0] == "(" else -1
    if not depth:
      return start + match.start()
  raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


@functools.cache
def _arrays(text: str) -> tuple[Array, ...]:
  found = []
  for dtype, dims, layout in _ARRAY.findall(text):
    space = re.search(r"S\((\d+)\)", layout or "")
    sizes = tuple(int(re.sub(r"\D", "", d)) for d in dims.split(",") if d)
    found.append(Array(dtype, sizes, int(space[1]) if space else 0))
  return tuple(found)


def runs(program: Program) -> Iterator[tuple[str, Instruction, float, bool]]:
  """Every instruction that runs: (computation, instruction, times, inside a fusion).

  Of a conditional's branches the longest is taken: the one with the most products, then the most
  instructions.
  """

  def walk(name: str, times: float, fused: bool):
    for instruction in program.computations[name].values():
      yield name, instruction, times, fused
      calls = instruction.calls
      if instruction.op == "while":
        turns = trip_count(program, instruction)
        yield from walk(calls["body"][0], times * turns, fused)
      elif instruction.op == "conditional":
        branches = [b for names in calls.values() for b in names]
        yield from walk(max(branches, key=lambda b: _weight(program, b)), times, fused)
      elif instruction.op == "fusion":
        yield from walk(calls["calls"][0], times, True)
      elif instruction.op in ("call", "async-start"):
        for target in calls.get("to_apply", []) or calls.get("calls", []):
          yield from walk(target, times, fused)

  yield from walk(program.entry, 1.0, False)


def _weight(program: Program, name: str) -> tuple[float, int]:
  inner = Program(program.computations, program.roots, name)
  found = [(product_flops(program, c, i) * n, 1) for c, i, n, _ in runs(inner)]
  return sum(f for f, _ in found), len(found)


def trip_count(program: Program, loop: Instruction) -> int:
  """How often a while loop runs.

  Raises:
    ValueError: if neither the compiler noted it nor the condition compares with a constant.
  """
  noted = re.search(r'"known_trip_count":\s*\{\s*"n":\s*"?(\d+)', loop.rest)
  if noted:
    return int(noted[1])
  condition = loop.calls["condition"][0]
  constants = [
    int(i.literal)
    for i in program.computations[condition].values()
    if i.op == "constant" and i.arrays[0].dtype in ("s32", "u32", "s64") and not i.arrays[0].dims
  ]
  if len(constants) != 1:
    raise ValueError(f"loop {loop.name}: it is not known how often it runs")
  return constants[0]


def product_flops(program: Program, computation: str, i: Instruction) -> float:
  """Operations of a product or convolution, 0 for everything else."""
  if i.op not in ("dot", "convolution", "custom-call"):
    return 0.0
  shapes = [_shape_of(program, computation, o) for o in i.operands[:2]]
  if i.op == "dot":
    contracted = _ints(i.rest, "lhs_contracting_dims")
    return 2.0 * i.arrays[0].size * math.prod(shapes[0].dims[d] for d in contracted)
  if i.op == "convolution":
    return _convolution_flops(i, *shapes)
  if "__cublas$" in i.rest or "__triton$gemm" in i.rest:
    contracted = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', i.rest)
    dims = [int(d) for d in re.findall(r"\d+", contracted[1])]
    return 2.0 * i.arrays[0].size * math.prod(shapes[0].dims[d] for d in dims)
  if "__cudnn$conv" in i.rest:
    return _cudnn_flops(i, shapes)
  return 0.0


def _shape_of(program: Program, computation: str, name: str) -> Array:
  return program.computations[computation][name].arrays[0]


def _ints(text: str, attribute: str) -> list[int]:
  match = re.search(rf"{attribute}=\{{([\d,]*)\}}", text)
  return [int(n) for n in match[1].split(",") if n] if match else []


def _convolution_flops(i: Instruction, lhs: Array, rhs: Array) -> float:
  """Products with what is really there: padding and the holes of dilation do not count."""
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest)
  window = re.search(r"window=\{([^}]*)\}", i.rest)
  fields = dict(re.findall(r"(\w+)=(\S+)", window[1])) if window else {}
  batch = int(m[1]) if (m := re.search(r"batch_group_count=(\d+)", i.rest)) else 1
  spatial = [c for c in labels[3] if c.isdigit()]
  total = 2.0 * i.arrays[0].dims[labels[3].index("b")] * i.arrays[0].dims[labels[3].index("f")]
  total *= rhs.dims[labels[2].index("i")]
  del batch  # the output's batch is already divided by it

  def field(name, n, default):
    return int(fields[name].split("x")[n]) if name in fields else default

  for n, c in enumerate(spatial):
    low = int(fields["pad"].split("x")[n].split("_")[0]) if "pad" in fields else 0
    total *= _valid_pairs(
      lhs.dims[labels[1].index(c)], i.arrays[0].dims[labels[3].index(c)],
      rhs.dims[labels[2].index(c)], field("stride", n, 1), low, field("lhs_dilate", n, 1),
      field("rhs_dilate", n, 1),
    )  # fmt: skip
  return total


@functools.cache
def _valid_pairs(
  size: int, out: int, kernel: int, stride: int, low: int, dilate: int, spread: int
) -> int:
  """(output, kernel) positions along an axis that meet an element of the input."""
  total = 0
  for k in range(kernel):
    place = np.arange(out) * stride - low + k * spread
    total += int(((place >= 0) & (place < (size - 1) * dilate + 1) & (place % dilate == 0)).sum())
  return total


def _cudnn_flops(i: Instruction, shapes: Sequence[Array]) -> float:
  """cuDNN's three convolutions: whichever of the arrays is the kernel, the work is its size times
  the positions of the map it is moved over."""
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest)
  out = i.arrays[0]
  image = out if "Backward" in i.rest and "Input" in i.rest else shapes[0]
  kernel = out if "BackwardFilter" in i.rest else shapes[1]
  smaller = shapes[0] if "BackwardInput" in i.rest else shapes[1] if image is out else out
  if "BackwardFilter" in i.rest:
    smaller = shapes[1]
  area = math.prod(smaller.dims) / smaller.dims[labels[3].index("f")]
  return 2.0 * area * kernel.size


def total_flops(program: Program) -> float:
  """Products and convolutions of a run of the program, on one device."""
  return sum(product_flops(program, c, i) * times for c, i, times, _ in runs(program))


@dataclasses.dataclass(frozen=True)
class Collective:
  """Communication of one kind within groups of devices.

  Attributes:
    kind: one of COLLECTIVES.
    groups: device numbers that talk to each other (pairs, for a permutation).
    bytes: of the whole array once a run: what an all-gather makes, what a reduce-scatter reads.
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
    if kind not in COLLECTIVES:
      continue
    if _channel(i) in started and not _starts(program, computation):
      continue
    ins = [_shape_of(program, computation, o).bytes for o in i.operands]
    outs = [a.bytes for a in i.arrays]
    if i.op.endswith("-start") and len(outs) > len(ins):
      outs = outs[len(ins) :]
    size = {"all-gather": sum(outs), "reduce-scatter": sum(ins)}.get(kind, sum(ins))
    kind = "reduce-scatter" if _scatters(kind, computation) else kind
    found.append(Collective(kind, _groups(i, devices), size, times, i.name))
  return found


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
