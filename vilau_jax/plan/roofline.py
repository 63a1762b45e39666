"""How long a step takes at least: products, memory and network, each at its peak."""

from collections.abc import Mapping, Sequence
from typing import Any

from vilau_jax.plan.network import Collective
from vilau_jax.plan.topology import Topology


def bounds(
  topology: Topology,
  devices: Sequence[Any],
  flops: float,
  moved: float,
  found: Sequence[Collective],
) -> dict[str, Any]:
  """Seconds a step of each limit, as if the others cost nothing, and which is the largest.

  Args:
    topology: the machine.
    devices: its devices in the program's order, which is that of the mesh.
    flops: operations of a device.
    moved: bytes between a device and its memory.
    found: its communication.

  Returns:
    {"compute_s", "memory_s", "network_s", "step_s", "limit"}.
  """
  chip = topology.chip
  terms: Mapping[str, float] = {
    "compute": flops / chip.flops,
    "memory": moved / chip.bandwidth,
    "network": sum(c.times * seconds(topology, devices, c) for c in found),
  }
  limit = max(terms, key=terms.__getitem__)
  return {f"{k}_s": v for k, v in terms.items()} | {"step_s": terms[limit], "limit": limit}


def seconds(topology: Topology, devices: Sequence[Any], c: Collective) -> float:
  """One collective over rings (TPU) or through switch and NICs (GPU), bandwidth alone.

  A ring of n moves (n - 1) / n of an array past every device; an all-reduce does so twice. An
  all-to-all sends that share of what each device holds; the slowest pair ends a permutation.
  """
  n = len(c.groups[0])
  if n < 2:
    return 0.0
  if c.kind == "collective-permute":
    pairs = {tuple(p) for p in c.groups if p[0] != p[1]}
    speeds = [_bandwidth(topology, [devices[i] for i in pair]) for pair in pairs]
    return c.bytes / min(speeds) if speeds else 0.0
  passes = 2 if c.kind == "all-reduce" else 1
  # Every group has the shape of the first, as mesh axes give them.
  speed = _bandwidth(topology, [devices[i] for i in c.groups[0]])
  return passes * (n - 1) / n * c.bytes / speed


def _bandwidth(topology: Topology, group: Sequence[Any]) -> float:
  """Bytes a second at which an array passes a device of the group."""
  chip = topology.chip
  if chip.is_gpu:
    local = topology.shape[1]
    hosts = {d.id // local for d in group}
    # Across hosts an array enters a host through the NICs of all its GPUs that take part.
    outside = chip.network * len(group) / len(hosts)
    return chip.link if len(hosts) == 1 else min(chip.link, outside)
  slices = {getattr(d, "slice_index", 0) for d in group}
  if len(slices) > 1:
    of_one = [d for d in group if getattr(d, "slice_index", 0) == min(slices)]
    outside = chip.network * len(group) / len(slices)
    return min(_bandwidth(topology, of_one), outside) if len(of_one) > 1 else outside
  coordinates = list(zip(*(d.coords for d in group)))
  spanned = [(a, len(set(c))) for a, c in enumerate(coordinates) if len(set(c)) > 1]
  whole = sum(_closed(topology, axis, extent) for axis, extent in spanned)
  return chip.link / chip.axes * max(whole, 0.5)


def _closed(topology: Topology, axis: int, extent: int) -> float:
  """1 for a torus dimension that closes into a ring, 0.5 for a line."""
  full = axis < len(topology.shape) and extent == topology.shape[axis]
  return 1.0 if full and extent % topology.chip.ring == 0 else 0.5
