"""Compiles a program for a machine and measures it: memory, work, traffic, communication."""

import contextlib
import dataclasses
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vilau_jax import sharding
from vilau_jax.plan import hlo, kernels, network, programs, roofline, traffic
from vilau_jax.plan.topology import Topology

GIB = 2**30
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is known about one program on one machine; `result` is what `--json` prints.

  Attributes:
    text: the optimised program, "" where the compiler gave up.
  """

  config: ConfigDict
  topology: Topology
  mesh: Mesh
  work: programs.Work
  result: dict[str, Any]
  text: str = dataclasses.field(default="", repr=False)


def make_mesh(config: ConfigDict, topology: Topology, workload: str = "train") -> Mesh:
  """The config's mesh over the machine's devices; drawing shares every product by all devices, and
  tokenizing gives each its own pictures."""
  axes = {"generate": dict(data=1, tensor=-1), "tokenize": dict(data=-1)}
  axes = axes.get(workload) or config.mesh.to_dict()
  return sharding.make_mesh(**axes, devices=topology.devices)


def make_plan(
  config: ConfigDict, topology: Topology, workload: str = "train", quantize: str | None = None
) -> Plan:
  """Compiles `workload` of `config` for `topology`; `quantize`: weights to draw with, see int8.py.

  Raises:
    ValueError: for a workload, a mesh or a config that cannot be right.
  """
  if workload not in programs.WORKLOADS:
    raise ValueError(f"--workload must be one of {programs.WORKLOADS}, got {workload!r}")
  if quantize and workload != "generate":
    raise ValueError(f"{quantize} weights are for --workload=generate, not {workload}")
  more = dict(quantize=quantize) if workload == "generate" else {}
  with quiet_compiler(), tempfile.TemporaryDirectory() as folder:
    mesh = make_mesh(config, topology, workload)
    work = getattr(programs, workload)(config, mesh, **more)
    try:
      compiled = work.lower(mesh).compile(compiler_options=topology.compiler_options(folder))
    except jax.errors.JaxRuntimeError as error:
      result = _does_not_fit(str(error), topology, work)
      return Plan(config, topology, mesh, work, result)
    text, memory = _text_of(compiled, topology, folder), compiled.memory_analysis()
  return Plan(config, topology, mesh, work, _measured(text, memory, topology, mesh, work), text)


def _text_of(compiled: Any, topology: Topology, folder: str) -> str:
  """The optimised program. A TPU's is read from what its compiler wrote: chips with SparseCores get
  operations that jaxlib cannot read back ("async-update instruction should have 1 operands")."""
  if topology.chip.is_gpu:
    return compiled.as_text()
  (file,) = pathlib.Path(folder).glob("*.after_codegen.txt")
  return file.read_text()


def _measured(text: str, memory: Any, topology: Topology, mesh: Mesh, work: Any) -> dict[str, Any]:
  program = hlo.parse(text)
  found = network.collectives(program, mesh.size)
  calls = kernels.kernel_calls(program)
  flops = hlo.total_flops(program) + sum(n * times for _, n, times in calls)
  moved = traffic.total_bytes(program)
  model = work.model_flops["total"] / mesh.size
  bounds = roofline.bounds(topology, list(mesh.devices.flat), flops, moved, found)
  # A program drops the arguments that it does not read; they stay in memory all the same.
  kept = programs.device_bytes(work.arguments) + programs.device_bytes(work.beside)
  total = max(kept, memory.argument_size_in_bytes) + memory.output_size_in_bytes
  total += memory.temp_size_in_bytes - memory.alias_size_in_bytes
  total += memory.generated_code_size_in_bytes
  usage = _memory(topology.chip.room, work, memory.temp_size_in_bytes, total)
  step = bounds["step_s"]
  return {
    "fits": total <= topology.chip.room,
    "memory_gib_per_device": usage,
    "flops_per_device": {"compiled": flops, "model": model, "ratio": flops / model},
    "bytes_per_device": {
      "accessed": moved, "minimum": work.minimum_bytes, "ratio": moved / work.minimum_bytes
    },
    "collectives": network.by_axis(found, dict(mesh.shape)),
    "roofline": bounds | {"mfu_at_most": model / topology.chip.flops / step},
    "throughput": {"tokens_per_s": work.tokens / step, "images_per_s": work.images / step},
  }  # fmt: skip


def _memory(room: float, work: Any, temporaries: float, total: float) -> dict[str, float]:
  values = {
    "parameters": programs.device_bytes((work.parameters, work.beside)),
    "optimizer": programs.device_bytes(work.optimizer),
    "activations": work.activations,
    "temporaries": temporaries,
    "total": total,
    "hbm": room,
    "headroom": room - total,
  }
  return {name: value / GIB for name, value in values.items()}


def _does_not_fit(message: str, topology: Topology, work: Any) -> dict[str, Any]:
  """The plan of a program that the compiler refused for lack of memory.

  Raises:
    ValueError: if it was refused for another reason.
  """
  kept = programs.device_bytes(work.arguments) + programs.device_bytes(work.beside)
  whole = re.search(r"Used ([\d.]+)([KMG]?) of ([\d.]+)([KMG]?) hbm", message)
  room = topology.chip.room
  temporary = re.search(r"HLO temporaries \(([\d.]+)([KMG]?)\) exceeds available HBM", message)
  if whole:
    total = float(whole[1]) * _UNITS[whole[2]]
    room = float(whole[3]) * _UNITS[whole[4]]  # what the compiler keeps for itself is not there
  elif temporary:
    total = float(temporary[1]) * _UNITS[temporary[2]] + kept
  else:
    lines = [line for line in message.splitlines() if line.strip()]
    raise ValueError(f"this program does not compile for {topology.name}: {lines[0][:600]}")
  return {
    "fits": False, "memory_gib_per_device": _memory(room, work, total - kept, total),
    "flops_per_device": None, "bytes_per_device": None, "collectives": [], "roofline": None,
    "throughput": None,
  }  # fmt: skip


@contextlib.contextmanager
def quiet_compiler() -> Iterator[None]:
  """Keeps what compilers write on file descriptor 2 (host names, missing devices) from people;
  shows it where an exception leaves."""
  if os.environ.get("VILAU_TRACEBACK"):
    yield
    return
  sys.stderr.flush()
  kept = os.dup(2)
  with tempfile.TemporaryFile() as log:
    os.dup2(log.fileno(), 2)
    try:
      yield
    except ValueError:
      raise
    except BaseException:
      log.seek(0)
      os.write(kept, log.read()[-4000:])
      raise
    finally:
      sys.stderr.flush()
      os.dup2(kept, 2)
      os.close(kept)
