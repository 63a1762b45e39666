"""LoRA and QLoRA through qwix: adapters beside frozen projections, and how they are merged.

Every projection [in, out] of the named parts gets A [in, r] and B [r, out] as parameters
"<name>_lora_a" and "<name>_lora_b" beside its own, stacked where layers are; its output grows by
alpha / r * x A B. QLoRA keeps the frozen projections quantised in memory; on disk they are whole.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from vilau_jax import sharding

A, B = "_lora_a", "_lora_b"
BASES = ("", "int8", "int4", "nf4")  # types of the frozen projections
_TILES = {"int4": 64, "nf4": 64}  # inputs of a projection that share a scale; else all of them
# The head is taken apart by the loss; patches are no projection of one axis.
_EXCLUDED = r"(?!(?:.*/)?(?:classifier|embed)$)"
_HEADS_OUT = r"(?=(?:.*/)?(?:o_proj|out)$)"  # contracted over two axes, which have no tiles
Tree = dict[str, Any]


def check(lora: ConfigDict) -> None:
  """Raises ValueError for values that cannot be."""
  if lora.rank < 0 or (lora.rank and (lora.alpha <= 0 or not lora.targets)):
    raise ValueError(
      f"lora: rank {lora.rank} needs a positive alpha ({lora.alpha}) and targets ({lora.targets})"
    )
  if lora.base not in BASES:
    raise ValueError(f"lora.base must be one of {BASES}, got {lora.base!r}")


def adapted(
  net: nn.Module, lora: ConfigDict, methods: Iterable[str], *, root: str = "", base: bool = True
) -> nn.Module:
  """The net with adapters; the net itself where lora.rank is 0.

  Args:
    net: a Linen module.
    lora: rank, alpha, targets (path prefixes such as "llm", "depth/layers", "tower/vision"), base.
    methods: those through which the net is called.
    root: where the net's own parameters stand among those that targets name.
    base: whether the frozen projections are quantised, as lora.base says.
  """
  if not lora.rank:
    return net
  import qwix

  rules = []
  for target in lora.targets:
    inside = target.removeprefix(root).strip("/") if target.startswith(root) else None
    if inside is None:
      continue
    path = f"{re.escape(inside)}(?:/.*)?" if inside else ".*"
    for which, tile in ((_HEADS_OUT, None), ("", _TILES.get(lora.base))):
      quantised = dict(weight_qtype=lora.base, tile_size=tile) if lora.base and base else {}
      rules.append(
        qwix.LoraRule(
          module_path=_EXCLUDED + which + path,
          op_names=("dot_general",),
          rank=lora.rank,
          alpha=float(lora.alpha),
          **quantised,
        )
      )
  return qwix.apply_lora_to_model(net, qwix.LoraProvider(rules), methods=tuple(methods))


def is_adapter(key: tuple[str, ...]) -> bool:
  """Whether the parameter at this path is part of an adapter."""
  return key[-1].endswith((A, B))


def split(params: Tree, lora: ConfigDict, freeze: Iterable[str] = ()) -> tuple[Tree, Tree]:
  """(adapters, all else).

  Raises:
    ValueError: for a target that got no adapter, or one below what `freeze` (optim.freeze) names,
      which must be there.
  """
  flat = traverse_util.flatten_dict(params)
  for prefix in freeze:
    if not any(f"{'/'.join(k)}/".startswith(f"{prefix.strip('/')}/") for k in flat):
      raise ValueError(f"optim.freeze: no parameter starts with {prefix!r}")
    if any(is_adapter(k) and f"{'/'.join(k)}/".startswith(f"{prefix.strip('/')}/") for k in flat):
      raise ValueError(
        f"lora.targets {tuple(lora.targets)} puts adapters into {prefix!r}, which optim.freeze "
        "names: give narrower targets, or take it out of optim.freeze"
      )
  for target in lora.targets:
    if not any(is_adapter(k) and f"{'/'.join(k)}/".startswith(f"{target}/") for k in flat):
      raise ValueError(f"lora.targets: no projection below {target!r}")
  parts = ({k: v for k, v in flat.items() if is_adapter(k) == want} for want in (True, False))
  adapters, rest = (traverse_util.unflatten_dict(part) for part in parts)
  return jax.tree.map(_spread, adapters, is_leaf=_is_boxed), rest


def _is_boxed(leaf: Any) -> bool:
  return isinstance(leaf, nn.LogicallyPartitioned)


def _spread(leaf: Any) -> Any:
  """A boxed adapter of which fsdp would leave a copy on every device, shared by it too."""
  if not _is_boxed(leaf) or "fsdp" in sharding.spec(*leaf.names):
    return leaf
  names = (n and ("adapter" if sharding.spec(n)[0] == "tensor" else n) for n in leaf.names)
  return leaf.replace(names=tuple(names))


def cast(adapters: Tree, dtype: str) -> Tree:
  """Adapters as the products read them; the masters stay float32."""
  return jax.tree.map(lambda x: x.astype(dtype), adapters)


def compressed(frozen: Tree, quantised: Tree) -> Tree:
  """Frozen parameters as a net with quantised projections reads them, on the same devices.

  Args:
    frozen: arrays, or abstract ones with their sharding, which give abstract ones.
    quantised: that net's abstract parameters, of jax.eval_shape.
  """
  import qwix

  bare = jax.tree.map(lambda x: x.value if _is_boxed(x) else x, quantised, is_leaf=_is_boxed)
  wanted = traverse_util.flatten_dict(bare)

  def one(value, like):
    return qwix.quantize_params({"kernel": value}, {"kernel": like})["kernel"]

  def all_of(params):
    flat = traverse_util.flatten_dict(params)
    for key, value in flat.items():
      like = wanted[key]
      if "layers" in key:  # qwix knows one layer's shape
        like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), like)
        flat[key] = jax.vmap(lambda v, like=like: one(v, like))(value)
      else:
        flat[key] = one(value, like)
    return traverse_util.unflatten_dict(flat)

  parts = jax.eval_shape(all_of, frozen)
  where = sharding.of_parts(frozen, parts)
  if all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(frozen)):
    return jax.tree.map(
      lambda a, where: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), parts, where
    )
  return jax.jit(all_of, out_shardings=where)(frozen)


def merged(params: Tree, lora: Mapping[str, Any]) -> Tree:
  """A model's parameters with the adapters added to what they stand beside.

  Args:
    params: numpy arrays, with or without adapters.
    lora: rank, alpha and base that they were trained with.

  Returns:
    Parameters without adapters, of the same types.
  """
  flat = traverse_util.flatten_dict(params)
  for key in [k for k in flat if k[-1].endswith(A)]:
    name = (*key[:-1], key[-1].removesuffix(A))
    a, b = (np.asarray(flat.pop((*name[:-1], name[-1] + end)), np.float32) for end in (A, B))
    base = np.asarray(flat[name])
    stacked = base.shape[:1] if "layers" in name else ()
    rank = lora["rank"]
    delta = a.reshape(*stacked, -1, rank) @ b.reshape(*stacked, rank, -1)
    tiled = lora["base"] in _TILES and key[-2] not in ("o_proj", "out")
    whole = _rounded(base.reshape(delta.shape), lora["base"], tiled).astype(np.float32)
    whole += lora["alpha"] / rank * delta
    flat[name] = whole.reshape(base.shape).astype(base.dtype)
  return traverse_util.unflatten_dict(flat)


def _rounded(kernel: np.ndarray, base: str, tiled: bool) -> np.ndarray:
  """The values that a quantised projection [..., in, out] computes with; a layer of a stack at a
  time, since nf4 looks sixteen values up for each."""
  if not base:
    return kernel
  found = np.empty(kernel.shape, kernel.dtype)
  for layer in np.ndindex(kernel.shape[:-2]):
    found[layer] = _through(kernel[layer], base, tiled)
  return found


@functools.partial(jax.jit, static_argnames=("base", "tiled"))
def _through(kernel: jax.Array, base: str, tiled: bool) -> jax.Array:
  """[in, out] to `base` and back."""
  import qwix

  tiles = {0: _TILES[base]} if tiled else {}
  return qwix.dequantize(qwix.quantize(kernel, base, channelwise_axes=[1], tiled_axes=tiles))
