"""Blockwise causal attention against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vilau_jax.layers.attention import attend, causal_mask
from vilau_jax.layers.causal import causal_attend


def case(length, kv_heads, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 4)
  q = jax.random.normal(keys[0], (2, length, 4, 8), dtype)
  k, v = (jax.random.normal(key, (2, length, kv_heads, 8), dtype) for key in keys[1:3])
  segments = np.ones((2, length), np.int32)
  segments[0, length // 3 :] = 2
  segments[1, -length // 5 :] = 0
  return q, k, v, causal_mask(jnp.asarray(segments)), jax.random.normal(keys[3], q.shape)


@pytest.mark.parametrize("length", [5, 64, 100, 257])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_values_and_gradients_are_those_of_plain_attention(length, kv_heads):
  q, k, v, mask, weights = case(length, kv_heads)

  def total(function):
    def loss(q, k, v):
      y = function(q, k, v, mask)
      return jnp.sum(y * weights), y

    return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)

  got, want = total(causal_attend), total(attend)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_low_precision_keeps_its_type_and_nearly_its_values():
  q, k, v, mask, _ = case(80, 2, jnp.bfloat16)
  y = causal_attend(q, k, v, mask)
  assert y.dtype == jnp.bfloat16
  exact = attend(*(x.astype(jnp.float32) for x in (q, k, v)), mask)
  np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=0.03)


def test_a_query_that_sees_nothing_is_finite_both_ways():
  q, k, v, mask, _ = case(70, 2)
  nothing = jnp.zeros_like(mask)
  y, pull = jax.vjp(lambda *a: causal_attend(*a, nothing), q, k, v)
  assert all(np.isfinite(x).all() for x in (y, *pull(y)))


def test_no_square_of_the_sequence_is_kept_for_the_backward_pass():
  q, k, v, mask, _ = case(512, 4)
  _, pull = jax.eval_shape(lambda *a: jax.vjp(lambda *b: causal_attend(*b, mask), *a), q, k, v)
  sizes = [x.size for x in jax.tree.leaves(pull) if x.dtype == jnp.float32]
  assert max(sizes) <= q.size
