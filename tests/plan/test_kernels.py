"""Fused attention kernels are found in a compiled program and counted by the analytic model."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest

from vilau_jax import sharding
from vilau_jax.layers import flash
from vilau_jax.plan import flops, hlo, kernels, topology

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="needs libtpu, of the extra plan"
)


def test_forward_and_backward_of_causal_attention():
  rows, length, heads, width = 2, 512, 4, 128
  machine = topology.parse("v5e:1x1")
  mesh = sharding.make_mesh(devices=machine.devices)
  where = sharding.batch_sharding(mesh)
  x = jax.ShapeDtypeStruct((rows, length, heads, width), jnp.bfloat16, sharding=where)
  ids = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=where)

  def loss(q, k, v, ids):
    return jnp.sum(flash.attend_causally(q, k, v, None, ids, "splash").astype(jnp.float32))

  # As in training: the precision that conftest.py asks for is none for the TPU's bfloat16 products.
  with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
    lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x, ids)
    program = hlo.parse(lowered.compile().as_text())
  calls = kernels.kernel_calls(program)
  causal = rows * flops.attention(length, length, heads * width) / 2
  # Forward 2 products, backward 5 in one kernel; an attention counts 2.
  assert sorted(n * times for _, n, times in calls) == [causal, 2.5 * causal]
