"""Model directories: what is written comes back, and what does not fit is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from vilau_jax import checkpoint, sharding
from vilau_jax.config import VilaUConfig
from vilau_jax.train import checkpoints


class State(struct.PyTreeNode):
  step: jax.Array
  params: dict
  opt: dict
  collections: dict


def variables():
  draw = np.random.default_rng(0)
  tower = {
    "vision": {
      "embed": {"kernel": draw.normal(size=(8, 4)).astype(np.float32)},
      "layers": {"fc": draw.normal(size=(2, 4)).astype(np.float32)},
      "head": {"probe": np.ones((1, 4), np.float32)},
    },
    "decoder": {"kernel": np.ones((4, 3), np.float32)},
  }
  return {
    "params": {"tower": tower, "llm": {"norm": np.ones((4,), np.float32)}},
    "quantizer": {"codebook": draw.normal(size=(1, 8, 4)).astype(np.float32)},
  }


def test_a_model_comes_back_as_it_was_saved(tmp_path):
  tokenizer = tmp_path / "spm.model"
  tokenizer.write_bytes(b"pieces")
  config = VilaUConfig.from_preset("tiny", llm={"depth": 3})
  checkpoint.save_model(tmp_path / "model", config, variables(), tokenizer)
  loaded = checkpoint.load_model(tmp_path / "model")
  assert loaded.config == config and loaded.tower_tokenizer_path is None
  with open(loaded.tokenizer_path, "rb") as file:
    assert file.read() == b"pieces"
  jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables())
  assert checkpoint.components(tmp_path / "model") == {"tower", "llm"}
  with pytest.raises(FileExistsError, match="already holds a model"):
    checkpoint.save_model(tmp_path / "model", config, variables())


def test_a_part_is_placed_on_a_mesh_and_misfits_are_listed(tmp_path):
  checkpoint.save_model(tmp_path / "m", VilaUConfig.from_preset("tiny"), variables())
  mesh = sharding.make_mesh(data=1, fsdp=8)
  placed = jax.sharding.NamedSharding(mesh, sharding.spec("embed", "norm"))
  leaf = jax.ShapeDtypeStruct((8, 4), jnp.float32, sharding=placed)
  got = checkpoint.load_variables(
    tmp_path / "m", {"params": {"tower": {"vision": {"embed": {"kernel": leaf}}}}}
  )
  kernel = got["params"]["tower"]["vision"]["embed"]["kernel"]
  assert kernel.sharding == placed
  np.testing.assert_array_equal(kernel, variables()["params"]["tower"]["vision"]["embed"]["kernel"])
  bad = {"params": {"llm": {"norm": jax.ShapeDtypeStruct((5,), jnp.float32)}, "depth": leaf}}
  with pytest.raises(ValueError, match=r"params/llm/norm: \(4,\) there, \(5,\) wanted"):
    checkpoint.load_variables(tmp_path / "m", bad)


def test_tower_id_names_what_makes_codes_and_nothing_else():
  base = variables()
  identity = checkpoint.tower_id(base)
  other = variables()
  other["params"]["tower"]["decoder"]["kernel"] *= 2
  other["params"]["tower"]["vision"]["head"]["probe"] *= 2
  assert checkpoint.tower_id(other) == identity
  other["quantizer"]["codebook"][0, 0, 0] += 1e-3
  assert checkpoint.tower_id(other) != identity
  assert checkpoint.tower_id(jax.tree.map(jnp.asarray, base)) == identity
  with pytest.raises(ValueError, match="no tower"):
    checkpoint.tower_id({"params": {}})


def test_a_workdir_loads_its_newest_step_with_the_frozen_part(tmp_path):
  whole = variables()
  config = VilaUConfig.from_preset("tiny")
  checkpoint.write_json(tmp_path / "config.json", {"format_version": 1, "model": config.to_dict()})
  frozen = {"params": {"tower": whole["params"]["tower"]}, "quantizer": whole["quantizer"]}
  checkpoint.save_frozen(tmp_path, frozen, "id")
  saved = checkpoints.TrainingCheckpoints(tmp_path, every=2, keep=2)
  for step in (1, 2, 3, 4, 6):
    params = {"llm": {"norm": jnp.full((4,), float(step))}, "discriminator": {"k": jnp.ones(2)}}
    saved.save(step, State(jnp.int32(step), params, {"mu": jnp.ones(3)}, {}), {"seed": 0})
  saved.close()
  loaded = checkpoint.load_model(tmp_path)
  np.testing.assert_array_equal(loaded.variables["params"]["llm"]["norm"], np.full((4,), 6.0))
  assert "discriminator" not in loaded.variables["params"]
  np.testing.assert_array_equal(
    loaded.variables["quantizer"]["codebook"], whole["quantizer"]["codebook"]
  )
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["4", "6"]


def test_an_averaged_copy_is_what_loads(tmp_path):
  config = VilaUConfig.from_preset("tiny")
  checkpoint.write_json(tmp_path / "config.json", {"format_version": 1, "model": config.to_dict()})
  saved = checkpoints.TrainingCheckpoints(tmp_path, every=1, keep=1)
  params = {"llm": {"norm": jnp.zeros(4)}}
  collections = {"ema": {"llm": {"norm": jnp.ones(4)}}, "quantizer": {"codebook": jnp.ones((1, 2))}}
  saved.save(1, State(jnp.int32(1), params, {"mu": jnp.ones(3)}, collections), {})
  saved.close()
  loaded = checkpoint.load_model(tmp_path).variables
  np.testing.assert_array_equal(loaded["params"]["llm"]["norm"], np.ones(4))
  assert set(loaded) == {"params", "quantizer"}


def test_what_is_no_model_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="neither a model directory nor a workdir"):
    checkpoint.load_model(tmp_path)
  (tmp_path / "config.json").write_text(json.dumps({"format_version": 9}))
  with pytest.raises(ValueError, match="format_version 9"):
    checkpoint.load_model(tmp_path)
