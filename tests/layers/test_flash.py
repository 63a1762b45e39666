"""The kernels of TPU and GPU, interpreted, against plain attention; and which one is taken."""

import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vilau_jax import sharding
from vilau_jax.layers import flash
from vilau_jax.layers.attention import attend, causal_mask


def case(kv_heads, batch=2, length=128, heads=2, size=64):
  keys = jax.random.split(jax.random.key(0), 4)
  q = jax.random.normal(keys[0], (batch, length, heads, size))
  k, v = (jax.random.normal(key, (batch, length, kv_heads, size)) for key in keys[1:3])
  segments = np.ones((batch, length), np.int32)
  segments[0, length // 3 :] = 2
  segments[1, -length // 5 :] = 0
  return q, k, v, jnp.asarray(segments), jax.random.normal(keys[3], q.shape)


def values(function, case):
  q, k, v, segments, weights = case

  def loss(q, k, v):
    y = function(q, k, v, segments)
    return jnp.sum(y * weights), y

  return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)


@pytest.mark.parametrize("kernel", [flash.splash, flash.triton])
@pytest.mark.parametrize("kv_heads", [2, 1])
def test_kernels_have_the_values_and_gradients_of_plain_attention(kernel, kv_heads):
  given = case(kv_heads)
  got = values(lambda *a: kernel(*a, interpret=True), given)
  want = values(lambda q, k, v, s: attend(q, k, v, causal_mask(s)), given)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


@pytest.mark.skipif(jax.default_backend() == "cpu", reason="needs a TPU or a GPU")
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_the_kernel_of_this_machine_is_plain_attention_but_for_rounding(kv_heads):
  """Compiled, not interpreted: bfloat16 values within its rounding of plain float32 attention."""
  q, k, v, segments, weights = case(kv_heads, length=1024, heads=4, size=128)
  rounded = [x.astype(jnp.bfloat16) for x in (q, k, v)]
  given = (*rounded, segments, weights)
  got = values(lambda q, k, v, s: flash.attend_causally(q, k, v, causal_mask(s), s), given)
  whole = (*(x.astype(jnp.float32) for x in rounded), segments, weights)
  want = values(lambda q, k, v, s: attend(q, k, v, causal_mask(s)), whole)
  real = np.asarray(segments) > 0  # what pads a row has no meaning
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    a, b = (np.asarray(x, np.float32)[real] for x in (a, b))
    np.testing.assert_allclose(a, b, atol=2**-6 * np.abs(b).max())


def test_what_a_kernel_does_not_take_is_said():
  q, k, v, segments, _ = case(2, length=96)
  with pytest.raises(ValueError, match="96 positions"):
    flash.attend_causally(q, k, v, causal_mask(segments), segments, "splash")
  with pytest.raises(ValueError, match="fork"):
    flash.attend_causally(q, k, v, causal_mask(segments), None, "triton")
  with pytest.raises(ValueError, match="must be one of"):
    flash.attend_causally(q, k, v, causal_mask(segments), segments, "flash")


@pytest.mark.nightly
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.parametrize("shape", [dict(data=4), dict(fsdp=2, tensor=2)])
def test_compiled_for_a_tpu_it_is_the_kernel(monkeypatch, shape):
  from jax.experimental import topologies

  for name, value in dict(TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE="v5litepod-4").items():
    monkeypatch.setitem(os.environ, name, value)
  chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
  mesh = sharding.make_mesh(**shape, devices=chips)
  batch, heads = sharding.batch_sharding(mesh), sharding.spec("batch", None, "act_heads", None)
  given = [
    jax.ShapeDtypeStruct((4, 256, 2, 128), jnp.bfloat16, sharding=jax.NamedSharding(mesh, heads))
  ] * 3
  given.append(jax.ShapeDtypeStruct((4, 256), jnp.int32, sharding=batch))

  def loss(q, k, v, segments):
    mask = causal_mask(segments)
    return jnp.sum(flash.attend_causally(q, k, v, mask, segments).astype(jnp.float32))

  # The tests' own precision is none that the kernel multiplies bfloat16 in.
  with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
    text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*given).compile().as_text()
  assert "splash_mha_fwd_segmented" in text and "splash_mha_dkv_segmented" in text
