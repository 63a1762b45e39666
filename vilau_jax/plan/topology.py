"""Machines that need not be there: names such as "v5e:16x16" or "h100:8x8", and their devices."""

import dataclasses
import difflib
import functools
import importlib.util
import math
import os
import pathlib
import re
from typing import Any

import jax
from jax.experimental import topologies

from vilau_jax.plan.chips import CHIPS, Chip

EXAMPLES = "v5e:16x16, v5p:4x4x8, v6e:8x8, v4:4x4x4, 2*v5e:16x16 (slices), h100:8x8 (hosts x GPUs)"


@dataclasses.dataclass(frozen=True)
class Topology:
  """A machine.

  Attributes:
    name: as given.
    chip: what its devices are.
    shape: chips along the torus (TPU), hosts and devices a host (GPU).
    slices: TPU slices, which share only the data centre's network.
  """

  name: str
  chip: Chip
  shape: tuple[int, ...]
  slices: int = 1

  @property
  def count(self) -> int:
    return self.slices * math.prod(self.shape)

  @functools.cached_property
  def devices(self) -> list[Any]:
    """Devices to compile for, in order.

    Raises:
      ValueError: if the compiler is not installed or does not know the shape.
    """
    need = "jax_cuda13_plugin" if self.chip.is_gpu else "libtpu"
    if importlib.util.find_spec(need) is None:
      raise ValueError(f"compiling for {self.chip.name} needs {need}; pip install -e '.[plan]'")
    try:
      return list((self._gpu if self.chip.is_gpu else self._tpu)().devices)
    except jax.errors.JaxRuntimeError as error:
      said = str(error).splitlines()[0]
      raise ValueError(f"--topology={self.name}: the compiler refuses it: {said}") from error

  def _tpu(self):
    # Without these libtpu asks a metadata server that is not there, and locks out a second process.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    shape = "x".join(map(str, self.shape))
    more = {"num_slices": self.slices} if self.slices > 1 else {}
    # A host holds at most 2x4 of the 2-D chips; one smaller than a host needs to be told.
    if math.prod(self.shape) == 1:
      more["chips_per_host_bounds"] = (1, 1, 1)
    if self.chip.name == "v4":  # as JAX runs them: both cores of a chip are one device
      more["chip_config_name"] = "megacore"
    return topologies.get_topology_desc(
      platform="tpu", topology_name=f"{self.chip.name}:{shape}", **more
    )

  def _gpu(self):
    shape = "x".join(map(str, (1, *self.shape)))
    return topologies.get_topology_desc(
      platform="cuda", topology_name=shape, topology=shape, target_config=self.chip.target
    )

  def compiler_options(self, folder: str | None = None) -> dict[str, Any]:
    """Options of the compiler: on GPUs nothing can be timed, and CUDA's tools must be found; that
    of TPUs writes what it made to `folder`."""
    if not self.chip.is_gpu:
      return {"xla_dump_to": folder, "xla_dump_hlo_as_text": True} if folder else {}
    return {
      "xla_gpu_autotune_level": 0,
      "xla_gpu_enable_triton_gemm": False,  # its tilings are found by timing
      "xla_gpu_cuda_data_dir": str(_cuda_folder()),
    }


def parse(name: str) -> Topology:
  """Reads a topology's name.

  Raises:
    ValueError: for an unknown chip (with the nearest known one) or a shape that chip does not have.
  """
  match = re.fullmatch(r"(?:(\d+)\*)?([A-Za-z0-9-]+):(\d+(?:x\d+)*)", name.strip())
  if not match:
    raise ValueError(f"--topology={name!r} is not CHIP:SHAPE; such as {EXAMPLES}")
  slices, chip, shape = int(match[1] or 1), match[2].lower(), match[3]
  if chip not in CHIPS:
    near = difflib.get_close_matches(chip, CHIPS, 1, cutoff=0.4)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"--topology={name}: unknown chip {chip!r}{hint}; known: {', '.join(CHIPS)}")
  sizes = tuple(int(s) for s in shape.split("x"))
  rank = CHIPS[chip].axes or 2
  if len(sizes) != rank or not all(sizes) or not slices:
    what = "hosts x GPUs a host" if CHIPS[chip].is_gpu else f"a torus of {rank} dimensions"
    example = "x".join("8" * rank) if rank == 2 else "4x4x8"
    raise ValueError(f"--topology={name}: {chip} takes {what}, such as {chip}:{example}")
  if CHIPS[chip].is_gpu and slices > 1:
    raise ValueError(f"--topology={name}: slices are a TPU's; give more hosts instead")
  return Topology(name, CHIPS[chip], sizes, slices)


@functools.cache
def _cuda_folder() -> pathlib.Path:
  """Where XLA finds bin/ptxas and nvvm/libdevice: CUDA's own folder, or that of the nvcc wheel."""
  roots = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
  spec = importlib.util.find_spec("nvidia")
  for parent in spec.submodule_search_locations if spec else ():
    roots += [str(p) for p in sorted(pathlib.Path(parent).glob("cu*"))]
  for root in roots:
    if root and (pathlib.Path(root) / "bin" / "ptxas").exists():
      return pathlib.Path(root)
  raise ValueError("compiling for GPUs needs ptxas; pip install -e '.[plan]', or set CUDA_HOME")
