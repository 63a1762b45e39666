"""The blocked cross-entropy against the plain one, on one device and on meshes, and its memory."""

import importlib.util
import os

import experiments
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_tower import assert_close

from vilau_jax import sharding
from vilau_jax.layers.dense import Head
from vilau_jax.train import heads, losses
from vilau_jax.train.lm import LmStage


def case(entries=24, size=21):
  draw = np.random.default_rng(0)
  x, kernel = draw.normal(size=(2, 8, 6)), draw.normal(size=(6, entries))
  wanted = draw.integers(0, size, (2, 8)).astype(np.int32)
  wanted[0, :4] = 0  # with equal logits below, the first of equals is the likeliest
  return jnp.float32(x), jnp.float32(kernel), jnp.float32(draw.normal(size=entries)), wanted, size


def gradients(function, x, kernel, bias, wanted, size):
  def total(x, kernel, bias):
    loss, correct = function(Head(x, kernel, bias, size), wanted)
    return jnp.sum(loss * jnp.arange(1, 9)), (loss, correct)

  return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(x, kernel, bias)


def plain(head, wanted):
  return losses.nll(head.logits(), wanted)


@pytest.mark.parametrize("block", [0, 1, 5, 8, 24, 100])
def test_blocks_of_any_size_give_the_plain_loss_and_gradients(block):
  got = gradients(lambda h, w: heads.nll(h, w, block), *case())
  jax.tree.map(assert_close, got, gradients(plain, *case()))


@pytest.mark.mesh
@pytest.mark.parametrize(("tensor", "entries"), [(2, 24), (4, 24), (2, 22), (4, 28)])
def test_classes_sharded_over_a_mesh(tensor, entries):
  """22 and 28 classes leave 11 and 7 a shard: blocks of 3 are filled up."""
  want = gradients(plain, *case(entries))
  with jax.set_mesh(sharding.make_mesh(tensor=tensor, fsdp=2)):
    got = gradients(lambda h, w: heads.nll(h, w, 3), *case(entries))
  jax.tree.map(assert_close, got, want)


@pytest.mark.parametrize("entries", [23, 29])
def test_classes_that_no_block_divides(entries):
  got = gradients(lambda h, w: heads.nll(h, w, 5), *case(entries))
  jax.tree.map(assert_close, got, gradients(plain, *case(entries)))


@pytest.mark.parametrize(("entries", "blocks"), [(16004, 8), (32004, 18), (64004, 32), (16384, 8)])
def test_a_vocabulary_of_any_size_has_few_blocks(entries, blocks):
  assert heads._pieces(entries, 2048) == blocks


@pytest.mark.mesh
def test_the_first_of_equal_classes_is_the_likeliest():
  x, kernel, bias, wanted, size = case()
  head = Head(x, 0 * kernel, 0 * bias, size)
  with jax.set_mesh(sharding.make_mesh(tensor=4)):
    correct = jax.jit(lambda: heads.nll(head, wanted, 3)[1])()
  np.testing.assert_array_equal(correct, wanted == 0)


def compiled_bytes(entries, mesh, chunk=1024):
  """Temporaries of the step, and the bytes of the classifier's gradient, a device."""
  c, _ = experiments.lm()
  c.batch_size = 4
  c.data.row.update(dict(length=1280, slots=1024, targets=1024))
  c.loss.update(dict(text_chunk=256, code_chunk=chunk, head_block=1024))
  quantizer = dict(depth=4, entries=entries)
  c.model.tower.quantizer = quantizer
  c.model.remat = "nothing_saveable"
  model = experiments.VilaUConfig.from_preset(**c.model.to_dict())
  stage = LmStage(c, model)
  boxed = jax.eval_shape(stage.init, jax.random.key(0))  # a key is made on a device that is there
  with jax.set_mesh(mesh):
    placed = sharding.state_shardings(boxed, mesh)
    box = nn.LogicallyPartitioned
    plain = jax.tree.map(
      lambda x: x.value if isinstance(x, box) else x, boxed, is_leaf=lambda x: isinstance(x, box)
    )
    state, frozen = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), plain, placed
    )
    rows = experiments.lm_batch(model, c.data.row, size=4)
    batch = {
      k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=sharding.batch_sharding(mesh))
      for k, v in rows.items()
    }
    step = jax.jit(stage.step, donate_argnames=("state",), out_shardings=(placed[0], None))
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=sharding.batch_sharding(mesh).update(
      spec=jax.P()))  # fmt: skip
    compiled = step.lower(state, frozen, batch, key).compile()
  kernel = state.params["depth"]["classifier"]["kernel"]
  return compiled.memory_analysis().temp_size_in_bytes, 4 * kernel.size


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.nightly
def test_memory_on_a_tpu_does_not_follow_the_number_of_codes(monkeypatch):
  """Sixteen times the codes: temporaries of the compiled step grow by less than 5 %, the
  classifier's own gradient apart."""
  from jax.experimental import topologies

  for name, value in dict(TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE="v5litepod-4").items():
    monkeypatch.setitem(os.environ, name, value)
  chips = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
  mesh = sharding.make_mesh(data=4, devices=chips)
  with jax.default_matmul_precision("default"):  # the tests' own takes weights apart into three
    few, gradient_of_few = compiled_bytes(1024, mesh)
    many, gradient_of_many = compiled_bytes(16384, mesh)
  assert many - gradient_of_many < 1.05 * (few - gradient_of_few), (few, many)
