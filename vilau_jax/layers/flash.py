"""Which kernel computes causal attention in training, and the kernels of TPU and GPU.

"splash" is jax's Pallas kernel for TPU, "triton" its Pallas kernel for GPU; both keep segments
apart by their ids, never hold an [L, L] array and skip what lies above the diagonal. cuDNN's
attention takes a mask of [L, L] instead of ids, which packed rows would have to write out, so it is
not used.
"xla" is layers/causal.py, the form for CPU and whatever the kernels do not take.

Axis letters: B batch, L positions, H heads, K kv heads, C head dim.
"""

import functools
import warnings

import jax
import jax.numpy as jnp

from vilau_jax import sharding
from vilau_jax.layers.causal import OUTPUT, causal_attend

KINDS = ("auto", "xla", "splash", "triton")
_BLOCKS = (512, 256, 128)


def attend_causally(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  mask: jax.Array,
  segment_ids: jax.Array | None,
  kind: str = "auto",
) -> jax.Array:
  """Causal attention within segments, in training.

  Args:
    q: [B, L, H, C].
    k: [B, L, K, C]; query head h reads kv head h // (H / K).
    v: [B, L, K, C].
    mask: bool [B, L, L]; only read by "xla".
    segment_ids: int32 [B, L], or None where they do not say it all: then the mask does.
    kind: member of KINDS; "auto" takes the platform's kernel where it fits, else "xla".

  Returns:
    [B, L, H, C] in q's dtype.

  Raises:
    ValueError: if the named kernel does not fit; says why.
  """
  if kind not in KINDS:
    raise ValueError(f"llm.attention must be one of {KINDS}, got {kind!r}")
  name = {"tpu": "splash", "cuda": "triton", "gpu": "triton"}.get(sharding.platform(), "xla")
  name = name if kind == "auto" else kind
  if name == "xla":
    return causal_attend(q, k, v, mask)
  obstacle = _obstacle(q, k, segment_ids)
  if obstacle and kind == "auto":
    return causal_attend(q, k, v, mask)
  if obstacle:
    raise ValueError(f"llm.attention {kind!r} does not fit here: {obstacle}")
  return on_mesh({"splash": splash, "triton": triton}[name], q, k, v, segment_ids)


def _obstacle(q: jax.Array, k: jax.Array, segment_ids: jax.Array | None) -> str:
  """Why no kernel takes these arrays, or ""."""
  batch, length, _, size = q.shape
  if segment_ids is None:
    return "rows whose segments fork have no kernel"
  if length % _BLOCKS[-1]:
    return f"the row's {length} positions are no multiple of {_BLOCKS[-1]}"
  if size % 64:
    return f"the head size {size} is no multiple of 64"
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return ""
  if mesh.shape["context"] > 1:
    return "the mesh shards the sequence (context)"
  ways = mesh.shape["data"] * mesh.shape["fsdp"]
  if batch % ways:
    return f"{batch} rows cannot be shared by {ways} devices (data x fsdp)"
  if k.shape[2] % mesh.shape["tensor"]:
    return f"{k.shape[2]} kv heads cannot be shared by {mesh.shape['tensor']} devices (tensor)"
  return ""


def on_mesh(kernel, q, k, v, segment_ids):
  """Runs `kernel` on every device's own rows and heads."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return kernel(q, k, v, segment_ids)
  heads, rows = sharding.spec("batch", None, "act_heads", None), sharding.spec("batch", None)
  # The kernels do not say which mesh axes their results vary over: nothing to check.
  run = jax.shard_map(
    kernel, mesh=mesh, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
  )
  return run(q, k, v, segment_ids)


def splash(q, k, v, segment_ids, interpret: bool = False):
  """The TPU kernel; arguments as in attend_causally."""
  from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
  )

  length, heads = q.shape[1:3]
  block = next(b for b in _BLOCKS if length % b == 0)
  names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute")
  sizes = splash_attention_kernel.BlockSizes(
    **{f"block_{n}": block for n in names}, use_fused_bwd_kernel=True
  )
  causal = splash_attention_mask.CausalMask((length, length))
  kernel = splash_attention_kernel.make_splash_mha(
    splash_attention_mask.MultiHeadMask([causal] * heads),
    block_sizes=sizes,
    head_shards=1,
    q_seq_shards=1,
    residual_checkpoint_name=OUTPUT,
    interpret=interpret,
  )

  def row(q, k, v, ids):
    return kernel(q, k, v, splash_attention_kernel.SegmentIds(ids, ids))

  q, k, v = (x.swapaxes(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v))
  return jax.vmap(row)(q, k, v, segment_ids).swapaxes(1, 2)


def triton(q, k, v, segment_ids, interpret: bool = False):
  """The GPU kernel; arguments as in attend_causally."""
  with warnings.catch_warnings():  # deprecated since jax 0.12 in favour of another package; works
    warnings.simplefilter("ignore", DeprecationWarning)
    from jax.experimental.pallas.ops.gpu import attention

  size, groups = q.shape[-1], q.shape[2] // k.shape[2]
  k, v = (jnp.repeat(x, groups, axis=2) for x in (k, v))
  # On an H100, 4096 positions: forward blocks of 64 took half as long again, and no other blocks
  # that were tried made the backward pass faster.
  names = ("q_dkv", "kv_dkv", "q_dq", "kv_dq")
  sizes = attention.BlockSizes(128, 128, **{f"block_{n}": 64 for n in names})
  run = functools.partial(
    attention.mha, sm_scale=size**-0.5, causal=True, block_sizes=sizes, interpret=interpret
  )
  return run(q, k, v, segment_ids)
