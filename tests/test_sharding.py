"""The one sharding mechanism: names are checked, constraints are real, no quiet padding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from vilau_jax import sharding
from vilau_jax.layers.dense import Dense


def test_mesh_sizes_must_use_every_device():
  with pytest.raises(ValueError, match="needs 4 devices, this job has 8"):
    sharding.make_mesh(data=4)
  with pytest.raises(ValueError, match="cannot be divided by 3"):
    sharding.make_mesh(data=-1, fsdp=3)
  with pytest.raises(ValueError, match="at most one may be -1"):
    sharding.make_mesh(data=-1, fsdp=-1)
  assert dict(sharding.make_mesh(fsdp=2, tensor=2).shape) == {
    "data": 2,
    "fsdp": 2,
    "tensor": 2,
    "context": 1,
  }


def test_unknown_names_and_wrong_ranks_raise():
  with pytest.raises(ValueError, match="known names"):
    sharding.constrain(jnp.ones((2, 3)), "bacth", "length")
  with pytest.raises(ValueError, match="rank 2"):
    sharding.constrain(jnp.ones((2, 3)), "batch")
  layer = Dense(4, ("embd", "mlp"))
  with pytest.raises(ValueError, match="embd"):
    layer.init(jax.random.key(0), jnp.ones((1, 2)))


def _boxed(width, features):
  layer = Dense(features, ("embed", "mlp"))
  return jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((1, width)))


def test_parameters_follow_the_table():
  shardings = sharding.state_shardings(_boxed(8, 16), sharding.make_mesh(fsdp=2, tensor=2))
  assert shardings["params"]["kernel"].spec == P("fsdp", "tensor")
  assert shardings["params"]["bias"].spec == P("tensor")


def test_a_size_that_does_not_divide_is_an_error_naming_everything():
  mesh = sharding.make_mesh(fsdp=8)
  with pytest.raises(
    ValueError, match=r"params/kernel has 12 along 'embed'.*largest legal size is 6"
  ):
    sharding.state_shardings(_boxed(12, 16), mesh)


def test_constraints_reach_the_compiler_only_under_a_mesh():
  def fn(x):
    return sharding.constrain(x, "batch", "act_embed") * 2

  x = jnp.ones((8, 4))
  assert "sharding_constraint" not in jax.jit(fn).lower(x).as_text()
  with jax.set_mesh(sharding.make_mesh(data=8)):
    assert "sharding_constraint" in jax.jit(fn).lower(x).as_text()


def test_every_box_survives_unboxing():
  tree = _boxed(8, 16)
  assert isinstance(tree["params"]["kernel"], nn.LogicallyPartitioned)
  assert tree["params"]["kernel"].names == ("embed", "mlp")
