"""Every form of a product equals the plain one, and keeping weights another way loses nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vilau_jax.layers.dense import Dense
from vilau_jax.layers.product import Transposed, for_decoding, natural, product

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(6,), (1, 6), (2, 6), (2, 1, 6), (4, 6), (3, 5, 6)])
@pytest.mark.parametrize("kept", [jnp.asarray, lambda w: Transposed(jnp.asarray(w.T))])
def test_products_of_any_number_of_rows(shape, kept):
  x, w = RNG.normal(size=shape).astype(np.float32), RNG.normal(size=(6, 4)).astype(np.float32)
  got = jax.jit(product, static_argnames="dtype")(x, kept(w), dtype=jnp.float32)
  np.testing.assert_allclose(got, x @ w, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_products_over_heads(rows):
  x = RNG.normal(size=(rows, 2, 3)).astype(np.float32)
  w = RNG.normal(size=(2, 3, 5, 4)).astype(np.float32)
  got = product(x, jnp.asarray(w), jnp.float32, contracted=2)
  assert got.shape == (rows, 5, 4)
  np.testing.assert_allclose(got, np.einsum("nhc,hcdk->ndk", x, w), rtol=1e-5, atol=1e-5)


def test_half_precision_sums_in_single():
  x, w = jnp.full((2, 4096), 1.0, jnp.bfloat16), jnp.full((4096, 3), 1.0, jnp.bfloat16)
  assert product(x, w, jnp.bfloat16).dtype == jnp.bfloat16
  wide = product(x, w, jnp.bfloat16, result=jnp.float32)
  assert wide.dtype == jnp.float32
  np.testing.assert_array_equal(wide, 4096)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere weights stay as they are")
def test_weights_kept_for_decoding_are_the_same_weights():
  layer = Dense(3, ("mlp", "embed"))
  x = RNG.normal(size=(2, 8)).astype(np.float32)
  weights = dict(kernel=RNG.normal(size=(8, 3)), bias=RNG.normal(size=3))
  params = {"params": {"fc": jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), weights)}}
  kept = for_decoding(params)
  assert isinstance(kept["params"]["fc"]["kernel"], Transposed)
  assert kept["params"]["fc"]["kernel"].shape == (8, 3)
  jax.tree.map(np.testing.assert_array_equal, natural(kept), params)
  plain = layer.apply({"params": params["params"]["fc"]}, x)
  np.testing.assert_allclose(
    layer.apply({"params": kept["params"]["fc"]}, x), plain, rtol=1e-5, atol=1e-6
  )


def test_gradients_pass_through_products_of_few_rows():
  x, w = RNG.normal(size=(2, 6)).astype(np.float32), RNG.normal(size=(6, 4)).astype(np.float32)
  got = jax.grad(lambda w: jnp.sum(product(x, w, jnp.float32) ** 2))(jnp.asarray(w))
  np.testing.assert_allclose(got, 2 * x.T @ (x @ w), rtol=1e-4, atol=1e-4)


def test_accelerators_get_plain_products():
  """What is done for the CPU does not reach them: one product a weight, of all rows."""
  x, w = jax.ShapeDtypeStruct((2, 6), jnp.float32), jax.ShapeDtypeStruct((6, 4), jnp.float32)
  run = jax.jit(product, static_argnames="dtype")
  for platform, products in (("tpu", 1), ("cuda", 1), ("cpu", 2)):
    text = run.trace(x, w, dtype=jnp.float32).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("stablehlo.dot_general") == products
