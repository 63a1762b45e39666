"""Weights on their way from the disk to the devices that need them, a layer at a time.

Stacks of layers are taken apart: a decoding step reads every weight once, and slices of a stack
would be copied first. A weight that is still on the disk is read here and goes straight to its
shards, so the host holds a few weights at a time and the devices never hold a stack besides.
"""

import concurrent.futures
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vilau_jax import sharding
from vilau_jax.config import VilaUConfig
from vilau_jax.generate import int8
from vilau_jax.layers.product import contracted_axes
from vilau_jax.layers.stack import LAYERS
from vilau_jax.models.vilau import abstract_variables
from vilau_jax.streaming import StoredArray

READERS = 4  # weights that are read at once
STACKS = ("llm", "depth")
Key = tuple[str, ...]


def place(
  params: dict[str, Any], config: VilaUConfig, mesh: Mesh | None, quantize: str | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Parameters as they are stored -> decoding parameters on the devices, and their stored dtypes.
  Float32 tables and weights of products come in the compute dtype.

  Args:
    params: components of leaves that are arrays or StoredArray.
    config: of the model.
    mesh: None takes the default device; otherwise the table in sharding.py says where they go.
    quantize: "int8" turns each product's weight into eight bits as it arrives; see int8.py.

  Raises:
    ValueError: if a mesh axis does not divide a parameter.
  """
  flat = traverse_util.flatten_dict(params)
  where: dict[Key, NamedSharding | None] = dict.fromkeys(flat)
  if mesh is not None:
    boxed = abstract_variables(config)["params"]
    where = traverse_util.flatten_dict(
      sharding.state_shardings({k: boxed[k] for k in params}, mesh)
    )
  with concurrent.futures.ThreadPoolExecutor(READERS) as readers:
    ready = functools.partial(_place, dtype=jnp.dtype(config.dtype), quantize=quantize)
    placed = list(readers.map(lambda key: list(ready(key, flat[key], where[key])), flat))
  leaves = {key: leaf for some in placed for key, leaf, _ in some}
  dtypes = {key: dtype for some in placed for key, _, dtype in some}
  return traverse_util.unflatten_dict(leaves), traverse_util.unflatten_dict(dtypes)


def _place(
  key: Key, leaf: Any, where: NamedSharding | None, dtype: jnp.dtype, quantize: str | None
) -> Iterator[tuple[Key, Any, Any]]:
  convert = int8.quantize_leaf if quantize else lambda _, leaf: leaf
  if key[0] in STACKS and key[1] == LAYERS:
    if where is not None:
      where = NamedSharding(where.mesh, PartitionSpec(*where.spec[1:]))
    for i, layer in enumerate(leaf.rows() if isinstance(leaf, StoredArray) else leaf):
      own = (key[0], f"{LAYERS}_{i}", *key[2:])
      yield own, convert(own, _put(own, layer, where, dtype, quantize)), leaf.dtype
  else:
    whole = leaf.read() if isinstance(leaf, StoredArray) else leaf
    yield key, convert(key, _put(key, whole, where, dtype, quantize)), leaf.dtype


def _put(
  key: Key, leaf: Any, where: NamedSharding | None, dtype: jnp.dtype, quantize: str | None
) -> jax.Array:
  multiplied = contracted_axes(key, leaf.ndim) > 0
  # As every use would cast it: float32 from training takes twice the memory and the time. Eight
  # bits are made from all that there is.
  if leaf.dtype == jnp.float32 and ((multiplied and not quantize) or key[-1] == "embed_tokens"):
    leaf = leaf.astype(dtype)
  if jax.default_backend() == "cpu" and leaf.dtype in (jnp.bfloat16, jnp.float16):
    leaf = np.asarray(leaf).astype(np.float32)  # XLA has no fast half precision there
  return jnp.asarray(leaf) if where is None else jax.device_put(leaf, where)
