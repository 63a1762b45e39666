"""Weights that go from the disk to their shards, and outputs that do not depend on the mesh."""

import functools

import golden_model
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vilau_jax
from vilau_jax import checkpoint, sharding
from vilau_jax.generate.engine import COMPONENTS
from vilau_jax.streaming import StoredArray


@functools.cache
def tiny() -> vilau_jax.VilaU:
  return vilau_jax.VilaU.from_loaded(golden_model.tiny())


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  where = tmp_path_factory.mktemp("model") / "tiny"
  tiny().save(where)
  return where


def test_weights_are_read_when_they_are_placed(path):
  loaded = checkpoint.load_model(path, on_disk=COMPONENTS)
  params = loaded.variables["params"]
  assert all(
    isinstance(leaf, StoredArray) for k in COMPONENTS for leaf in jax.tree.leaves(params.get(k))
  )
  assert isinstance(jax.tree.leaves(params["tower"])[0], np.ndarray)
  model = vilau_jax.load(path)
  assert model.identity() == tiny().identity()
  again = model.runtime.variables()["params"]["llm"]
  want = golden_model.tiny().variables["params"]["llm"]
  jax.tree.map(np.testing.assert_array_equal, again, jax.tree.map(np.asarray, want))


def test_a_model_of_four_devices_writes_and_draws_the_same(path):
  mesh = sharding.make_mesh(data=2, tensor=2, devices=jax.devices()[:4])
  model = vilau_jax.load(path, mesh)
  query = model.runtime.engine.params["llm"]["layers_0"]["self_attn"]["q_proj"]["kernel"]
  assert len(query.addressable_shards) == 4
  assert query.addressable_shards[0].data.size * 2 == query.size
  talks = ["Hi", "Tell me about the sea."]
  sampled = dict(temperature=0.8, max_new_tokens=8)
  assert model.generate_text(talks, **sampled) == tiny().generate_text(talks, **sampled)
  drawn, want = (m.generate_images(talks, seed=2) for m in (model, tiny()))
  np.testing.assert_array_equal(drawn, want)
  assert model.identity() == tiny().identity()


def test_float32_from_training_takes_half_the_room_where_bfloat16_is_computed(
  tmp_path, monkeypatch
):
  """On an accelerator, which this one says it is; what is saved is what was loaded, bit for bit."""
  trained = vilau_jax.VilaU.from_loaded(golden_model.tiny(dtype="bfloat16"))
  trained.save(tmp_path / "trained")
  on_cpu = vilau_jax.load(tmp_path / "trained")
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  model = vilau_jax.load(tmp_path / "trained")
  llm = model.runtime.engine.params["llm"]
  assert llm["layers_0"]["mlp"]["up_proj"]["kernel"].dtype == jnp.bfloat16
  assert llm["embed_tokens"].dtype == jnp.bfloat16
  assert llm["norm"]["scale"].dtype == jnp.float32
  assert model.identity() == on_cpu.identity()
  model.save(tmp_path / "again")
  want, got = (checkpoint.load_model(tmp_path / x).variables for x in ("trained", "again"))
  jax.tree.map(np.testing.assert_array_equal, want, got)
  assert jax.tree.leaves(got["params"]["llm"])[0].dtype == np.float32


def test_a_mesh_that_does_not_divide_a_weight_is_refused(path):
  with pytest.raises(ValueError, match="largest legal size is 2"):
    vilau_jax.load(path, sharding.make_mesh(data=1, tensor=8))
