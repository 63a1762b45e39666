"""How long a step takes at least: products, memory and network, each at its peak."""

from collections.abc import Mapping, Sequence
from typing import Any

from vilau_jax.plan.network import Collective
from vilau_jax.plan.topology import Topology


def bounds(
  topology: Topology, flops: float, moved: float, found: Sequence[Collective]
) -> dict[str, Any]:
  """Seconds a step of each limit, as if the others cost nothing, and which is the largest.

  Args:
    topology: the machine.
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
    "network": sum(c.times * seconds(topology, c) for c in found),
  }
  limit = max(terms, key=terms.__getitem__)
  return {f"{k}_s": v for k, v in terms.items()} | {"step_s": terms[limit], "limit": limit}


def seconds(topology: Topology, c: Collective) -> float:
  """One collective over rings (TPU) or through switch and NICs (GPU), bandwidth alone.

  A ring of n moves (n - 1) / n of an array past every device; an all-reduce does so twice.
  """
  n = len(c.groups[0])
  if n < 2:
    return 0.0
  if c.kind == "collective-permute":
    return c.bytes / _bandwidth(topology, c.groups)
  passes = 2 if c.kind == "all-reduce" else 1
  share = (n - 1) / n / (n if c.kind == "all-to-all" else 1)
  return passes * share * c.bytes / _bandwidth(topology, c.groups)


def _bandwidth(topology: Topology, groups: Sequence[Sequence[int]]) -> float:
  """Bytes a second at which an array passes a device of the group.

  Every group has the shape of the first, as mesh axes give them.
  """
  chip, devices = topology.chip, topology.devices
  group = [devices[i] for i in groups[0]]
  if chip.is_gpu:
    local = topology.shape[1]
    hosts = {i // local for i in groups[0]}
    # Across hosts an array enters a host through the NICs of all its GPUs that take part.
    return chip.link if len(hosts) == 1 else chip.network * (len(group) / len(hosts))
  if len({getattr(d, "slice_index", 0) for d in group}) > 1:
    together = len(group) / topology.slices
    return chip.network * together
  coordinates = list(zip(*(d.coords for d in group)))
  spanned = [(a, len(set(c))) for a, c in enumerate(coordinates) if len(set(c)) > 1]
  whole = sum(_closed(topology, axis, extent) for axis, extent in spanned)
  return chip.link / chip.axes * max(whole, 0.5)


def _closed(topology: Topology, axis: int, extent: int) -> float:
  """1 for a torus dimension that closes into a ring, 0.5 for a line."""
  full = axis < len(topology.shape) and extent == topology.shape[axis]
  return 1.0 if full and extent % topology.chip.ring == 0 else 0.5
