"""Residual quantiser with a codebook learned by moving averages (RQ-VAE, arXiv 2203.01941).

Pure functions over a state {"codebook" [K, E, Z], "cluster_size" [K, E], "embed_sum" [K, E, Z]} in
float32; K is 1 when all depths share a codebook, else R. Axis letters: B batch, N vectors of a
batch, R depth, E entries, Z code width (folded). Under jit with a sharded batch all sums run over
the global batch, and a step gives the same state on every mesh.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vilau_jax import sharding
from vilau_jax.config import QuantizerConfig

AXES = {
  "codebook": ("depth", "entries", "code"),
  "cluster_size": ("depth", "entries"),
  "embed_sum": ("depth", "entries", "code"),
}
State = dict[str, jax.Array]


class Quantized(NamedTuple):
  """codes int32 [..., R]; z [..., Z], the sum of codewords with the gradient of the input;
  commitment, a float32 scalar: mean over depths of mean((x - sum of codewords so far)**2)."""

  codes: jax.Array
  z: jax.Array
  commitment: jax.Array


class Draws(NamedTuple):
  """Randomness of the restarts of one update: picks int32 [E] into the batch's vectors repeated to
  at least E (a vector's copies differ by N), and noise float32 [E, Z] (or [E, 1]) added to them."""

  picks: jax.Array
  noise: jax.Array


def code_width(config: QuantizerConfig) -> int:
  """Z, the width of a codeword."""
  return config.width * config.fold**2


def init_state(key: jax.Array, config: QuantizerConfig) -> State:
  """Codewords from N(0, 1), no vector counted yet."""
  tables = 1 if config.shared else config.depth
  codebook = jax.random.normal(key, (tables, config.entries, code_width(config)), jnp.float32)
  return {
    "codebook": codebook,
    "cluster_size": jnp.zeros((tables, config.entries), jnp.float32),
    "embed_sum": codebook,
  }


def fold(x: jax.Array, f: int) -> jax.Array:
  """Moves f x f neighbours into channels: [B, h, w, Z] -> [B, h / f, w / f, f * f * Z]."""
  b, h, w, z = x.shape
  x = x.reshape(b, h // f, f, w // f, f, z).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h // f, w // f, f * f * z)


def unfold(x: jax.Array, f: int) -> jax.Array:
  """Inverse of fold: [B, h, w, f * f * Z] -> [B, h * f, w * f, Z]."""
  b, h, w, z = x.shape
  x = x.reshape(b, h, w, f, f, z // f**2).transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(b, h * f, w * f, z // f**2)


def lookup(codebook: jax.Array, codes: jax.Array) -> jax.Array:
  """Codewords by depth: [K, E, Z], codes [..., R'] of the first R' depths -> [..., R', Z]."""
  table = jnp.arange(codes.shape[-1]) if codebook.shape[0] > 1 else 0
  return codebook[table, codes.astype(jnp.int32)]


def embed(codebook: jax.Array, codes: jax.Array) -> jax.Array:
  """Sum of codewords: [K, E, Z], codes [..., R'] -> [..., Z]."""
  return lookup(codebook, codes).sum(-2)


def nearest(table: jax.Array, vectors: jax.Array) -> jax.Array:
  """Index of the nearest row (squared distance, ties to the lowest): [E, Z], [N, Z] -> int32 [N].

  Always float32: in bfloat16 codes would flip.
  """
  product = jnp.matmul(vectors, table.T, precision=jax.lax.Precision.HIGHEST)
  distance = jnp.sum(vectors**2, -1, keepdims=True) + jnp.sum(table**2, -1) - 2 * product
  return jnp.argmin(distance, -1).astype(jnp.int32)


def _assemble(x: jax.Array, flat: jax.Array, codes: list, sums: list) -> Quantized:
  """Straight-through output and commitment from per-depth codes [N] and cumulative sums [N, Z]."""
  commitment = jnp.stack([jnp.mean((flat - jax.lax.stop_gradient(s)) ** 2) for s in sums]).mean()
  return _through(x, flat, jnp.stack(codes, -1), sums[-1], commitment)


def _through(x, flat, codes: jax.Array, total: jax.Array, commitment: jax.Array) -> Quantized:
  """Straight-through output from codes [N, R] and the sum of all codewords [N, Z]."""
  z = flat + jax.lax.stop_gradient(total - flat)
  codes = codes.reshape(*x.shape[:-1], codes.shape[-1])
  return Quantized(codes, z.reshape(x.shape).astype(x.dtype), commitment)


def _flat(x: jax.Array) -> jax.Array:
  return sharding.constrain(x.reshape(-1, x.shape[-1]).astype(jnp.float32), "batch", None)


def whole_rows(table: jax.Array) -> jax.Array:
  """Float32, with the code axis gathered: distances and lookups read whole codewords."""
  return sharding.constrain(table.astype(jnp.float32), None, "entries", None)


def quantize(config: QuantizerConfig, codebook: jax.Array, x: jax.Array) -> Quantized:
  """Quantises [..., Z] with a fixed codebook [K, E, Z]."""
  flat, codebook = _flat(x), whole_rows(codebook)
  residual, total = jax.lax.stop_gradient(flat), 0.0
  codes, sums = [], []
  for depth in range(config.depth):
    table = codebook[0 if config.shared else depth]
    index = nearest(table, residual)
    word = table[index]
    residual, total = residual - word, total + word
    codes.append(index)
    sums.append(total)
  return _assemble(x, flat, codes, sums)


def draw(config: QuantizerConfig, key: jax.Array, error: jax.Array) -> Draws:
  """Restart draws: E distinct vectors of the batch; where it has fewer, copies with a little
  noise.

  Args:
    config: restart_draw "uniform" (the reference), or "error": without replacement, in proportion
      to the squared error that the current table leaves, as k-means++ seeds its centres.
    key: of this update.
    error: [N], squared error of each vector; only "error" reads its values.
  """
  entries, width, vectors = config.entries, code_width(config), error.shape[0]
  copies = -(-entries // vectors)
  pick_key, noise_key = jax.random.split(key)
  if config.restart_draw == "uniform":
    picks = jax.random.permutation(pick_key, copies * vectors)[:entries]
  else:  # the largest perturbed logarithms are a sample without replacement (Gumbel top-k)
    gumbel = jax.random.gumbel(pick_key, (copies * vectors,), jnp.float32)
    picks = jax.lax.top_k(jnp.log(jnp.tile(error, copies) + 1e-20) + gumbel, entries)[1]
  if copies == 1:
    return Draws(picks, jnp.zeros((entries, 1), jnp.float32))
  noise = jax.random.uniform(noise_key, (entries, width), jnp.float32)
  return Draws(picks, noise * (0.01 / width**0.5))


def _update(
  config: QuantizerConfig, state: State, vectors: jax.Array, codes: jax.Array, draws: Draws | None
) -> tuple[State, jax.Array]:
  """One moving-average step of one table ([E, Z], [E]); returns it and the number of restarts."""
  ones = jnp.ones(codes.shape, jnp.float32)
  count = jax.ops.segment_sum(ones, codes, config.entries)
  total = jax.ops.segment_sum(vectors, codes, config.entries)
  size = config.decay * state["cluster_size"] + (1 - config.decay) * count
  embed_sum = config.decay * state["embed_sum"] + (1 - config.decay) * total
  restarts = jnp.zeros((), jnp.float32)
  if draws is not None:
    unused = size < config.restart_threshold
    fresh = vectors[draws.picks % vectors.shape[0]] + draws.noise
    embed_sum = jnp.where(unused[:, None], fresh, embed_sum)
    size = jnp.where(unused, 1.0, size)
    restarts = jnp.sum(unused, dtype=jnp.float32)
  updated = {
    "codebook": embed_sum / _smoothed(config, size)[:, None],
    "cluster_size": size,
    "embed_sum": embed_sum,
  }
  return updated, restarts


def _smoothed(config: QuantizerConfig, size: jax.Array) -> jax.Array:
  """Counts [..., E] with a little of the whole for entries that have none."""
  mass = jnp.sum(size, axis=-1, keepdims=True)
  return mass * (size + config.eps) / (mass + config.entries * config.eps)


def matching_sums(config: QuantizerConfig, state: State) -> jax.Array:
  """embed_sum of this codebook; a bfloat16 release's own is too coarse to go on from."""
  return state["codebook"] * _smoothed(config, state["cluster_size"])[..., None]


def _usage(codes: jax.Array, entries: int) -> tuple[jax.Array, jax.Array]:
  """Perplexity of the codes, and the share of the entries that occurs."""
  share = jax.ops.segment_sum(jnp.full(codes.shape, 1 / codes.size, jnp.float32), codes, entries)
  return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share, share))), jnp.mean(share > 0)


def train_quantize(
  config: QuantizerConfig,
  state: State,
  x: jax.Array,
  key: jax.Array | None,
  draws: list[Draws] | None = None,
) -> tuple[Quantized, State, dict[str, jax.Array]]:
  """Quantises [..., Z] and moves the codebook towards the batch.

  With update "sequential_per_depth" (the reference) depth d+1 reads the table that depth d has
  updated. With "once_per_step" all depths read the old table; a shared one is then updated once,
  from the vectors of all depths together.

  Args:
    config: the quantiser.
    state: as in the module's docstring.
    x: features.
    key: of the restarts, folded with the number of the update; may be None without restart.
    draws: one Draws an update instead of the key, to replay recorded ones.

  Returns:
    The quantised features, the new state, and metrics by depth [R]: "perplexity" of the codes,
    "usage" (share of the entries that occurs in the batch), "restarted" codes (all at index 0 for a
    shared table updated once), "residual_norm" (mean distance of the features to the sum of
    codewords so far).
  """
  if config.restart and key is None and draws is None:
    raise ValueError("training a quantiser with restart needs a key")
  flat = _flat(x)
  original = dict(jax.lax.stop_gradient(state))
  original |= {k: whole_rows(original[k]) for k in ("codebook", "embed_sum")}
  if config.depth > _UNROLLED and config.shared and config.update == "sequential_per_depth":
    return _looped(config, original, x, flat, key, draws)
  tables = [{k: v[i] for k, v in original.items()} for i in range(original["codebook"].shape[0])]

  def advance(slot: int, update: int, vectors: jax.Array, index: jax.Array) -> jax.Array:
    randomness = None
    if config.restart:
      drawn = draws[update] if draws is not None else None
      folded = None if drawn is not None else jax.random.fold_in(key, update)
      error = jnp.sum((vectors - tables[slot]["codebook"][index]) ** 2, -1)
      randomness = drawn or draw(config, folded, error)
    tables[slot], restarts = _update(config, tables[slot], vectors, index, randomness)
    return restarts

  residual, total = jax.lax.stop_gradient(flat), 0.0
  codes, sums, residuals, restarted = [], [], [], []
  for depth in range(config.depth):
    slot = 0 if config.shared else depth
    table = tables[slot]["codebook"]
    index = nearest(table, residual)
    word = table[index]
    residuals.append(residual)
    if config.update == "sequential_per_depth" or not config.shared:
      restarted.append(advance(slot, depth, residual, index))
    residual, total = residual - word, total + word
    codes.append(index)
    sums.append(total)
  if not restarted:
    restarts = advance(0, 0, jnp.concatenate(residuals), jnp.concatenate(codes))
    restarted = [restarts] + [jnp.zeros_like(restarts)] * (config.depth - 1)
  new_state = {k: jnp.stack([t[k] for t in tables]) for k in original}
  residuals = [*residuals[1:], residual]
  perplexity, usage = zip(*[_usage(c, config.entries) for c in codes])
  metrics = {
    "perplexity": jnp.stack(perplexity),
    "usage": jnp.stack(usage),
    "restarted": jnp.stack(restarted),
    "residual_norm": jnp.stack([jnp.linalg.norm(r, axis=-1).mean() for r in residuals]),
  }
  return _assemble(x, flat, codes, sums), new_state, metrics


_UNROLLED = 8  # more depths are a loop: the compiler would need minutes for as many copies


def _looped(config: QuantizerConfig, original: State, x, flat, key, draws):
  """train_quantize of a shared table, one depth after the other as a loop; keeps no sum of a depth
  for the backward pass."""
  recorded = None if draws is None else jax.tree.map(lambda *d: jnp.stack(d), *draws)

  def visit(carry, item):
    table, residual, total, behind = carry
    update, drawn = item
    index = nearest(table["codebook"], residual)
    word = table["codebook"][index]
    if config.restart and drawn is None:
      error = jnp.sum((residual - word) ** 2, -1)
      drawn = draw(config, jax.random.fold_in(key, update), error)
    table, restarts = _update(config, table, residual, index, drawn if config.restart else None)
    residual, total = (
      sharding.constrain(a, "batch", None) for a in (residual - word, total + word)
    )
    norm = jnp.linalg.norm(residual, axis=-1).mean()
    measured = jnp.mean(residual**2), *_usage(index, config.entries), restarts, norm
    return (table, residual, total, behind + residual), (index, *measured)

  still = jax.lax.stop_gradient(flat)
  table = {k: v[0] for k, v in original.items()}
  start = table, still, jnp.zeros_like(still), jnp.zeros_like(still)
  (table, _, total, behind), (codes, square, perplexity, usage, restarted, norm) = jax.lax.scan(
    visit, start, (jnp.arange(config.depth), recorded)
  )
  # The mean over depths of mean((flat - sum)**2), whose gradient needs only the sum of residuals.
  slope = jax.lax.stop_gradient(behind * (2 / behind.size / config.depth))
  commitment = jnp.mean(square) + jnp.sum(slope * (flat - still))
  metrics = {
    "perplexity": perplexity,
    "usage": usage,
    "restarted": restarted,
    "residual_norm": norm,
  }
  quantized = _through(x, flat, jnp.moveaxis(codes, 0, -1), total, commitment)
  return quantized, {k: v[None] for k, v in table.items()}, metrics
