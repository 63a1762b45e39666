"""Sizes and axis names of the presets, by abstract evaluation only."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import pytest

from vilau_jax import sharding
from vilau_jax.config import VilaUConfig
from vilau_jax.models import vilau
from vilau_jax.presets import PRESETS

TOWER_256 = dict(
  vision=315_956_224, text=336_194_560, codebook=16_777_216, post_quant=262_400,
  decoder=42_449_795, logit=2,
)  # fmt: skip
TOWER_384 = dict(
  vision=428_225_600, text=449_734_896, codebook=18_874_368, post_quant=295_168,
  decoder=42_449_795, logit=2,
)  # fmt: skip
WANT = {
  "vilau_7b_256": TOWER_256
  | dict(projector=20_979_712, llm=6_738_448_384, depth=527_145_984),
  "vilau_7b_384": TOWER_384
  | dict(projector=21_504_000, llm=6_738_448_384, depth=527_504_384),
  "vilau_1b3_256": TOWER_256
  | dict(projector=6_295_552, llm=1_345_439_744, depth=521_903_104),
}  # fmt: skip
TRAINED = {
  "vilau_7b_256": 7_286_574_080, "vilau_7b_384": 7_287_456_768, "vilau_1b3_256": 1_873_638_400,
}  # fmt: skip


def preset(name: str) -> VilaUConfig:
  """A preset whose tokenizers are known."""
  vocabulary = {"llm": {"vocab_size": 516}, "tower": {"text": {"vocab_size": 300}}}
  return VilaUConfig.from_preset(name, **(vocabulary if name == "quickstart" else {}))


abstract_variables = functools.cache(vilau.abstract_variables)  # seconds for the large ones


@pytest.mark.parametrize("name", WANT)
def test_counts_of_the_published_sizes(name):
  counts = vilau.describe_parameters(VilaUConfig.from_preset(name))
  assert counts == WANT[name] | {"total": sum(WANT[name].values())}
  assert sum(counts[k] for k in ("projector", "llm", "depth")) == TRAINED[name]


@pytest.mark.parametrize("name", PRESETS)
def test_every_parameter_is_counted(name):
  config = preset(name)
  if config.llm is not None:
    assert config.llm.vocab_multiple == 1
  variables = nn.unbox(abstract_variables(config))
  leaves = jax.tree.leaves(variables["params"])
  if "quantizer" in variables:
    leaves.append(variables["quantizer"]["codebook"])
  counts = vilau.describe_parameters(config)
  assert counts["total"] == sum(math.prod(a.shape) for a in leaves)


def test_padded_vocabulary_is_there_but_not_counted():
  config = VilaUConfig.from_preset("vilau_7b_256", llm={"vocab_multiple": 128})
  llm = nn.unbox(abstract_variables(config))["params"]["llm"]
  assert llm["embed_tokens"].shape == (32_128, 4096) and llm["lm_head"].shape == (4096, 32_128)
  assert vilau.describe_parameters(config)["llm"] == WANT["vilau_7b_256"]["llm"]


@pytest.mark.parametrize("name", PRESETS)
def test_every_parameter_names_its_axes(name):
  variables = abstract_variables(preset(name))
  leaves = jax.tree_util.tree_leaves_with_path(
    variables, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
  )
  assert leaves
  for path, leaf in leaves:
    where = jax.tree_util.keystr(path)
    assert isinstance(leaf, nn.LogicallyPartitioned), where
    assert len(leaf.names) == len(leaf.value.shape), where
    for size, axis in zip(leaf.value.shape, leaf.names):
      assert axis in sharding.RULES or (axis is None and size == 1), (where, leaf.names)
    mesh_axes = [a for n in leaf.names if (a := sharding.RULES.get(n))]
    assert len(mesh_axes) == len(set(mesh_axes)), f"{where} names a mesh axis twice: {leaf.names}"
    assert leaf.value.dtype == "float32", where


@pytest.mark.mesh
@pytest.mark.parametrize("name", ["vilau_7b_256", "vilau_7b_384", "vilau_1b3_256"])
@pytest.mark.parametrize(
  "shape, ways", [({"fsdp": 8}, 8), ({"data": 2, "fsdp": 2, "tensor": 2}, 4)]
)
def test_large_presets_divide_evenly(name, shape, ways):
  config = VilaUConfig.from_preset(name, llm={"vocab_multiple": 128})
  mesh = sharding.make_mesh(**{"data": 1} | shape)
  params = abstract_variables(config)["params"]
  trained = {k: params[k] for k in ("llm", "projector", "depth")}
  shardings = jax.tree.leaves(sharding.state_shardings(trained, mesh))
  leaves = jax.tree.leaves(nn.unbox(trained))
  share = sum(math.prod(s.shard_shape(a.shape)) for s, a in zip(shardings, leaves))
  assert share < 1.002 * sum(a.size for a in leaves) / ways  # only norms and biases are whole


def test_a_config_may_lack_components():
  whole = preset("tiny")
  tower = vilau.describe_parameters(dataclasses.replace(whole, llm=None, depth=None))
  assert set(tower) == {
    "vision", "text", "codebook", "post_quant", "decoder", "logit", "total",
  }  # fmt: skip
  llm = vilau.describe_parameters(dataclasses.replace(whole, tower=None, depth=None))
  assert set(llm) == {"llm", "total"}
  assert vilau.describe_parameters(whole)["llm"] == llm["llm"]


def test_rqvae_and_extension_components_are_named():
  rqvae = vilau.describe_parameters(VilaUConfig.from_preset("rqvae_256"))
  assert set(rqvae) == {"encoder", "codebook", "post_quant", "decoder", "total"}
  c = preset("quickstart")
  counts = vilau.describe_parameters(c)
  assert counts["visual_positions"] == (c.tower.image_tokens + c.video_frames + 1) * c.llm.width
