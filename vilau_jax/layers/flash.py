"""Causal attention inside segments by the TPU's fused kernel: no [L, L] array exists anywhere.

Axis letters: B batch, L positions, H query heads, K kv heads, C head dim.
"""

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from vilau_jax import sharding

_TILE, _LARGEST = 128, 512  # positions of a block


def fits(length: int, head_dim: int) -> bool:
  """Whether this machine has the kernel and it takes these sizes. A sequence that several devices
  share, and heads narrower than the vector unit, do without."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.abstract_device is None or mesh.abstract_device.platform != "tpu":
    return False
  return mesh.shape["context"] == 1 and length % _TILE == 0 and head_dim % _TILE == 0


def attend_segments(
  q: jax.Array, k: jax.Array, v: jax.Array, segment_ids: jax.Array, *, interpret: bool = False
) -> jax.Array:
  """Equals `causal.causal_attend` under `attention.causal_mask(segment_ids)`.

  Args:
    q: [B, L, H, C].
    k, v: [B, L, K, C].
    segment_ids: int32 [B, L].
    interpret: run the kernel's program without the machine it is for, in tests.

  Returns:
    [B, L, H, C].
  """
  length, head_dim = q.shape[1], q.shape[3]
  block = next(b for b in (_LARGEST, 256, _TILE) if length % b == 0)
  sizes = splash.BlockSizes(
    block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block,
    use_fused_bwd_kernel=True,
  )  # fmt: skip

  def rows(q, k, v, ids):
    mask = masks.MultiHeadMask([masks.CausalMask((length, length))] * q.shape[1])
    kernel = splash.make_splash_mha(
      mask, head_shards=1, q_seq_shards=1, block_sizes=sizes, interpret=interpret
    )
    return jax.vmap(lambda q, k, v, i: kernel(q, k, v, splash.SegmentIds(i, i)))(q, k, v, ids)

  queries = sharding.spec("batch", "act_heads", None, None)
  run = jax.shard_map(
    rows,
    in_specs=(queries, queries, queries, sharding.spec("batch", None)),
    out_specs=queries,
    check_vma=False,
  )
  q, k, v = (x.swapaxes(1, 2) for x in (q * head_dim**-0.5, k, v))
  return run(q, k, v, segment_ids).swapaxes(1, 2)
