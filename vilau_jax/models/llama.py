"""Llama: the causal language model (Llama-2, Sheared-LLaMA).

Axis letters: B batch, L sequence, M cached positions, D width, H heads, K kv heads, C head dim,
V text vocabulary.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vilau_jax import sharding
from vilau_jax.config import LlamaConfig
from vilau_jax.layers.attention import Cache, attend_cache, write_cache
from vilau_jax.layers.dense import Head, HeadsIn, HeadsOut
from vilau_jax.layers.flash import attend_causally
from vilau_jax.layers.mlp import GatedMlp
from vilau_jax.layers.norm import RmsNorm
from vilau_jax.layers.product import product
from vilau_jax.layers.rope import rotary, rotate
from vilau_jax.layers.stack import scan_blocks, unroll_blocks

NORMAL = nn.initializers.normal(0.02)


class LlamaAttention(nn.Module):
  """Rotary self-attention with grouped key/value heads and no biases."""

  config: LlamaConfig
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    mask: jax.Array,
    cache: Cache | None = None,
    index: jax.Array | int | None = None,
    segment_ids: jax.Array | None = None,
  ) -> tuple[jax.Array, Cache | None]:
    """x [B, L, D], cos and sin [B, L, C/2], mask bool [B, L, M] -> [B, L, D] and the new cache.

    With a cache (keys after rotation and values, [B, K, M, C] each), x's L positions are written at
    `index` and x attends to the whole cache under the mask; without one M = L, and segment_ids
    int32 [B, L] may say what the mask says.
    """
    c = self.config
    project = dict(head_dim=c.head_dim, bias=False, dtype=self.dtype, init=NORMAL)
    q = HeadsIn(c.heads, name="q_proj", **project)(x)
    k = HeadsIn(c.kv_heads, axis="kv_heads", name="k_proj", **project)(x)
    v = HeadsIn(c.kv_heads, axis="kv_heads", name="v_proj", **project)(x)
    q = sharding.constrain(rotate(q, cos, sin), "batch", "length", "act_heads", None)
    k = sharding.constrain(rotate(k, cos, sin), "batch", "length", "act_heads", None)
    v = sharding.constrain(v, "batch", "length", "act_heads", None)
    if cache is None:
      y = attend_causally(q, k, v, mask, segment_ids, c.attention)
    else:
      cache = write_cache(cache, k, v, index)
      y = attend_cache(q, cache, mask)
    y = sharding.constrain(y, "batch", "length", "act_heads", None)
    return HeadsOut(c.width, bias=False, dtype=self.dtype, init=NORMAL, name="o_proj")(y), cache


class LlamaBlock(nn.Module):
  """Pre-norm attention and gated MLP, both residual; one class for training and decoding."""

  config: LlamaConfig
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    mask: jax.Array,
    cache: Cache | None = None,
    index: jax.Array | int | None = None,
    segment_ids: jax.Array | None = None,
  ) -> tuple[jax.Array, Cache | None]:
    """[B, L, D] -> [B, L, D] and the new cache; arguments as in LlamaAttention."""
    c = self.config
    y = RmsNorm(c.eps, name="input_layernorm")(x)
    attention = LlamaAttention(c, dtype=self.dtype, name="self_attn")
    y, cache = attention(y, cos, sin, mask, cache, index, segment_ids)
    x = sharding.constrain(x + y, "batch", "length", "act_embed")
    y = RmsNorm(c.eps, name="post_attention_layernorm")(x)
    y = GatedMlp(c.hidden, dtype=self.dtype, init=NORMAL, name="mlp")(y)
    return sharding.constrain(x + y, "batch", "length", "act_embed"), cache


class Llama(nn.Module):
  """The language model between input embeddings and logits.

  Parameters: "embed_tokens" [V, D], "layers" (stacked; separate "layers_0", ... for `decode`, see
  layers/stack.py), "norm" and, unless tied, "lm_head" [D, V]. V is padded to the config's
  vocab_multiple: the extra rows start as zeros, and no token reads and no logit shows them.

  Attributes:
    dtype: compute dtype; parameters are created in float32.
    remat: "none" or a member of jax.checkpoint_policies, for training.

  Raises:
    ValueError: if the vocabulary is empty or the heads do not fit the width.
  """

  config: LlamaConfig
  dtype: jnp.dtype = jnp.float32
  remat: str = "none"

  def setup(self):
    c = self.config
    _check(c)
    table = sharding.boxed(_zeros_from(c.vocab_size, 0), "vocab", "embed")
    self.embed_tokens = self.param("embed_tokens", table, (c.padded_vocab, c.width))
    self.norm = RmsNorm(c.eps)
    if not c.tied:
      head = sharding.boxed(_zeros_from(c.vocab_size, 1), "embed", "vocab")
      self.lm_head = self.param("lm_head", head, (c.width, c.padded_vocab))

  def embed(self, tokens: jax.Array) -> jax.Array:
    """Token embeddings: int32 [B, L] -> [B, L, D]. An id beyond the table gives NaN."""
    # Rows are read whole: gathering their parts first is cheaper than resharding the result.
    table = sharding.constrain(self.embed_tokens.astype(self.dtype), "vocab", None)
    x = jnp.take(table, tokens, axis=0, mode="fill")
    return sharding.constrain(x, "batch", "length", "act_embed")

  def __call__(
    self,
    x: jax.Array,
    positions: jax.Array,
    mask: jax.Array,
    segment_ids: jax.Array | None = None,
  ) -> jax.Array:
    """Final hidden states of whole sequences.

    Args:
      x: input embeddings [B, L, D].
      positions: int32 [B, L].
      mask: bool [B, L, L], True = may attend.
      segment_ids: int32 [B, L] where causality within segments is all that the mask says; kernels
        read them instead.

    Returns:
      [B, L, D], after the final norm.
    """
    return self.norm(self._run(x, positions, mask, segment_ids=segment_ids)[0])

  def decode(
    self,
    x: jax.Array,
    positions: jax.Array,
    mask: jax.Array,
    caches: list[Cache],
    index: jax.Array | int,
  ) -> tuple[jax.Array, list[Cache]]:
    """Runs l new positions (a whole prompt, or one step) against caches of M positions.

    Needs unstacked parameters. Not differentiable work: no rematerialisation, no scan.

    Args:
      x: [B, l, D].
      positions: int32 [B, l].
      mask: bool [B, l, M]; must be False where the cache is not written yet.
      caches: from `init_cache` or an earlier call.
      index: int32 scalar, the place of the first new position in the cache.

    Returns:
      Hidden states [B, l, D] after the final norm, and the new caches.
    """
    hidden, caches = self._run(x, positions, mask, caches, index)
    return self.norm(hidden), caches

  def head(self, hidden: jax.Array) -> Head:
    """The parts of `logits`: [..., D] -> inputs [..., D] and kernel [D, padded V]."""
    kernel = self.embed_tokens.T if self.config.tied else self.lm_head
    return Head(hidden.astype(self.dtype), kernel.astype(self.dtype), None, self.config.vocab_size)

  def logits(self, hidden: jax.Array) -> jax.Array:
    """Next-token logits of the logical vocabulary: [..., D] -> float32 [..., V]."""
    kernel = self.embed_tokens.T if self.config.tied else self.lm_head
    logits = product(hidden, kernel, self.dtype, result=jnp.float32)
    return logits[..., : self.config.vocab_size]

  @nn.compact
  def _run(self, x, positions, mask, caches=None, index=None, segment_ids=None):
    c = self.config
    fields = dict(config=c, dtype=self.dtype)
    x = sharding.constrain(x.astype(self.dtype), "batch", "length", "act_embed")
    args = (*rotary(positions, c.head_dim, c.rope_theta, c.rope_scaling), mask)
    if caches is None:
      args = (*args, None, None, segment_ids)
      unroll = c.depth if c.unroll else 1
      return scan_blocks(
        LlamaBlock, fields, c.depth, x, *args, remat=self.remat, unroll=unroll
      ), None
    return unroll_blocks(LlamaBlock, fields, x, *args, caches=caches, index=index)


def init_cache(
  config: LlamaConfig, batch: int, length: int, dtype: jnp.dtype = jnp.float32
) -> list[Cache]:
  """Empty caches, one (keys, values) a layer, each [B, K, M, C] with M = length."""
  shape = (batch, config.kv_heads, length, config.head_dim)
  return [(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.depth)]


def _check(c: LlamaConfig) -> None:
  if c.vocab_size < 1:
    raise ValueError("llm.vocab_size is 0: set it to the number of the tokenizer's ids")
  if c.width % c.heads or c.heads % c.kv_heads or c.head_dim % 2:
    raise ValueError(
      f"llm.heads {c.heads} must divide llm.width {c.width} into heads of even size, "
      f"and llm.kv_heads {c.kv_heads} must divide llm.heads"
    )


def _zeros_from(size: int, axis: int) -> nn.initializers.Initializer:
  """Normal(0.02), and zeros from index `size` of `axis` on: the padded vocabulary."""

  def init(key, shape, dtype):
    index = jnp.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return jnp.where(index < size, NORMAL(key, shape, dtype), 0)

  return init
