"""The TPU's fused attention kernel, interpreted here, against plain causal attention."""

import jax
import jax.numpy as jnp
import numpy as np

from vilau_jax import sharding
from vilau_jax.layers import flash
from vilau_jax.layers.attention import causal_mask
from vilau_jax.layers.causal import causal_attend


def test_values_and_gradients_equal_plain_attention_on_a_mesh():
  keys = jax.random.split(jax.random.key(0), 4)
  shape = (4, 128, 2, 128)
  q, k, v, wanted = (jax.random.normal(key, shape) for key in keys)
  ids = jnp.where(jnp.arange(128) < 50, 1, jnp.where(jnp.arange(128) < 120, 2, 0))
  ids = jnp.broadcast_to(ids, (4, 128)).astype(jnp.int32)

  def loss(attend, *qkv):
    return jnp.sum(attend(*qkv) * wanted)

  plain = lambda q, k, v: causal_attend(q, k, v, causal_mask(ids))  # noqa: E731
  fused = lambda q, k, v: flash.attend_segments(q, k, v, ids, interpret=True)  # noqa: E731
  want = jax.value_and_grad(lambda *x: loss(plain, *x), argnums=(0, 1, 2))(q, k, v)
  with jax.set_mesh(sharding.make_mesh(data=2, fsdp=2, tensor=2)):
    step = jax.jit(jax.value_and_grad(lambda *x: loss(fused, *x), argnums=(0, 1, 2)))
    got = step(q, k, v)
  np.testing.assert_allclose(got[0], want[0], rtol=1e-4)
  for a, b in zip(got[1], want[1]):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_a_cpu_does_without():
  with jax.set_mesh(sharding.make_mesh(data=8)):
    assert not flash.fits(4096, 128)
