"""VILA-U: language model, projector and depth transformer over text tokens and visual codes.

The vision tower stands outside: it turns images into codes beforehand, and only its codebook is
needed here. Axis letters: B batch, L sequence, D width, V text vocabulary, N visual slots of a row,
T visual positions of an image, R residual depth, E codebook entries, Z code width.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vilau_jax import sharding
from vilau_jax.config import VilaUConfig
from vilau_jax.layers.attention import causal_mask
from vilau_jax.layers.dense import Dense, Head
from vilau_jax.layers.mlp import gelu_exact
from vilau_jax.layers.stack import unstack
from vilau_jax.models import quantizer
from vilau_jax.models.depth import DepthTransformer
from vilau_jax.models.llama import Llama
from vilau_jax.models.tower import Tower

PROJECTOR_LAYERS = {"mlp3x_gelu": 3, "mlp2x_gelu": 2, "linear": 1, "identity": 0}


class Projector(nn.Module):
  """Code space -> language model: [..., Z] -> [..., D] by projections with exact GELU between.

  Parameters "layers_0", "layers_2", "layers_4", as the checkpoints number them.

  Raises:
    ValueError: for "identity" between different widths.
  """

  kind: str
  width: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = x.astype(self.dtype)
    if self.kind == "identity" and x.shape[-1] != self.width:
      raise ValueError(
        f"projector 'identity' needs the code width {x.shape[-1]} to equal llm.width {self.width}"
      )
    for i in range(PROJECTOR_LAYERS[self.kind]):
      x = gelu_exact(x) if i else x
      axes = ("mlp", "embed") if i % 2 else ("embed", "mlp")
      draw = _uniform(x.shape[-1])
      x = Dense(
        self.width, axes, dtype=self.dtype, kernel_init=draw, bias_init=draw, name=f"layers_{2 * i}"
      )(x)
    return x


class VisualPositions(nn.Module):
  """Extension: a learned embedding of the grid cell and the frame that are predicted next."""

  cells: int
  frames: int
  width: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, index: jax.Array) -> jax.Array:
    """Place inside the run of visual positions, int32 [B, N] -> [B, N, D]."""
    draw = sharding.boxed(nn.initializers.normal(0.02), "position", "embed")
    cell = self.param("cell", draw, (self.cells, self.width))
    frame = self.param("frame", draw, (self.frames + 1, self.width))
    coming = index + 1
    cells = cell[coming % self.cells]
    frames = frame[jnp.clip(coming // self.cells, 0, self.frames)]
    return (cells + frames).astype(self.dtype)


class VilaU(nn.Module):
  """The trainable model: submodules "llm", "projector", "depth" and, as an extension,
  "visual_positions".

  A submodule exists when the config names what it connects. The codebook is an argument,
  [K, E, Z] float32 with K = 1 (shared) or R, and never receives a gradient.
  """

  config: VilaUConfig

  def setup(self):
    c = self.config
    fields = dict(dtype=jnp.dtype(c.dtype))
    if c.llm is not None:
      self.llm = Llama(c.llm, remat=c.remat, **fields)
    if c.llm is not None and c.tower is not None:
      self.projector = Projector(c.projector, c.llm.width, **fields)
      if c.visual_positions == "next_cell":
        self.visual_positions = VisualPositions(
          c.tower.image_tokens, c.video_frames, c.llm.width, **fields
        )
    if c.depth is not None and c.llm is not None and c.tower is not None:
      # Without c.remat: training runs it on one piece of a row's slots at a time and computes the
      # piece again in the backward pass, so its layers would be computed a third time.
      self.depth = DepthTransformer(c.depth, c.tower.quantizer, **fields)

  def embed_codes(
    self,
    codebook: jax.Array,
    codes: jax.Array,
    visual_position: jax.Array,
    index: jax.Array | None = None,
  ) -> jax.Array:
    """Input embeddings of visual positions: the projected sum of their codewords.

    Args:
      codebook: float32 [K, E, Z].
      codes: integers [B, N, R].
      visual_position: int32 [B, N], the place of every slot in its row, -1 = empty.
      index: int32 [B, N], the place of every slot in its run of consecutive visual positions.
        None derives it from visual_position; a decoding step, which sees one slot, gives it.

    Returns:
      [B, N, D].
    """
    z = quantizer.embed(jax.lax.stop_gradient(codebook), codes.astype(jnp.int32))
    z = sharding.constrain(z, "batch", None, None)
    x = self.projector(self.config.code_scale * z)
    if self.config.visual_positions == "next_cell":
      x = x + self.visual_positions(run_index(visual_position) if index is None else index)
    return sharding.constrain(x, "batch", None, "act_embed")

  def inputs(
    self,
    tokens: jax.Array,
    codes: jax.Array | None,
    visual_position: jax.Array | None,
    codebook: jax.Array | None,
  ) -> jax.Array:
    """Input embeddings of rows: visual embeddings scattered over token embeddings, [B, L, D].

    Without codes (None) the rows are text only; then the other two may be None as well.
    """
    x = self.llm.embed(tokens)
    if codes is None:
      return x
    visual = self.embed_codes(codebook, codes, visual_position)
    place = jnp.where(visual_position < 0, tokens.shape[1], visual_position)  # beyond L is dropped
    x = jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))(x, place, visual)
    return sharding.constrain(x, "batch", "length", "act_embed")

  def hidden(
    self,
    tokens: jax.Array,
    codes: jax.Array | None,
    visual_position: jax.Array | None,
    segment_ids: jax.Array,
    positions: jax.Array,
    codebook: jax.Array | None,
    branches: jax.Array | None = None,
  ) -> jax.Array:
    """Final hidden states of packed rows; attention is causal and stays inside a segment.

    Args:
      tokens: int32 [B, L]; ignored at visual places.
      codes: [B, N, R] or None.
      visual_position: int32 [B, N], -1 = empty.
      segment_ids: int32 [B, L], 0 = padding.
      positions: int32 [B, L], restarting with every segment.
      codebook: float32 [K, E, Z].
      branches: int32 [B, L], or None; see causal_mask.

    Returns:
      [B, L, D]; meaningless on padding.
    """
    x = self.inputs(tokens, codes, visual_position, codebook)
    mask = causal_mask(segment_ids, branches)
    return self.llm(x, positions, mask, segment_ids if branches is None else None)

  def text_logits(self, hidden: jax.Array) -> jax.Array:
    """[..., D] -> float32 [..., V]: the token that follows each position."""
    return self.llm.logits(hidden)

  def visual_features(
    self, hidden: jax.Array, codes: jax.Array, codebook: jax.Array, deterministic: bool = True
  ) -> jax.Array:
    """Teacher-forced depth features.

    Args:
      hidden: [..., D] at the position BEFORE each visual one (see `previous`).
      codes: integers [..., R] of the visual positions.
      codebook: float32 [K, E, Z].
      deterministic: False uses dropout, and needs the rng "dropout".

    Returns:
      [..., R, W]; `code_logits` maps them to logits.
    """
    words = quantizer.lookup(jax.lax.stop_gradient(codebook), codes.astype(jnp.int32))
    sums = self.config.code_scale * jnp.cumsum(words, axis=-2)[..., :-1, :]
    sums = sharding.constrain(sums, "batch", *[None] * (sums.ndim - 1))
    return self.depth(hidden, sums, deterministic)

  def code_logits(self, features: jax.Array) -> jax.Array:
    """[..., R, W] -> float32 [..., R, E]."""
    return self.depth.logits(features)

  def text_head(self, hidden: jax.Array) -> Head:
    """The parts of `text_logits`, for a loss that never builds them whole."""
    return self.llm.head(hidden)

  def code_head(self, features: jax.Array) -> Head:
    """The parts of `code_logits`."""
    return self.depth.head(features)

  def __call__(
    self, batch: dict[str, jax.Array], codebook: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """All logits of a batch: float32 [B, L, V] and [B, N, R, E].

    The plain statement of the model, for scoring and tests. Training gathers the supervised
    positions first.
    """
    rows = ("tokens", "codes", "visual_position", "segment_ids", "positions")
    hidden = self.hidden(*(batch[k] for k in rows), codebook, batch.get("branches"))
    before = previous(hidden, batch["visual_position"])
    features = self.visual_features(before, batch["codes"], codebook)
    return self.text_logits(hidden), self.code_logits(features)

  def touch(self, codes: jax.Array | None, codebook: jax.Array | None) -> None:
    """Uses every submodule once, whichever exist, so that `init` creates their parameters."""
    # More rows than `product` takes one by one: adapters attach to the plain product.
    c, row = self.config, jnp.zeros((4, 2), jnp.int32)
    if c.llm is None:
      return
    hidden = self.hidden(row, None, None, row, row, None)[:, :1]
    if c.tower is not None:
      self.embed_codes(codebook, codes, row[:, :1])
    if c.tower is not None and c.depth is not None:
      self.code_logits(self.visual_features(hidden, codes, codebook))


def run_index(visual_position: jax.Array) -> jax.Array:
  """Place of every slot in its run of consecutive visual positions: int32 [B, N] -> [B, N]."""
  slots = jnp.arange(visual_position.shape[1], dtype=jnp.int32)
  before = jnp.pad(visual_position[:, :-1], ((0, 0), (1, 0)), constant_values=-2)
  starts = jnp.where(visual_position == before + 1, 0, slots)
  return slots - jax.lax.cummax(starts, axis=1)


def previous(hidden: jax.Array, visual_position: jax.Array) -> jax.Array:
  """Hidden states that predict the visual slots: [B, L, D], int32 [B, N] -> [B, N, D].

  Empty slots, and a slot at the start of a row, get position 0.
  """
  before = jnp.maximum(visual_position - 1, 0)
  return jnp.take_along_axis(hidden, before[..., None], axis=1)


def init(config: VilaUConfig, key: jax.Array, net: VilaU | None = None) -> dict[str, Any]:
  """Boxed parameters {"llm", "projector", "depth", ["visual_positions"]}, as far as they exist.

  Call it under jit (with shardings) or eval_shape; a large model is never built on one device.
  `net`: VilaU(config), or one with adapters; see lora.py.
  """
  codebook, codes = None, None
  if config.tower is not None:
    codes = config.tower.quantizer
    tables = 1 if codes.shared else codes.depth
    codebook = jnp.zeros((tables, codes.entries, quantizer.code_width(codes)))
    codes = jnp.zeros((4, 1, codes.depth), jnp.int32)
  return (net or VilaU(config)).init(key, codes, codebook, method="touch").get("params", {})


def abstract_variables(config: VilaUConfig) -> dict[str, Any]:
  """Shapes, dtypes and logical axes of a whole model, tower and codebook included.

  Returns:
    Boxed ShapeDtypeStructs {"params": {...}, "quantizer": {...}}; components that the config lacks
    are absent keys.
  """

  def build(key):
    variables = {"params": init(config, key)}
    if config.tower is not None:
      side = config.tower.image_size
      tower = Tower(config.tower).init(key, jnp.zeros((1, side, side, 3)))
      variables["params"]["tower"] = tower["params"]
      variables["quantizer"] = tower["quantizer"]
    return variables

  return jax.eval_shape(build, jax.random.key(0))


def describe_parameters(config: VilaUConfig) -> dict[str, int]:
  """Parameters by component, and "total"; nothing is allocated.

  Padded vocabulary rows and the codebook's moving averages are not counted: no checkpoint carries
  the first, and no gradient or forward pass uses the second.
  """
  if config.llm is not None:
    config = dataclasses.replace(config, llm=dataclasses.replace(config.llm, vocab_multiple=1))
  variables = nn.unbox(abstract_variables(config))
  parts = {k: v for k, v in variables["params"].items() if k != "tower"}
  for name, tree in variables["params"].get("tower", {}).items():
    group = {"quant": "encoder", "logit_scale": "logit", "logit_bias": "logit"}.get(name, name)
    parts[group] = (parts.get(group), tree)
  if "quantizer" in variables:
    parts["codebook"] = variables["quantizer"]["codebook"]
  order = ("vision", "text", "pooling", "encoder", "codebook", "post_quant", "decoder", "logit")
  order += ("projector", "visual_positions", "llm", "depth")
  counts = {
    k: sum(math.prod(a.shape) for a in jax.tree.leaves(parts[k])) for k in order if k in parts
  }
  return counts | {"total": sum(counts.values())}


def decoding_params(params: dict[str, Any]) -> dict[str, Any]:
  """Parameters for the cached forms: the stacks of "llm" and "depth" are taken apart."""
  return params | {k: unstack(params[k]) for k in ("llm", "depth") if k in params}


def _uniform(fan_in: int) -> nn.initializers.Initializer:
  """Torch's default for linear layers, weight and bias alike."""
  bound = 1 / math.sqrt(fan_in)
  return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
