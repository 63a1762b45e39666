"""Reads an optimised program, the text of a compiled executable: what runs, and what it computes.

Loops count as often as they run. Products are counted where they stand, inside fusions too. What a
program moves and sends is in traffic.py and network.py.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s2": 0.25, "u2": 0.25, "token": 0, "opaque": 0,
          "f4e2m1fn": 0.5, "c64": 8, "c128": 16}  # fmt: skip
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(calls|to_apply|body|condition|branch_computations|true_computation"
                     r"|false_computation|called_computations)=(\{[^}]*\}|%[\w.\-]+)")  # fmt: skip


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
  shapes = [shape_of(program, computation, o) for o in i.operands[:2]]
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


def shape_of(program: Program, computation: str, name: str) -> Array:
  return program.computations[computation][name].arrays[0]


def _ints(text: str, attribute: str) -> list[int]:
  match = re.search(rf"{attribute}=\{{([\d,]*)\}}", text)
  return [int(n) for n in match[1].split(",") if n] if match else []


def _convolution_flops(i: Instruction, lhs: Array, rhs: Array) -> float:
  """Products with what is really there: padding and the holes of dilation do not count."""
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", i.rest)
  window = re.search(r"window=\{([^}]*)\}", i.rest)
  fields = dict(re.findall(r"(\w+)=(\S+)", window[1])) if window else {}
  left, right, out = (labels[n] for n in (1, 2, 3))

  def field(name: str, axis: int, default: int) -> int:
    return int(fields[name].split("x")[axis].split("_")[0]) if name in fields else default

  total = 2.0 * i.arrays[0].dims[out.index("b")] * i.arrays[0].dims[out.index("f")]
  total *= rhs.dims[right.index("i")]
  for c in filter(str.isdigit, out):
    axis = int(c)
    sizes = (lhs.dims[left.index(c)], i.arrays[0].dims[out.index(c)], rhs.dims[right.index(c)])
    steps = field("stride", axis, 1), field("pad", axis, 0)
    total *= _valid_pairs(
      *sizes, *steps, field("lhs_dilate", axis, 1), field("rhs_dilate", axis, 1)
    )
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
