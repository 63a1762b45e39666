"""Losses against the reference's numbers, numpy, and their unchunked form."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_tower import arrays, assert_close

from vilau_jax import sharding
from vilau_jax.train import losses


def test_gan_losses_are_the_references():
  golden = arrays("rqvae/gan_losses.npz")
  real, fake = golden["logits_real"], golden["logits_fake"]
  assert_close(losses.hinge(real, fake), golden["hinge_mean"])
  assert_close(losses.vanilla(real, fake), golden["vanilla_d_mean"])
  assert_close(losses.generator(fake), golden["vanilla_g_mean"])


@pytest.mark.parametrize("ids", [None, [0, 1, 0, 2, 1]])
def test_sigmoid_contrastive_is_the_double_sum(ids):
  draw = np.random.default_rng(0)
  image, text = draw.normal(size=(2, 5, 7))
  image /= np.linalg.norm(image, axis=1, keepdims=True)
  text /= np.linalg.norm(text, axis=1, keepdims=True)
  scale, bias = np.float32([2.1]), np.float32([-3.0])
  want = 0.0
  for i in range(5):
    for j in range(5):
      same = i == j if ids is None else ids[i] == ids[j]
      logit = np.exp(2.1) * image[i] @ text[j] - 3.0
      want += np.log1p(np.exp(-logit if same else logit)) / 5
  ids = None if ids is None else jnp.asarray(ids)
  got = losses.sigmoid_contrastive(jnp.float32(image), jnp.float32(text), scale, bias, ids)
  assert_close(got, want)


@pytest.mark.mesh
@pytest.mark.parametrize(
  "shape", [dict(data=1), dict(data=2), dict(data=2, fsdp=2), dict(data=8), dict(fsdp=4, tensor=2)]
)
@pytest.mark.parametrize("equal", [False, True])
def test_chunked_contrastive_is_the_dense_one(shape, equal):
  draw = np.random.default_rng(0)
  image, text = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in
                 jnp.float32(draw.normal(size=(2, 16, 5))))  # fmt: skip
  given = image, text, jnp.float32([2.1]), jnp.float32([-3.0])
  ids = jnp.asarray(draw.integers(0, 6, 16)) if equal else None

  def values(loss):
    return jax.jit(jax.value_and_grad(lambda *a: loss(*a, ids), (0, 1, 2, 3)))(*given)

  want = values(losses.sigmoid_contrastive)
  mesh = sharding.make_mesh(
    **dict(data=1) | shape, devices=jax.devices()[: np.prod([*shape.values()])]
  )
  with jax.set_mesh(mesh):
    got = values(losses.sigmoid_contrastive_chunked)
  jax.tree.map(assert_close, got, want)


def test_a_wrong_caption_is_told_from_the_picture_s_own():
  rng = np.random.default_rng(3)
  image, text, wrong = (rng.normal(size=(5, 4)).astype(np.float32) for _ in range(3))
  has = np.array([True, False, True, True, False])
  want = 0.0
  for i in np.flatnonzero(has):
    want += math.log1p(math.exp(-1.7 * float(image[i] @ (text[i] - wrong[i]))))
  got = losses.wrong_captions(image, text, wrong, jnp.log(1.7)[None], has)
  np.testing.assert_allclose(got, want / 5, rtol=1e-5)


def test_a_fraction_of_the_slots_is_right_on_average():
  mask = jnp.asarray([[1, 1, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]], bool)
  values = jnp.arange(18.0).reshape(3, 6)

  def total(key):
    drawn, share = losses.some_of(mask, 0.5, key)
    return jnp.sum(values * drawn * share[:, None], 1), jnp.sum(drawn, 1), (drawn & ~mask).any()

  sums, counts, stray = jax.vmap(total)(jax.random.split(jax.random.key(0), 4000))
  assert not stray.any()
  np.testing.assert_array_equal(counts, np.broadcast_to([3, 0, 1], counts.shape))
  np.testing.assert_allclose(sums.mean(0), (values * mask).sum(1), rtol=0.03)


@pytest.mark.parametrize("fraction", [0.15, 0.27, 0.3, 0.54, 0.6, 0.5])
def test_every_slot_that_is_drawn_is_counted(fraction):
  """Of a row whose slots are all supervised; 0.3 of 100 is a little more than 30 in float32."""
  slots = 100
  mask, codes = jnp.ones((1, slots), bool), jnp.ones((1, slots, 1), jnp.int32)
  places = jnp.arange(1, slots + 1)[None]
  ones = lambda state, wanted, number: (jnp.ones(wanted.shape), wanted > 0)  # noqa: E731
  found = losses.code_cross_entropy(
    ones, jnp.zeros((1, slots + 1, 2)), codes, places, mask,
    capacity=slots, chunk=10, fraction=fraction, key=jax.random.key(0),
  )  # fmt: skip
  assert_close(found["nll"], [slots])


def test_pixel_and_psnr():
  a, b = np.zeros((2, 4, 4, 3), np.float32), np.full((2, 4, 4, 3), 0.5, np.float32)
  assert_close(losses.pixel(a, b, mse=2.0, l1=3.0), 2 * 0.25 + 3 * 0.5)
  assert_close(losses.psnr(a, b), 10 * np.log10(4 / 0.25))


def test_adaptive_weight_is_bounded_and_carries_no_gradient():
  weight = losses.adaptive_weight(jnp.full((2, 2), 3.0), jnp.full((2, 2), 2.0))
  assert_close(weight, 6 / (4 + 1e-4))
  assert losses.adaptive_weight(jnp.ones(3), jnp.zeros(3)) == pytest.approx(1e4)
  assert losses.adaptive_weight(jnp.ones(3), jnp.zeros(3), 0.3, 10.0) == pytest.approx(10.0)
  assert jax.grad(lambda x: losses.adaptive_weight(x, jnp.ones(3)))(jnp.ones(3)).max() == 0


def _text_case():
  draw = np.random.default_rng(1)
  target = np.where(draw.random((3, 20)) < 0.3, draw.integers(0, 11, (3, 20)), -1).astype(np.int32)
  target[2] = -1
  hidden, head = draw.normal(size=(3, 20, 5)), draw.normal(size=(5, 11))
  return jnp.float32(hidden), jnp.float32(head), jnp.asarray(target)


@pytest.mark.parametrize("chunk", [4, 7, 20])
def test_text_cross_entropy_in_any_chunks(chunk):
  hidden, head, target = _text_case()

  def whole(hidden, head):
    logp = jax.nn.log_softmax(hidden @ head)
    nll = -jnp.take_along_axis(logp, jnp.maximum(target, 0)[..., None], -1)[..., 0]
    return jnp.sum(jnp.where(target >= 0, nll, 0)), jnp.sum(
      (jnp.argmax(logp, -1) == target) & (target >= 0)
    )

  def chunked(hidden, head):
    sums = losses.text_cross_entropy(lambda h, w: losses.nll(h @ head, w), hidden, target, chunk)
    return sums["nll"], sums["correct"]

  want = jax.value_and_grad(whole, (0, 1), has_aux=True)(hidden, head)
  got = jax.jit(jax.value_and_grad(chunked, (0, 1), has_aux=True))(hidden, head)
  jax.tree.map(assert_close, got, want)


@pytest.mark.parametrize("chunk, capacity", [(2, 5), (3, 6), (9, 9)])
def test_code_cross_entropy_reads_the_position_before(chunk, capacity):
  draw = np.random.default_rng(2)
  hidden, head = draw.normal(size=(2, 16, 5)), draw.normal(size=(5, 3, 7))
  codes = draw.integers(0, 7, (2, 9, 3)).astype(np.int32)
  place = np.full((2, 9), -1, np.int32)
  place[0, :8], place[1, :4] = 3 + np.arange(8), 1 + np.arange(4)
  target = np.zeros((2, 9), bool)
  target[0, 3:8], target[1, 0:2] = True, True
  want = np.zeros(3)
  for b, n in zip(*np.nonzero(target)):
    logits = np.einsum("d,dre->re", hidden[b, place[b, n] - 1], head)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    want -= logp[np.arange(3), codes[b, n]]

  def total(hidden):
    return losses.code_cross_entropy(
      lambda h, c, i: losses.nll(jnp.einsum("bkd,dre->bkre", h, head), c),
      hidden, jnp.asarray(codes), jnp.asarray(place), jnp.asarray(target),
      capacity=capacity, chunk=chunk,
    )  # fmt: skip

  assert_close(jax.jit(total)(jnp.float32(hidden))["nll"], want)
  grad = jax.grad(lambda h: total(h)["nll"].sum())(jnp.float32(hidden))
  touched = {(b, place[b, n] - 1) for b, n in zip(*np.nonzero(target))}
  assert {tuple(map(int, x)) for x in zip(*np.nonzero(np.abs(grad).sum(-1)))} == touched


def test_no_logits_of_the_whole_row_exist():
  """The largest array of the compiled gradient is one chunk's, not [B, L, V]."""
  hidden = jax.ShapeDtypeStruct((2, 512, 8), jnp.float32)
  head = jax.ShapeDtypeStruct((8, 4096), jnp.float32)
  target = jax.ShapeDtypeStruct((2, 512), jnp.int32)

  def loss(hidden, head, target):
    return losses.text_cross_entropy(lambda h, w: losses.nll(h @ head, w), hidden, target, 32)[
      "nll"
    ]

  compiled = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, head, target).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 2 * 512 * 4096 * 4 / 2
