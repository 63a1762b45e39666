"""Bytes that an optimised program moves between a device and its memory.

An operation reads its operands and writes its results, a fusion as a whole. What only takes a part
of an operand (a layer's slice of a stack, looked-up rows) reads that part; an update in place
writes the part. On-chip memory (a TPU's other memory spaces) is free.
"""

from vilau_jax.plan.hlo import Array, Computation, Instruction, Program, runs

_FREE = {
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call",
  "after-all", "opt-barrier", "partition-id", "replica-id", "copy-done", "async-start",
  "async-done", "async-update", "add-dependency", "domain", "iota",
}  # fmt: skip
_PARTIAL = ("dynamic-slice", "slice", "gather")
_PASSING = ("bitcast", "reshape", "copy", "convert", "transpose")


def total_bytes(program: Program) -> float:
  """Of a run of the program, on one device."""
  total = 0.0
  for computation, i, times, fused in runs(program):
    if not fused and i.op not in _FREE and not i.op.endswith("-done"):
      total += times * _bytes(program, program.computations[computation], i)
  return total


def _device(arrays) -> float:
  return sum(a.bytes for a in arrays if a.space == 0)


def _bytes(program: Program, here: Computation, i: Instruction) -> float:
  operands = [here[o] for o in i.operands if o in here]
  if i.op == "fusion":
    return _fusion(program, i, operands)
  if i.op in _PARTIAL:
    rest = sum(_device(o.arrays) for o in operands[1:])
    return 2 * _device(i.arrays) + rest if operands and operands[0].arrays[0].space == 0 else 0.0
  if i.op == "dynamic-update-slice":
    return 2 * _device(operands[1].arrays)
  if i.op == "scatter":
    return 2 * _device(operands[-1].arrays) + sum(_device(o.arrays) for o in operands[1:-1])
  if i.op == "custom-call" and "__cu" in i.rest:  # the other results are scratch space
    return sum(_device(o.arrays) for o in operands) + _device(i.arrays[:1])
  if i.op in ("slice-start", "dynamic-slice-start", "copy-start"):
    return _moved(i, operands[0].arrays[0])
  if i.op.endswith("-start"):  # its result repeats the operands
    read = sum(_device(o.arrays) for o in operands)
    written = [a for a in i.arrays if a.size > 1]
    half = written[len(operands) :] if len(written) > len(operands) else written
    return read + _device(half)
  return sum(_device(o.arrays) for o in operands) + _device(i.arrays)


def _moved(i: Instruction, source: Array) -> float:
  """A transfer between memories; a copy names its target first, a slice its operand."""
  target = i.arrays[0] if i.op == "copy-start" else i.arrays[1]
  return target.bytes * ((source.space == 0) + (target.space == 0))


def _fusion(program: Program, i: Instruction, operands: list[Instruction]) -> float:
  inner = program.computations[i.calls["calls"][0]]
  root = inner[program.roots[i.calls["calls"][0]]]
  users: dict[str, list[Instruction]] = {}
  for user in inner.values():
    for name in user.operands:
      users.setdefault(name, []).append(user)
  total = 0.0
  for instruction in inner.values():
    if instruction.op == "parameter":
      number = int(instruction.literal)
      whole = operands[number].arrays[0] if number < len(operands) else instruction.arrays[0]
      if whole.space == 0:
        total += min(whole.bytes, _read(instruction, users, whole))
  roots = [inner[o] for o in root.operands] if root.op == "tuple" else [root]
  for written, array in zip(roots, i.arrays):
    if array.space:
      continue
    update = _behind(inner, written)
    total += inner[update.operands[1]].arrays[0].bytes if _in_place(update) else array.bytes
  return total


def _in_place(i: Instruction) -> bool:
  return i.op == "dynamic-update-slice"


def _behind(inner: Computation, i: Instruction) -> Instruction:
  """What a chain of reshapes and conversions passes on."""
  while i.op in _PASSING and i.operands and i.operands[0] in inner:
    i = inner[i.operands[0]]
  return i


def _read(i: Instruction, users: dict[str, list[Instruction]], whole: Array) -> float:
  """Bytes of a fusion's parameter that are read, given who uses it inside."""
  total = 0.0
  for user in users.get(i.name, []):
    if user.op in _PARTIAL and user.operands[0] == i.name:
      total += user.arrays[0].bytes
    elif _in_place(user) and user.operands[0] == i.name:
      continue
    elif user.op in ("bitcast", "reshape"):
      total += _read(user, users, whole)
    else:
      return whole.bytes
  return total
