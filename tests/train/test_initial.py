"""Runs that start from imported weights: component by component, of other sizes."""

import dataclasses
import functools

import experiments
import golden_lm
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import second_release
from golden_model import TOKENIZER
from golden_tower import assert_close, random_variables
from ml_collections import ConfigDict

from vilau_jax import checkpoint, convert
from vilau_jax.config import VilaUConfig
from vilau_jax.data.tokenizer import Tokenizer
from vilau_jax.models import quantizer, vilau
from vilau_jax.train import initial, loop

PIECES = Tokenizer(TOKENIZER).im_start  # 512: a Llama without the added tokens


def train(config, workdir):
  return loop.train(config, workdir, devices=jax.devices()[:1])


def numpy_tree(tree, dtype):
  return jax.tree.map(lambda x: np.asarray(x).astype(dtype), tree)


@functools.cache
def llama(name, **fields):
  """A model directory with a bfloat16 Llama of the tiny preset's sizes, as an import leaves it."""
  config = VilaUConfig.from_preset("tiny", tower=None, depth=None, llm=dict(fields))
  config = dataclasses.replace(config, name="imported")
  shapes = jax.eval_shape(lambda: vilau.abstract_variables(config))
  params = numpy_tree(random_variables(unboxed(shapes)["params"]), ml_dtypes.bfloat16)
  return config, params


def unboxed(tree):
  import flax.linen as nn

  return nn.unbox(tree)


def wanted(model):
  """Every variable of a model on one device, float32."""
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  flat = jax.tree_util.tree_leaves_with_path(unboxed(vilau.abstract_variables(model)))
  return {
    tuple(k.key for k in path): jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=one)
    for path, x in flat
  }


def test_a_part_goes_behind_the_whole_that_holds_it():
  given = dict(decoder="d", depth="p", llm="l", siglip="s", tower="t", whole="w")
  names = [name for name, _ in initial.in_order(given)]
  assert names.index("whole") < names.index("tower") < names.index("siglip")
  for inner, outer in (("decoder", "tower"), ("llm", "whole"), ("depth", "whole")):
    assert names.index(inner) > names.index(outer)


@pytest.fixture(scope="module")
def imported_llama(tmp_path_factory):
  config, params = llama("x", vocab_size=PIECES)
  path = tmp_path_factory.mktemp("llama") / "llama"
  checkpoint.save_model(path, config, {"params": params}, TOKENIZER)
  return path, params["llm"]


def test_rows_of_added_tokens_are_the_mean_golden():
  data = golden_lm.load("13_resize")
  for side, axis in (("input", 0), ("output", 1)):
    before = data[f"before_{side}"]
    table = before.T if axis else before
    got = initial.fit_vocabulary(table, 512, 516, 640, axis)
    got = got.T if axis else got
    assert got.shape == (640, 8) and got.dtype == np.float32
    np.testing.assert_array_equal(got[:512], before)
    assert_close(got[512:516], data[f"new_{side}_rows"])
    assert not got[516:].any()
    again = initial.fit_vocabulary(got.T if axis else got, 516, 516, 517, axis)
    np.testing.assert_array_equal(again.T if axis else again, got[:517])
  for size in (511, 513, 520):
    with pytest.raises(ValueError, match=f"has 512 ids, {size} are wanted"):
      initial.fit_vocabulary(before, 512, size, 640)


@pytest.mark.parametrize("multiple", [1, 64])
def test_a_plain_llama_gets_the_added_tokens_and_padding(imported_llama, multiple):
  path, params = imported_llama
  model = VilaUConfig.from_preset("tiny", llm=dict(vocab_size=PIECES + 4, vocab_multiple=multiple))
  got = initial.load("llm", path, model, wanted(model), "lm")
  assert all(key[:2] == ("params", "llm") for key in got)
  assert {x.dtype for x in got.values()} == {jnp.dtype("float32")}
  table = np.asarray(got["params", "llm", "embed_tokens"])
  head = np.asarray(got["params", "llm", "lm_head"]).T
  for new, old in ((table, params["embed_tokens"]), (head, params["lm_head"].T)):
    old = old.astype(np.float32)
    assert len(new) == (516 if multiple == 1 else 576)
    np.testing.assert_array_equal(new[:512], old)
    assert_close(new[512:516], np.tile(old.mean(0), (4, 1)))
    assert not new[516:].any()
  kernel = got["params", "llm", "layers", "mlp", "up_proj", "kernel"]
  np.testing.assert_array_equal(kernel, params["layers"]["mlp"]["up_proj"]["kernel"])


def test_weights_that_mean_something_else_are_refused(imported_llama):
  for fields, said in (
    (dict(rope_theta=5e5), r"llm\.rope_theta: 10000\.0 there, 500000\.0 here"),
    (dict(eps=1e-3), r"llm\.eps"),
    (dict(width=48, heads=3, kv_heads=3), "there, .* wanted"),
    (dict(vocab_size=700), "512 ids, 700 are wanted"),
  ):
    model = VilaUConfig.from_preset("tiny", llm=dict(vocab_size=PIECES + 4) | fields)
    with pytest.raises(ValueError, match=said):
      initial.load("llm", imported_llama[0], model, wanted(model), "lm")
  model = VilaUConfig.from_preset("tiny")
  scaled = dataclasses.replace(model, code_scale=0.7)
  with pytest.raises(ValueError, match=r"code_scale: 0\.7 there, 1\.0 here"):
    initial._check_function("depth", scaled, model, {("params", "depth", "pos_emb_d"): None})
  with pytest.raises(ValueError, match="unknown component 'lm'"):
    initial.load("lm", imported_llama[0], model, wanted(model), "lm")
  with pytest.raises(ValueError, match="missing"):
    initial.load("depth", imported_llama[0], model, wanted(model), "lm")


@pytest.mark.parity
@pytest.mark.parametrize(("old", "new"), [(4, 7), (7, 4), (3, 3), (5, 12)])
def test_positions_of_another_resolution(old, new):
  """Against transformers' own interpolation (torch's bicubic), where torch is installed."""
  torch = pytest.importorskip("torch", reason="the extra [parity] is not installed")
  table = np.random.default_rng(0).normal(size=(old * old, 5)).astype(np.float32)
  square = torch.from_numpy(table).reshape(1, old, old, 5).permute(0, 3, 1, 2)
  want = torch.nn.functional.interpolate(square, (new, new), mode="bicubic", align_corners=False)
  got = initial.resize_positions(table, new)
  assert_close(got, want.permute(0, 2, 3, 1).reshape(-1, 5).numpy())


def test_resized_positions_keep_constants_and_order():
  table = np.repeat(np.arange(4.0), 4)[:, None] * [1.0, 0.0] + [0.0, 3.0]
  got = initial.resize_positions(table, 8).reshape(8, 8, 2)
  np.testing.assert_allclose(got[..., 1], 3.0)
  assert (np.diff(got[:, 0, 0]) > 0).all()  # rows stay rows
  np.testing.assert_allclose(got[:, 0], got[:, 7])
  np.testing.assert_allclose(initial.resize_positions(table, 4), table)


def test_a_tower_of_another_resolution_starts_from_an_encoder(tmp_path):
  small = VilaUConfig.from_preset("tiny", llm=None, depth=None)
  shapes = unboxed(vilau.abstract_variables(small))
  variables = numpy_tree(random_variables(shapes), np.float32)
  checkpoint.save_model(tmp_path / "small", small, variables)
  vision = small.tower.vision
  large = small.with_overrides(
    tower=dict(vision=dict(image_size=2 * vision.image_size),
               decoder=dict(resolution=2 * vision.image_size))
  )  # fmt: skip
  got = initial.load("siglip", tmp_path / "small", large, wanted(large), "tower")
  position = got["params", "tower", "vision", "embed", "position"]
  before = variables["params"]["tower"]["vision"]["embed"]["position"]
  assert len(position) == 4 * len(before)
  assert_close(position, initial.resize_positions(before, large.tower.grid))
  kernel = variables["params"]["tower"]["vision"]["embed"]["kernel"]
  np.testing.assert_array_equal(got["params", "tower", "vision", "embed", "kernel"], kernel)


def test_averages_of_a_release_in_bfloat16_are_made_anew(tmp_path):
  """The first update moves no codeword for rounding's sake."""
  model = VilaUConfig.from_preset("tiny", llm=None, depth=None)
  variables = random_variables(unboxed(vilau.abstract_variables(model)))
  counts = np.random.default_rng(0).uniform(0, 90, variables["quantizer"]["cluster_size"].shape)
  variables["quantizer"]["cluster_size"] = counts
  checkpoint.save_model(tmp_path / "m", model, numpy_tree(variables, ml_dtypes.bfloat16))
  state = {k[1]: v for k, v in initial.load("tower", tmp_path / "m", model, wanted(model),
                                            "tower").items() if k[0] == "quantizer"}  # fmt: skip
  config = dataclasses.replace(model.tower.quantizer, decay=1.0, restart=False)
  one = {k: v[0] for k, v in state.items()}
  still, _ = quantizer._update(config, one, jnp.ones((1, 32)), jnp.zeros(1, jnp.int32), None)
  np.testing.assert_allclose(still["codebook"], one["codebook"], rtol=1e-6)


@pytest.mark.slow
def test_tower_from_one_place_and_llama_from_another(imported_llama, tmp_path):
  """A whole run with a bfloat16 Llama without added tokens, and padded rows."""
  _, model = experiments.tower()
  model = dataclasses.replace(model, llm=None, depth=None)
  variables = numpy_tree(random_variables(unboxed(vilau.abstract_variables(model))), np.float32)
  checkpoint.save_model(tmp_path / "tower", model, variables)
  experiments.write_pictures(tmp_path / "pictures")
  config = experiments.lm_run(tmp_path, tmp_path / "tower", checkpoint.tower_id(variables))
  config.init_from = dict(tower=str(tmp_path / "tower"), llm=str(imported_llama[0]))
  config.model.llm = dict(vocab_size=0, vocab_multiple=64)
  config.data.tokenizer_size, config.steps, config.optim.peak_lr = 0, 1, 0.0
  config.data.row.update(dict(length=160))
  train(config, tmp_path / "lm")
  after = checkpoint.load_model(tmp_path / "lm")
  assert after.config.llm.vocab_size == PIECES + 4
  table, old = after.variables["params"]["llm"]["embed_tokens"], imported_llama[1]["embed_tokens"]
  assert table.dtype == np.float32 and len(table) == 576
  np.testing.assert_array_equal(table[:PIECES], old.astype(np.float32))
  assert_close(table[PIECES : PIECES + 4], np.tile(old.astype(np.float32).mean(0), (4, 1)))
  with open(tmp_path / "lm" / "tokenizer.model", "rb") as one, open(TOKENIZER, "rb") as other:
    assert one.read() == other.read()


@pytest.mark.slow
def test_fine_tuning_an_imported_release(tmp_path):
  """init_from.whole takes a release of any geometry, under its own name."""
  second_release.write(tmp_path / "release")
  convert.import_checkpoint("vila-u", tmp_path / "release", tmp_path / "model")
  loaded = checkpoint.load_model(tmp_path / "model")
  experiments.write_pictures(tmp_path / "pictures", side=loaded.config.tower.image_size)
  identity = checkpoint.tower_id(loaded.variables)
  experiments.write_codes(tmp_path / "pictures", tmp_path / "codes", loaded.config, identity)
  config, _ = experiments.lm()
  config.init_from = dict(whole=str(tmp_path / "model"))
  config.model = dict(preset="vilau_7b_256", dtype="float32", remat="none", system_prompt="")
  config.steps, config.optim.peak_lr = 1, 0.0
  config.data.root = str(tmp_path)
  config.data.mixture = (dict(path="codes", form="t2i", weight=1.0),)
  config.data.row.update(dict(length=160, slots=64, targets=48, window=16))
  with pytest.raises(ValueError, match=r"decoder\.channels: 64 there, 128 in the preset"):
    train(config, tmp_path / "run")
  config = ConfigDict(config.to_dict())
  config.model.preset = loaded.config.name
  train(config, tmp_path / "run")
  after = checkpoint.load_model(tmp_path / "run")
  jax.tree.map(np.testing.assert_array_equal, loaded.variables, after.variables)
