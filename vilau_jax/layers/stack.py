"""Stacks of equal blocks: scanned with stacked parameters for training, unrolled with a cache for
decoding."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from vilau_jax.layers.causal import OUTPUT

LAYERS = "layers"

# Policies of ours, beside the members of jax.checkpoint_policies.
POLICIES = {
  # One array of the width a layer more than "nothing_saveable": attention is not computed again.
  "save_attention": jax.checkpoint_policies.save_only_these_names(OUTPUT),
}


def checkpointed(remat: str, *, prevent_cse: bool = False) -> Callable:
  """Wraps a module class in rematerialisation by policy name; "none" leaves it as it is.

  Outside a scan `prevent_cse` must be True, or the compiler undoes it.
  """
  if remat == "none":
    return lambda block: block
  policy = POLICIES.get(remat) or getattr(jax.checkpoint_policies, remat, None)
  if policy is None:
    raise ValueError(
      f"remat must be 'none', one of {sorted(POLICIES)} or a member of jax.checkpoint_policies, "
      f"got {remat!r}"
    )
  return lambda block: nn.remat(block, prevent_cse=prevent_cse, policy=policy)


def scan_blocks(
  block: type[nn.Module],
  fields: dict[str, Any],
  length: int,
  x: jax.Array,
  *args: Any,
  remat: str = "none",
  unroll: int = 1,
) -> jax.Array:
  """Runs `length` blocks with parameters stacked on a leading axis, under the name "layers".

  The loop runs `unroll` blocks a turn; the parameters are the same for every value.

  Call it inside a compact method. A block maps (x, *args) to (x, cache); the cache is dropped here.
  """
  layer = checkpointed(remat)(block)(name=LAYERS, **fields)
  run = nn.scan(
    lambda m, carry, _: (m(carry, *args)[0], None),
    variable_axes={"params": 0},
    split_rngs={"params": True, "dropout": True},
    length=length,
    unroll=unroll,
    metadata_params={nn.PARTITION_NAME: "layers"},
  )
  return run(layer, x, None)[0]


def unroll_blocks(
  block: type[nn.Module],
  fields: dict[str, Any],
  x: jax.Array,
  *args: Any,
  caches: list[Any],
  **kwargs: Any,
) -> tuple[jax.Array, list[Any]]:
  """Runs one block a cache with separate parameters "layers_0", "layers_1", ...

  Decoding reads every weight once a position; a slice of a stacked weight would be copied first,
  and a scanned cache would be copied whole. See `unstack`.
  """
  updated = []
  for i, cache in enumerate(caches):
    x, cache = block(name=f"{LAYERS}_{i}", **fields)(x, *args, cache=cache, **kwargs)
    updated.append(cache)
  return x, updated


def unstack(params: dict[str, Any]) -> dict[str, Any]:
  """{"layers": stacked, ...} -> {"layers_0": ..., "layers_1": ..., ...}; other entries are kept."""
  rest = {k: v for k, v in params.items() if k != LAYERS}
  depth = jax.tree.leaves(params[LAYERS])[0].shape[0]
  return rest | {
    f"{LAYERS}_{i}": jax.tree.map(lambda a, i=i: a[i], params[LAYERS]) for i in range(depth)
  }
