"""Fused attention kernels are found in a compiled program and counted by the analytic model."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest

from vilau_jax import sharding
from vilau_jax.layers import flash
from vilau_jax.plan import flops, hlo, kernels, topology


def needs(package):
  missing = importlib.util.find_spec(package) is None
  return pytest.mark.skipif(missing, reason=f"needs {package}, of the extra plan")


# Products over the square: forward 2 and backward 5 in one kernel; or forward 2, then a kernel of
# row sums, then one for dk and dv (4) and dq (3). An attention counts 2.
@pytest.mark.parametrize(
  ("chip", "kernel", "passes"),
  [
    pytest.param("v5e:1x1", "splash", [1, 2.5], marks=needs("libtpu")),
    pytest.param("h100:1x1", "triton", [0, 1, 3.5], marks=needs("jax_cuda13_plugin")),
  ],
)
def test_forward_and_backward_of_causal_attention(chip, kernel, passes):
  rows, length, heads, width = 2, 512, 4, 128
  machine = topology.parse(chip)
  mesh = sharding.make_mesh(devices=machine.devices)
  where = sharding.batch_sharding(mesh)
  x = jax.ShapeDtypeStruct((rows, length, heads, width), jnp.bfloat16, sharding=where)
  ids = jax.ShapeDtypeStruct((rows, length), jnp.int32, sharding=where)

  def loss(q, k, v, ids):
    return jnp.sum(flash.attend_causally(q, k, v, None, ids, kernel).astype(jnp.float32))

  # As in training: the precision that conftest.py asks for is none for bfloat16 products.
  with jax.set_mesh(mesh), jax.default_matmul_precision("default"):
    lowered = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(x, x, x, ids)
    compiled = lowered.compile(compiler_options=machine.compiler_options())
    program = hlo.parse(compiled.as_text())
  calls = kernels.kernel_calls(program)
  causal = rows * flops.attention(length, length, heads * width) / 2
  assert sorted(n * times for _, n, times in calls) == [n * causal for n in passes]
