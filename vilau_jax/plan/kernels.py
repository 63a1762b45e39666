"""Hand-written kernels of a program: no compiler knows their work, the analytic model counts it."""

import re

from vilau_jax.plan import flops
from vilau_jax.plan.hlo import Instruction, Program, runs

# Kernel name contains -> products over the (queries x keys) square, each 2 * L * M * C operations.
# The backward pass recomputes the scores: dq takes 3 products, dk and dv take 4, all at once 5; the
# GPU's kernel does both one after the other, and sums rows of its inputs in another before.
_SQUARES = (
  ("mha_preprocess_backward", 0), ("mha_backward", 7),
  ("dkv_dq", 5), ("fused_bwd", 5), ("fmhasoftmaxbackward", 5), ("dkv", 4), ("dq", 3),
  ("fwd", 2), ("forward", 2), ("fmhasoftmax", 2), ("attention", 2),
)  # fmt: skip
_TRITON = "__gpu$xla.gpu.triton"


def kernel_calls(program: Program) -> list[tuple[str, float, float]]:
  """(name, operations of a call on one device, times) of every attention kernel.

  Raises:
    ValueError: for a kernel that this table does not know.
  """
  calls = [(c, i, n, _name(i).lower()) for c, i, n, _ in runs(program) if _is_kernel(i)]
  apart = any("dq" in name for *_, name in calls)  # else one kernel makes dq, dk and dv
  found = []
  for computation, i, times, name in calls:
    squares = next((n for part, n in _SQUARES if part in name), None)
    squares = 5 if squares == 4 and not apart else squares
    if squares is None:
      raise ValueError(f"kernel {name!r} is not known to vilau_jax/plan/kernels.py: its work "
                       "would be missing from the FLOPs")  # fmt: skip
    here = program.computations[computation]
    found.append((name, _causal(here, i) * squares / 2, times))
  return found


def _is_kernel(i: Instruction) -> bool:
  return i.op == "custom-call" and any(
    target in i.rest for target in ('="tpu_custom_call"', _TRITON, "__cudnn$fmha")
  )


def _name(i: Instruction) -> str:
  kernel = re.search(r'kernel_name[\\"=:\s]+([\w.\-]+)', i.rest)
  op = re.search(r'op_name="([^"]*)"', i.rest)
  target = re.search(r'custom_call_target="([^"]*)"', i.rest)
  for match in (kernel, target if "cudnn" in i.rest else op):
    if match:
      return match[1]
  return i.name  # newer libtpu names the call so, and breaks the line before anything else does


def _causal(here: dict[str, Instruction], i: Instruction) -> float:
  """Both products of a causal forward pass, from the first two operands of four or three axes:
  queries [.., heads, L, C] and keys [.., M, C]; in the GPU's kernel [.., L, heads, C]."""
  arrays = [here[o].arrays[0] for o in i.operands if here[o].arrays]
  shaped = [a for a in arrays if len(a.dims) >= 3 and a.dtype in ("bf16", "f16", "f32")]
  queries, keys = shaped[0].dims, shaped[1].dims
  if _TRITON in i.rest:
    queries, keys = ((*d[:-3], d[-2], d[-3], d[-1]) for d in (queries, keys))
  outer = 1
  for size in queries[:-2]:
    outer *= size
  return outer * flops.attention(queries[-2], keys[-2], queries[-1]) / 2
