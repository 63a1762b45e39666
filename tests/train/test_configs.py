"""Every file in configs/ builds, and its step is traced for two steps without a single weight."""

import importlib.util
import pathlib
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from vilau_jax.config import VilaUConfig
from vilau_jax.models.perceptual import Lpips
from vilau_jax.train import defaults
from vilau_jax.train.experiment import CHANGEABLE, check_same, jsonable
from vilau_jax.train.lm import LmStage
from vilau_jax.train.tower import TowerStage

FOLDER = pathlib.Path(__file__).parents[2] / "configs"
FILES = sorted(FOLDER.glob("*.py"))
CASES = [(f, arg) for f in FILES for arg in (("", "smoke", "long") if "quick" in f.name else ("",))]


def load(file, arg=""):
  spec = importlib.util.spec_from_file_location(file.stem, file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return ConfigDict(module.get_config(arg).copy_and_resolve_references()).lock()


def resolved(config):
  """The model with the sizes that a tokenizer would fill in."""
  model = VilaUConfig.from_preset(**config.model.to_dict())
  values = model.to_dict()
  if values["tower"]["text"] and not values["tower"]["text"]["vocab_size"]:
    values["tower"]["text"]["vocab_size"] = 768
  if values["llm"] and not values["llm"]["vocab_size"]:
    values["llm"]["vocab_size"] = 772
  return VilaUConfig.from_dict(values)


def abstract_batch(config, model):
  def leaf(dtype, *shape):
    return jax.ShapeDtypeStruct((config.batch_size, *shape), dtype)

  if config.stage == "tower":
    side = model.tower.image_size
    batch = {"image": leaf(jnp.uint8, side, side, 3)}
    if config.loss.contrastive:
      batch["text"] = leaf(jnp.int32, model.tower.text.length)
      batch["caption_id"] = leaf(jnp.int32)
    return batch
  row = config.data.row
  ints = dict.fromkeys(("tokens", "segment_ids", "positions", "text_target"), row.length)
  batch = {k: leaf(jnp.int32, n) for k, n in ints.items()}
  batch["visual_position"] = leaf(jnp.int32, row.slots)
  batch["visual_target"] = leaf(jnp.bool_, row.slots)
  batch["codes"] = leaf(jnp.uint16, row.slots, model.tower.quantizer.depth)
  return batch


@pytest.mark.parametrize("file, arg", CASES, ids=lambda x: getattr(x, "stem", x))
def test_two_steps_in_the_abstract(file, arg):
  config = load(file, arg)
  model = resolved(config)
  stage = {"tower": TowerStage, "lm": LmStage}[config.stage](config, model)
  key = jax.random.key(0)
  state, frozen = jax.eval_shape(lambda k: nn.unbox(stage.init(k)), key)
  if config.stage == "tower" and config.loss.lpips:
    images = jnp.zeros((1, 32, 32, 3))
    frozen = frozen | {"lpips": jax.eval_shape(lambda: nn.unbox(Lpips().init(key, images, images)))}
  batch = abstract_batch(config, model)
  moved, metrics = jax.eval_shape(stage.step, state, frozen, batch, key)
  again, _ = jax.eval_shape(stage.step, moved, frozen, batch, key)
  assert jax.tree.structure(state) == jax.tree.structure(again)
  shapes = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, again)
  assert all(jax.tree.leaves(shapes))
  assert metrics["loss"].shape == ()


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_the_header_says_how_to_run_it(file):
  header = load_docstring(file)
  assert f"vilau train --config=configs/{file.name} --workdir=" in header
  assert re.search(r"cores|chips|H100", header)


def load_docstring(file):
  spec = importlib.util.spec_from_file_location(file.stem, file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.__doc__


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_config_has_exactly_the_fields_of_its_stage(file):
  config = load(file)
  defaults.check(config)
  other = ConfigDict(config.to_dict())
  other.optim.peak_lrr = 1.0
  del other.data.threads
  message = r"'optim.peak_lrr' \(did you mean 'optim.peak_lr'\?\); missing field 'data.threads'"
  with pytest.raises(ValueError, match=message):
    defaults.check(other)


def test_an_unknown_argument_is_named():
  with pytest.raises(
    ValueError, match="unknown config argument 'smok'; known: '', 'smoke', 'long'"
  ):
    load(FOLDER / "quickstart_tower.py", "smok")


def test_the_same_config_is_the_same_after_json_and_length_may_change():
  config = load(FOLDER / "quickstart_lm.py")
  stored = {"experiment": jsonable(config)}
  longer = ConfigDict(config.to_dict())
  longer.steps, longer.ckpt.every = 2, 1
  check_same(stored, longer, FOLDER)
  assert set(CHANGEABLE) >= {"steps", "log", "ckpt"}
  longer.optim.peak_lr = 1.0
  with pytest.raises(ValueError, match=r"optim.peak_lr: 0.002 there, 1.0 now"):
    check_same(stored, longer, FOLDER)
