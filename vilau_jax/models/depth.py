"""Depth transformer: predicts the R codes of one visual position one after the other.

Paper eq. 6 and RQ-Transformer's head: at depth 0 it reads the language model's hidden state, at
depth d the sum of the codewords before d, and its output at depth d predicts code d.
Axis letters: D width of the language model, R residual depth, E codebook entries, Z code width,
W the depth transformer's own width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vilau_jax import sharding
from vilau_jax.config import DepthConfig, QuantizerConfig
from vilau_jax.layers.attention import Cache, MultiHeadAttention
from vilau_jax.layers.dense import Dense, Head
from vilau_jax.layers.mlp import Mlp, gelu_exact
from vilau_jax.layers.norm import LayerNorm
from vilau_jax.layers.stack import scan_blocks, unroll_blocks

NORMAL = nn.initializers.normal(0.02)


class DepthBlock(nn.Module):
  """Pre-norm attention over the depths and an exact-GELU MLP, with dropout on both residuals."""

  heads: int
  hidden: int
  eps: float
  dropout: float
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    mask: jax.Array,
    cache: Cache | None = None,
    index: jax.Array | int | None = None,
  ) -> tuple[jax.Array, Cache | None]:
    """x [B, R, W], mask bool broadcastable to [B, R, R] -> [B, R, W] and the new cache."""
    fields = dict(dtype=self.dtype, init=NORMAL)
    y = LayerNorm(self.eps, name="ln1")(x)
    attention = MultiHeadAttention(self.heads, name="attn", **fields)
    y, cache = attention(y, mask=mask, cache=cache, index=index)
    x = x + nn.Dropout(self.dropout, deterministic=False)(y)
    x = sharding.constrain(x, "batch", None, "act_embed")
    y = LayerNorm(self.eps, name="ln2")(x)
    y = Mlp(self.hidden, gelu_exact, name="mlp", **fields)(y)
    x = x + nn.Dropout(self.dropout, deterministic=False)(y)
    return sharding.constrain(x, "batch", None, "act_embed"), cache


class DepthTransformer(nn.Module):
  """The visual head: hidden state and codes so far -> features of the next code.

  Parameters: "in_mlp_1" [Z, W] reads code sums, "in_mlp_2" [D, W] reads the hidden state,
  "pos_emb_d" [R, W], "layers" (stacked; separate for `step`), "classifier_norm" and "classifier"
  [W, E], which all depths share.

  Attributes:
    codes: the quantiser whose codes are predicted.

  Raises:
    ValueError: if the heads do not divide the width.
  """

  config: DepthConfig
  codes: QuantizerConfig
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    c = self.config
    if c.width % c.heads:
      raise ValueError(f"depth.heads {c.heads} must divide depth.width {c.width}")
    fields = dict(dtype=self.dtype, kernel_init=NORMAL)
    self.in_mlp_1 = Dense(c.width, ("mlp", "embed"), **fields)
    self.in_mlp_2 = Dense(c.width, ("mlp", "embed"), **fields)
    position = sharding.boxed(NORMAL, "depth", "embed")
    self.pos_emb_d = self.param("pos_emb_d", position, (self.codes.depth, c.width))
    self.classifier_norm = LayerNorm(c.eps)
    self.classifier = Dense(self.codes.entries, ("embed", "entries"), result=jnp.float32, **fields)

  def from_hidden(self, hidden: jax.Array) -> jax.Array:
    """Input of depth 0: the language model's hidden state [..., D] -> [..., W]."""
    return self.in_mlp_2(hidden)

  def from_codes(self, code_sum: jax.Array) -> jax.Array:
    """Input of depth d: the sum of the codewords before d, [..., Z] -> [..., W]."""
    return self.in_mlp_1(code_sum)

  def __call__(
    self, hidden: jax.Array, code_sums: jax.Array, deterministic: bool = True
  ) -> jax.Array:
    """Teacher-forced features of all depths.

    Args:
      hidden: [..., D], the language model's output one position earlier.
      code_sums: float32 [..., R-1, Z]; entry d is the sum of the codewords 0..d.
      deterministic: False drops residuals; needs the rng "dropout".

    Returns:
      [..., R, W], input of `logits`.
    """
    first = self.from_hidden(hidden)[..., None, :]
    x = jnp.concatenate([first, self.from_codes(code_sums)], axis=-2)
    x = x + self.pos_emb_d.astype(self.dtype)
    shape, depth = x.shape, self.codes.depth
    mask = jnp.tril(jnp.ones((1, depth, depth), bool))
    x = x.reshape(-1, *shape[-2:])
    dropout = 0.0 if deterministic else self.config.dropout
    return self._run(x, mask, dropout=dropout)[0].reshape(shape)

  def step(
    self, token: jax.Array, index: jax.Array | int, caches: list[Cache]
  ) -> tuple[jax.Array, list[Cache]]:
    """One depth for all rows, against caches. Needs unstacked parameters.

    Args:
      token: [B, W] from `from_hidden` (index 0) or `from_codes`.
      index: the depth d that is predicted.
      caches: from `init_cache` or the step before.

    Returns:
      Features [B, W] of depth d and the new caches; equal to entry d of the teacher-forced form.
    """
    position = jax.lax.dynamic_index_in_dim(self.pos_emb_d, index, keepdims=False)
    x = (token + position.astype(self.dtype))[:, None]
    mask = (jnp.arange(self.codes.depth) <= index)[None, None]
    x, caches = self._run(x, mask, caches=caches, index=index)
    return x[:, 0], caches

  def logits(self, features: jax.Array) -> jax.Array:
    """Logits of the code: features [..., W] -> float32 [..., E]."""
    return self.classifier(self.classifier_norm(features))

  def head(self, features: jax.Array) -> Head:
    """The parts of `logits`: features [..., W] -> inputs [..., W], kernel [W, E], bias [E]."""
    kernel, bias = (self.classifier.variables["params"][n] for n in ("kernel", "bias"))
    x = self.classifier_norm(features).astype(self.dtype)
    return Head(x, kernel.astype(self.dtype), bias.astype(jnp.float32), self.codes.entries)

  @nn.compact
  def _run(self, x, mask, *, dropout=0.0, caches=None, index=None):
    c = self.config
    fields = dict(heads=c.heads, hidden=c.hidden, eps=c.eps, dropout=dropout, dtype=self.dtype)
    if caches is None:
      unroll = c.depth if c.unroll else 1
      x = scan_blocks(DepthBlock, fields, c.depth, x, mask, unroll=unroll)
      return x, None
    return unroll_blocks(DepthBlock, fields, x, mask, caches=caches, index=index)


def init_cache(
  config: DepthConfig, codes: QuantizerConfig, batch: int, dtype: jnp.dtype = jnp.float32
) -> list[Cache]:
  """Empty caches, one (keys, values) a block, each [B, heads, R, W / heads]."""
  shape = (batch, config.heads, codes.depth, config.width // config.heads)
  return [(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.depth)]
