"""Mesh, THE table of logical axis names, and the shardings derived from them.

Every parameter and every key activation names its axes; this one table maps names to mesh axes, and
the mesh sizes choose the strategy: a size of 1 turns an axis off. There is no second mechanism.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor", "context")

# Logical axis -> mesh axes. `None` is replicated by policy, not by omission: an unknown name is an
# error.
RULES: dict[str, tuple[str, ...] | str | None] = {
  # activations
  "batch": ("data", "fsdp"),
  "length": "context",
  "act_embed": None,
  "act_heads": "tensor",
  "act_mlp": "tensor",
  "act_vocab": "tensor",
  "height": None,
  "width": None,
  "channels": None,
  # parameters
  "layers": None,
  "vocab": "tensor",
  "embed": "fsdp",
  "adapter": ("tensor", "fsdp"),
  "heads": "tensor",
  "kv_heads": "tensor",
  "head_dim": None,
  "mlp": "tensor",
  "norm": None,
  "position": None,
  "depth": None,
  "entries": "tensor",
  "code": "fsdp",
  "kernel": None,
  "conv_in": "fsdp",
  "conv_out": "tensor",
  "image_channels": None,
}


def make_mesh(
  data: int = -1,
  fsdp: int = 1,
  tensor: int = 1,
  context: int = 1,
  dcn_data: int = 1,
  devices: Sequence[jax.Device] | None = None,
) -> Mesh:
  """Builds the device mesh; one size may be -1 and takes what the others leave.

  Args:
    data: copies of the parameters, each with its share of the batch.
    fsdp: devices that share a copy and its batch.
    tensor: devices that share the products of a layer.
    context: devices that share a sequence.
    dcn_data: slices of the job, which only a data centre's network joins. Each holds its own
      copies: the other sizes describe one slice, and the axis "data" is dcn_data * data long, the
      slice its slow index, so that nothing but gradients crosses the slow network.
    devices: the devices to use; None uses all of the job.

  Raises:
    ValueError: if the sizes do not multiply to the number of devices, or the job has another number
      of slices.
  """
  if dcn_data != 1:
    inside = dict(data=data, fsdp=fsdp, tensor=tensor, context=context)
    return _mesh_of_slices(dcn_data, inside, jax.devices() if devices is None else devices)
  sizes = [data, fsdp, tensor, context]
  shape = dict(zip(MESH_AXES, sizes))
  count = jax.device_count() if devices is None else len(devices)
  if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
    raise ValueError(f"mesh {shape}: sizes are positive, and at most one may be -1")
  if -1 in sizes:
    rest = -math.prod(sizes)
    if count % rest:
      raise ValueError(f"mesh {shape}: {count} devices cannot be divided by {rest}")
    sizes[sizes.index(-1)] = count // rest
  if math.prod(sizes) != count:
    raise ValueError(f"mesh {shape} needs {math.prod(sizes)} devices, this job has {count}")
  types = (AxisType.Auto,) * len(MESH_AXES)
  devices = jax.devices() if devices is None else devices
  if len({device.process_index for device in devices}) > 1:
    # jax.make_mesh follows the torus, of which a host owns a block: its rows of a batch would be
    # scattered over the mesh, and are read as one piece.
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(ordered).reshape(sizes), MESH_AXES, axis_types=types)
  return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=types, devices=devices)


def _mesh_of_slices(count: int, inside: dict[str, int], devices: Sequence[jax.Device]) -> Mesh:
  """Slices one after the other along "data"; a machine without slices is cut by processes."""
  numbers = [getattr(device, "slice_index", 0) for device in devices]
  if len(set(numbers)) == 1 and devices[0].platform != "tpu":  # CPUs are all of slice 0
    numbers = [device.process_index for device in devices]
  slices: dict[int, list[jax.Device]] = {}
  for number, device in zip(numbers, devices):
    slices.setdefault(number, []).append(device)
  if count < 1 or len(slices) != count:
    raise ValueError(f"mesh.dcn_data is {count}, but this job has {len(slices)} slice(s)")
  meshes = [make_mesh(**inside, devices=slices[i]) for i in sorted(slices)]
  return Mesh(
    np.concatenate([m.devices for m in meshes]), MESH_AXES, axis_types=meshes[0].axis_types
  )


def _check(names: tuple[str | None, ...], ndim: int) -> None:
  unknown = [n for n in names if n is not None and n not in RULES]
  if unknown or len(names) != ndim:
    raise ValueError(
      f"axis names {names} do not fit an array of rank {ndim}; known names: {sorted(RULES)}"
    )


def platform() -> str:
  """Of the devices that are compiled for, which need not be there: "cpu", "tpu", "cuda", .."""
  mesh = jax.sharding.get_abstract_mesh()
  device = None if mesh.empty else mesh.abstract_device
  return jax.default_backend() if device is None else device.platform


def spec(*names: str | None) -> PartitionSpec:
  """The partition spec of an array with these logical axes."""
  _check(names, len(names))
  return PartitionSpec(*(None if n is None else RULES[n] for n in names))


def boxed(init: Callable[..., jax.Array], *names: str | None) -> Callable[..., Any]:
  """Wraps an initializer so that its parameter remembers its logical axes."""
  inner = nn.with_logical_partitioning(init, names)

  def wrapped(key, shape, dtype=jnp.float32):
    _check(names, len(shape))
    return inner(key, shape, dtype)

  return wrapped


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Pins activation `x` to its logical axes; the identity where no mesh is set.

  An axis that does not divide stays unconstrained: activations have data-dependent sizes (one
  prompt, a last partial batch), and leaving them to the partitioner changes speed, never a result.
  Parameters are strict.
  """
  _check(names, x.ndim)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  axes = [
    None if n is None or x.shape[i] % _ways(RULES[n], mesh.shape) else RULES[n]
    for i, n in enumerate(names)
  ]
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def _ways(axes: tuple[str, ...] | str | None, shape) -> int:
  if axes is None:
    return 1
  return math.prod(shape[a] for a in ((axes,) if isinstance(axes, str) else axes))


def state_shardings(boxed_tree: Any, mesh: Mesh) -> Any:
  """Shardings of a boxed (abstract) tree: parameters, optimizer moments, collections.

  Leaves without a box (step counters, scalars) are replicated.

  Raises:
    ValueError: if a mesh axis does not divide a parameter; names the parameter, the size and the
      largest mesh-axis size that would.
  """

  def one(path, leaf):
    if not isinstance(leaf, nn.LogicallyPartitioned):
      return NamedSharding(mesh, PartitionSpec())
    names = [_adapters(size, n, mesh.shape) for size, n in zip(leaf.value.shape, leaf.names)]
    for size, name in zip(leaf.value.shape, names):
      ways = _ways(None if name is None else RULES[name], mesh.shape)
      if size % ways:
        legal = max(w for w in range(1, ways + 1) if size % w == 0)
        raise ValueError(
          f"parameter {jax.tree_util.keystr(path, simple=True, separator='/')} has {size} along "
          f"'{name}', which mesh axes {RULES[name]} of size {ways} do not divide; "
          f"the largest legal size is {legal}"
        )
    return NamedSharding(mesh, spec(*names))

  return jax.tree_util.tree_map_with_path(
    one, boxed_tree, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
  )


def _adapters(size: int, name: str | None, shape: Mapping[str, int]) -> str | None:
  """An adapter's axis, shared over fsdp too where that divides it, else as its projection's."""
  return "mlp" if name == "adapter" and size % _ways(RULES[name], shape) else name


def of_parts(arrays: Any, parts: Any) -> Any:
  """Shardings of what quantised weights consist of.

  Args:
    arrays: tree of weights, arrays or abstract ones with their sharding.
    parts: the same tree with abstract parts of the same rank in place of a weight: integers, which
      lie as the weight does, and scales, which do so where an axis still divides.
  """

  def one(leaf, part):
    where = leaf.sharding
    if not isinstance(where, NamedSharding):
      return where
    spec = [*where.spec, *[None] * (part.ndim - len(where.spec))]
    fits = [part.shape[i] % _ways(axes, where.mesh.shape) == 0 for i, axes in enumerate(spec)]
    kept = [axes if fit else None for axes, fit in zip(spec, fits)]
    return NamedSharding(where.mesh, PartitionSpec(*kept))

  return jax.tree.map(lambda a, p: jax.tree.map(lambda x: one(a, x), p), arrays, parts)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over data and fsdp, everything else whole."""
  return NamedSharding(mesh, spec("batch"))


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Turns this process's rows into arrays sharded over the whole mesh."""
  sharding = batch_sharding(mesh)
  return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
