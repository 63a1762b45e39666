"""Losses as pure functions of arrays, all in float32.

Under jit with a sharded batch every mean and every count here is over the global batch.
Axis letters: B batch, L sequence, K gathered positions of a row, D width, V text vocabulary,
R residual depth, E codebook entries, S image side.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vilau_jax import sharding
from vilau_jax.train import chunks


def pixel(image: jax.Array, target: jax.Array, *, mse: float = 1.0, l1: float = 0.0) -> jax.Array:
  """Weighted mean squared and mean absolute error over all elements, images in [-1,1]."""
  error = image.astype(jnp.float32) - target
  loss = jnp.zeros(())
  if mse:
    loss += mse * jnp.mean(jnp.square(error))
  if l1:
    loss += l1 * jnp.mean(jnp.abs(error))
  return loss


def psnr(image: jax.Array, target: jax.Array) -> jax.Array:
  """Peak signal-to-noise ratio in dB, mean over images [B,S,S,3] in [-1,1] (peak to peak 2)."""
  error = jnp.clip(image.astype(jnp.float32), -1, 1) - target
  return jnp.mean(10 * jnp.log10(4.0 / jnp.maximum(jnp.mean(jnp.square(error), (1, 2, 3)), 1e-10)))


def sigmoid_contrastive(
  image: jax.Array,
  text: jax.Array,
  logit_scale: jax.Array,
  logit_bias: jax.Array,
  caption_id: jax.Array | None = None,
) -> jax.Array:
  """Sigmoid loss of SigLIP: sum over texts, mean over images, on the dense [B,B] logits.

  Args:
    image: [B,D], L2-normalised.
    text: [B,D], L2-normalised.
    logit_scale: natural logarithm of the temperature, (1,) or scalar.
    logit_bias: (1,) or scalar.
    caption_id: int32 [B]; extension: pairs with equal ids count as positives. None: only a
      picture's own caption does, as in SigLIP.
  """
  logits = jnp.einsum("id,jd->ij", image, text, preferred_element_type=jnp.float32)
  logits = logits * jnp.exp(logit_scale) + logit_bias
  if caption_id is None:
    positive = jnp.eye(len(image), dtype=bool)
  else:
    positive = caption_id[:, None] == caption_id[None, :]
  return -jnp.sum(jax.nn.log_sigmoid(jnp.where(positive, logits, -logits))) / len(image)


def sigmoid_contrastive_chunked(
  image: jax.Array,
  text: jax.Array,
  logit_scale: jax.Array,
  logit_bias: jax.Array,
  caption_id: jax.Array | None = None,
) -> jax.Array:
  """sigmoid_contrastive without the [B,B] logits: texts travel around the ring of devices that
  share the batch, and each device adds up its own pictures' loss, B/P texts at a time."""
  mesh = jax.sharding.get_abstract_mesh()
  axes = sharding.RULES["batch"]
  ways = 1 if mesh.empty else math.prod(mesh.shape[a] for a in axes)
  if ways == 1:
    return sigmoid_contrastive(image, text, logit_scale, logit_bias, caption_id)
  ids = jnp.arange(len(image)) if caption_id is None else caption_id
  ring = [(i, (i + 1) % ways) for i in range(ways)]

  def local(image, text, own, scale, bias):
    @jax.checkpoint
    def block(text, other):
      logits = jnp.einsum("id,jd->ij", image, text, preferred_element_type=jnp.float32)
      logits = logits * jnp.exp(scale) + bias
      return -jnp.sum(jax.nn.log_sigmoid(jnp.where(own[:, None] == other, logits, -logits)))

    def turn(carry, _):
      (text, other), total = jax.lax.ppermute(carry[:2], axes, ring), carry[2]
      return (text, other, total + block(text, other)), None

    carry = (text, own, block(text, own))
    total = jax.lax.scan(turn, carry, length=ways - 1)[0][2]
    return jax.lax.psum(total, axes)

  rows, ours, whole = sharding.spec("batch", None), sharding.spec("batch"), jax.P()
  run = jax.shard_map(local, mesh=mesh, in_specs=(rows, rows, ours, whole, whole), out_specs=whole)
  return run(image, text, ids, logit_scale, logit_bias) / len(image)


def wrong_captions(
  image: jax.Array,
  text: jax.Array,
  wrong: jax.Array,
  logit_scale: jax.Array,
  has_wrong: jax.Array,
) -> jax.Array:
  """Logistic loss of telling a picture's caption from a wrong one, mean over pictures.

  The hard negatives of NegCLIP (arXiv 2210.01936), but only the difference of both similarities
  counts: as further negatives of `sigmoid_contrastive` they would push the whole caption away, and
  more was lost than learned. A picture without a wrong caption adds nothing.

  Args:
    image: [B,D], L2-normalised.
    text: [B,D], of the pictures' own captions, L2-normalised.
    wrong: [B,D], of the wrong ones.
    logit_scale: natural logarithm of the temperature, (1,) or scalar.
    has_wrong: bool [B].
  """
  ahead = jnp.einsum("id,id->i", image, text - wrong, preferred_element_type=jnp.float32)
  return -jnp.sum(jax.nn.log_sigmoid(ahead * jnp.exp(logit_scale)) * has_wrong) / len(image)


def generator(logits_fake: jax.Array) -> jax.Array:
  """Generator loss of RQ-VAE: -mean of the discriminator's logits."""
  return -jnp.mean(logits_fake)


def hinge(logits_real: jax.Array, logits_fake: jax.Array) -> jax.Array:
  """Hinge loss of the discriminator."""
  real, fake = jax.nn.relu(1 - logits_real), jax.nn.relu(1 + logits_fake)
  return 0.5 * (jnp.mean(real) + jnp.mean(fake))


def vanilla(logits_real: jax.Array, logits_fake: jax.Array) -> jax.Array:
  """Cross-entropy loss of the discriminator."""
  real, fake = jax.nn.softplus(-logits_real), jax.nn.softplus(logits_fake)
  return 0.5 * (jnp.mean(real) + jnp.mean(fake))


def adaptive_weight(
  reconstruction_grad: jax.Array, generator_grad: jax.Array, low: float = 0.0, high: float = 1e4
) -> jax.Array:
  """Ratio of two gradients' norms at the decoder's last kernel, without a gradient of its own."""
  norms = jnp.linalg.norm(reconstruction_grad.ravel()), jnp.linalg.norm(generator_grad.ravel())
  return jax.lax.stop_gradient(jnp.clip(norms[0] / (norms[1] + 1e-4), low, high))


def supervised_first(mask: jax.Array, capacity: int) -> tuple[jax.Array, jax.Array]:
  """Where the supervised positions of each row are.

  Args:
    mask: bool [B,L].
    capacity: K; the caller guarantees that no row has more.

  Returns:
    Index int32 [B,K] with the supervised positions first, in order, and bool [B,K] saying which of
    them are supervised.
  """
  index = jnp.argsort(~mask, axis=1, stable=True)[:, :capacity]
  return index, jnp.take_along_axis(mask, index, 1)


def some_of(mask: jax.Array, fraction: float, key: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Draws ceil(fraction * n) of the n marked places of every row.

  Args:
    mask: bool [B,L].
    fraction: above 0, at most 1.
    key: of the draw.

  Returns:
    The mask of those drawn, bool [B,L], and how many marked places each of them stands for,
    float32 [B].
  """
  order = jnp.where(mask, jax.random.uniform(key, mask.shape), 2.0)
  rank = jnp.argsort(jnp.argsort(order, axis=1), axis=1)
  count = jnp.sum(mask, axis=1)
  drawn = jnp.ceil(fraction * count)
  return mask & (rank < drawn[:, None]), count / jnp.maximum(drawn, 1)


def text_cross_entropy(
  nll: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
  hidden: jax.Array,
  target: jax.Array,
  chunk: int,
) -> dict[str, jax.Array]:
  """Sums over the supervised text positions; chunks without any are not computed.

  Args:
    nll: [B,k,D], wanted int32 [B,k] -> negative log-likelihood float32 [B,k] and whether the id is
      the likeliest, bool [B,k]; see heads.nll.
    hidden: [B,L,D].
    target: int32 [B,L], the id predicted at this index, -1 = ignored.
    chunk: positions of a row whose logits exist at once.

  Returns:
    {"nll": summed negative log-likelihood, "correct": number of positions whose likeliest id is the
    target}.
  """

  def sums(state, wanted, valid, _):
    loss, correct = nll(state, wanted)
    return {"nll": jnp.sum(loss * valid), "correct": jnp.sum(correct & valid)}

  index, valid = supervised_first(target >= 0, target.shape[1])
  state = jnp.take_along_axis(hidden, index[..., None], 1)
  wanted = jnp.take_along_axis(target, index, 1)
  return chunks.total(sums, chunk, valid, state, jnp.maximum(wanted, 0))


def code_cross_entropy(
  nll: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
  hidden: jax.Array,
  codes: jax.Array,
  visual_position: jax.Array,
  target: jax.Array,
  *,
  capacity: int,
  chunk: int,
  fraction: float = 1.0,
  key: jax.Array | None = None,
) -> dict[str, jax.Array]:
  """Sums over the supervised visual slots; the depth transformer runs on these alone.

  Args:
    nll: hidden at the previous position [B,k,D], codes [B,k,R], chunk number -> negative
      log-likelihood float32 [B,k,R] and whether the code is the likeliest, bool [B,k,R].
    hidden: [B,L,D].
    codes: int32 [B,N,R].
    visual_position: int32 [B,N].
    target: bool [B,N], supervised.
    capacity: M, the most supervised slots a row may have.
    chunk: slots of a row whose logits exist at once.
    fraction: of a row's supervised slots that are drawn, rounded up; each then counts for as many
      as it stands for, so that the sums are right on average. 1 takes all.
    key: of the draw; needed below 1.

  Returns:
    {"nll": [R], "correct": [R]}.
  """

  capacity, share = min(capacity, target.shape[1]), jnp.ones(len(target))
  if fraction < 1:
    target, share = some_of(target, fraction, key)
    # Rounded as some_of rounds: 0.3 of 100 are 31 in float32.
    capacity = math.ceil(np.float32(fraction) * np.float32(capacity))

  def sums(state, wanted, valid, number):
    loss, correct = nll(state, wanted, number)
    weight = (valid * share[:, None])[..., None]
    return {"nll": jnp.sum(loss * weight, (0, 1)), "correct": jnp.sum(correct * weight, (0, 1))}

  index, valid = supervised_first(target, capacity)
  before = jnp.maximum(jnp.take_along_axis(visual_position, index, 1) - 1, 0)
  state = jnp.take_along_axis(hidden, before[..., None], 1)
  wanted = jnp.take_along_axis(codes, index[..., None], 1)
  return chunks.total(sums, chunk, valid, state, wanted)


def nll(logits: jax.Array, wanted: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Logits [...,E], wanted ids [...] -> negative log-likelihood float32 [...], and whether the id
  is the likeliest, bool [...]."""
  logits = logits.astype(jnp.float32)
  chosen = jnp.take_along_axis(logits, wanted[..., None], -1)[..., 0]
  return jax.nn.logsumexp(logits, -1) - chosen, jnp.argmax(logits, -1) == wanted
