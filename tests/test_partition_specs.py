"""Where every parameter lies: the 7B model's partition specs as stored, nothing large left whole.

After a wanted change write the file again with `python tests/test_partition_specs.py`.
"""

import math
import pathlib

import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util
from flax.linen import LogicallyPartitioned
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from vilau_jax import sharding
from vilau_jax.config import VilaUConfig
from vilau_jax.models.discriminator import PatchDiscriminator
from vilau_jax.models.perceptual import Lpips
from vilau_jax.models.vilau import abstract_variables
from vilau_jax.train import defaults
from vilau_jax.train.step import make_stage, planned_model

STORED = pathlib.Path(__file__).parent / "golden" / "partition_specs_7b_256.txt"
PRESETS = ("vilau_7b_256", "vilau_7b_384", "vilau_1b3_256", "rqvae_256", "recipe_c2_256")


def boxed_leaves(tree):
  flat = traverse_util.flatten_dict(
    tree, is_leaf=lambda _, x: isinstance(x, LogicallyPartitioned), sep="/"
  )
  return dict(sorted(flat.items()))


def everything(preset):
  """Boxed abstract variables of all nets that are trained or used with a preset, by path."""
  images = jnp.zeros((1, 64, 64, 3))
  key = jax.random.key(0)
  padded = dict(llm=dict(vocab_multiple=128)) if "7b" in preset else {}
  tree = dict(abstract_variables(VilaUConfig.from_preset(preset, **padded)))
  judge = PatchDiscriminator(64, 2, "batch", jnp.float32)
  tree["discriminator"] = jax.eval_shape(lambda: judge.init(key, images, False))
  tree["lpips"] = jax.eval_shape(lambda: Lpips().init(key, images, images))
  return boxed_leaves(tree)


def lines(preset):
  for path, leaf in everything(preset).items():
    axes = ", ".join(str(a) for a in sharding.spec(*leaf.names))
    yield f"{path} {list(leaf.value.shape)} ({axes})"


def test_the_specs_of_the_7b_model_are_those_stored():
  assert list(lines("vilau_7b_256")) == STORED.read_text().splitlines()


@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_over_a_mebibyte_is_whole_on_an_fsdp_mesh(preset):
  whole = []
  for path, leaf in everything(preset).items():
    axes = [a for names in sharding.spec(*leaf.names) if names for a in (names, *names)]
    size = math.prod(leaf.value.shape) * 4
    if "fsdp" not in axes and size > 2**20:
      whole.append((path, size))
  assert not whole


def test_nor_are_adapters():
  """The axis that fsdp shares in a projection is missing from half of its adapters."""
  c = defaults.lm()
  c.lora.update(dict(rank=16, targets=("llm", "projector", "depth")))
  state = jax.eval_shape(make_stage(c, planned_model(c)).init, jax.random.key(0))[0]
  params = boxed_leaves(state.params)
  placed = sharding.state_shardings(params, mesh(fsdp=8))
  large = [path for path, leaf in params.items() if 4 * leaf.value.size > 2**20]
  assert large and not any(placed[path].is_fully_replicated for path in large)
  odd = jax.ShapeDtypeStruct((4304, 16), jnp.float32)  # as a projection of SO400M's
  odd = sharding.state_shardings(LogicallyPartitioned(odd, ("adapter", None)), mesh(fsdp=32))
  assert odd.spec[0] == "tensor"


def mesh(**sizes):
  shape = dict.fromkeys(sharding.MESH_AXES, 1) | sizes
  types = (AxisType.Auto,) * len(shape)
  return AbstractMesh(tuple(shape.values()), tuple(shape), axis_types=types)


@pytest.mark.parametrize(
  "preset, sizes",
  [
    ("vilau_7b_256", dict(fsdp=256)),
    ("vilau_7b_256", dict(fsdp=32, tensor=8)),
    ("vilau_7b_384", dict(fsdp=128)),
    ("vilau_7b_384", dict(fsdp=64, tensor=8)),
    ("vilau_1b3_256", dict(fsdp=64)),
  ],
)
def test_meshes_that_divide_the_language_models(preset, sizes):
  multiple = dict(vocab_multiple=128)
  boxed = abstract_variables(VilaUConfig.from_preset(preset, llm=multiple))
  codebook = {"codebook": boxed["quantizer"]["codebook"]}
  params = {k: v for k, v in boxed["params"].items() if k != "tower"}
  placed = sharding.state_shardings({"params": params, "quantizer": codebook}, mesh(**sizes))
  assert placed["params"]["llm"]["layers"]["mlp"]["up_proj"]["kernel"].spec == PartitionSpec(
    None, "fsdp", "tensor"
  )


@pytest.mark.parametrize(
  "sizes, message",
  [
    (dict(fsdp=256), r"has 1152 along '(code|embed)'.*largest legal size is 192"),
    (dict(tensor=32), r"has 4304 along 'mlp'.*largest legal size is 16"),
  ],
)
def test_so400m_refuses_meshes_that_do_not_divide_it(sizes, message):
  """1152 = 2**7 * 9 and 4304 = 16 * 269: never padded, the error names what would do."""
  tower = abstract_variables(VilaUConfig.from_preset("vilau_7b_384"))["params"]["tower"]
  vision = {k: v for k, v in tower["vision"].items() if k == "layers"}
  only = {"mlp": vision["layers"]["mlp"]}
  with pytest.raises(ValueError, match=message):
    sharding.state_shardings(only, mesh(**sizes))


if __name__ == "__main__":
  STORED.write_text("".join(f"{line}\n" for line in lines("vilau_7b_256")))
