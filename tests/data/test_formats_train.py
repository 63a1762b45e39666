"""Every format from raw files to two training steps: imported, inspected, coded, packed, trained.

The steps of all formats share one compiled tiny model.
"""

import experiments
import jax
import numpy as np
import pytest
import sources

from vilau_jax import api
from vilau_jax.data import codes, forms, inspect, pipeline, records
from vilau_jax.data.tokenizer import Tokenizer, record_texts, train_tokenizer
from vilau_jax.generate import vision
from vilau_jax.train import loop
from vilau_jax.train import step as steps
from vilau_jax.train.lm import LmStage

pytestmark = pytest.mark.slow  # the first one compiles a training step

FORMS = {"pair": "t2i", **{kind: kind for kind in ("interleaved", "t2v", "t2i", "i2t", "sft")}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def tower(root):
  """A tiny tower that was trained for a step."""
  config = experiments.tower_run(root)
  config.steps = 1
  loop.train(config, root / "tower", devices=jax.devices()[:1])
  return api.load(root / "tower")


@pytest.fixture(scope="module")
def coded(root, tower):
  """Format -> its records with the tower's codes."""
  side, count = tower.config.tower.image_size, tower.config.tower.image_tokens
  found = {}
  for name in sources.EVERY:
    sources.load(name, root / "raw", root / "records" / name)

    def encode(images):
      return tower.encode_images(images).reshape(len(images), count, -1)

    found[name] = codes.add_codes(
      root / "records" / name, root / "codes" / name, encode, tower.tower_id(), image_size=side
    )
  return found


@pytest.fixture(scope="module")
def trained(root, tower, coded):
  """A function: form and format -> losses of two steps."""
  texts = [text for found in coded.values() for text in record_texts(found)]
  tokenizer = Tokenizer(train_tokenizer(texts, root / "t.model"))
  config, model = experiments.lm(llm=dict(vocab_size=tokenizer.vocab_size))
  config.batch_size = 2
  config.data.row.update(dict(length=384, slots=256, targets=192, window=8))
  stage = LmStage(config, model)
  state, frozen = jax.jit(lambda key: steps.unboxed(stage.init(key)))(jax.random.key(0))
  step = jax.jit(stage.step)
  settings = forms.SequenceSettings.from_model(model, frames=0, system_prompt="")

  def run(name, form):
    data = dict(
      mixture=[dict(path=str(coded[name].path), form=form, weight=1)], row=config.data.row
    )
    batches = pipeline.lm_dataset(
      data, settings, tokenizer, model.tower.quantizer.depth, batch_size=2, seed=0,
      tower_id=tower.tower_id(), process_index=0, process_count=1,
    )  # fmt: skip
    now, losses = state, []
    for index in range(2):
      now, metrics = step(now, frozen, batches[index], jax.random.key(1))
      losses.append(jax.device_get(metrics))
    row = {key: value[0] for key, value in batches[0].items()}
    return losses, inspect.draw_row(row, tokenizer), row

  return run


@pytest.mark.parametrize("name", sources.EVERY)
def test_every_format_is_trained_on(coded, trained, name):
  found = coded[name]
  about = inspect.summary(found)
  assert all(f"{count} {kind}" in about for kind, count in sources.KINDS[name].items())
  assert inspect.sheet(found).shape[-1] == 3
  kind = next(kind for kind in found.kinds if kind in FORMS)
  losses, picture, row = trained(name, FORMS[kind])
  drawn = FORMS[kind] in ("t2i", "t2v")
  for metrics in losses:
    assert np.isfinite(metrics["loss"]) and np.isfinite(metrics["grad_norm"])
    assert (metrics["loss_image"] > 0) == drawn and metrics["loss_text"] > 0
  assert losses[1]["loss"] != losses[0]["loss"]
  colours = {n for n, c in inspect.COLORS.items() if (picture[36:] == c).all(-1).any()}
  assert ("picture, supervised" if drawn else "picture") in colours
  assert (row["visual_position"] >= 0).any()


def test_full_batches_are_coded_on_every_device(tower):
  """64 pictures on 8 devices give the codes of 8 batches on one."""
  side = tower.config.tower.image_size
  images = np.random.default_rng(0).integers(0, 256, (64, side, side, 3), np.uint8)
  rows, weights = tower.runtime.vision._everywhere
  assert rows.num_devices == 8 == len(jax.tree.leaves(weights)[0].sharding.device_set)
  assert tower.runtime.vision.full_batch == 8 * vision.at_once(side)
  together = tower.encode_images(images)
  apart = [tower.encode_images(images[i : i + 8]) for i in range(0, 64, 8)]
  np.testing.assert_array_equal(together, np.concatenate(apart))
  assert len(np.unique(together)) > 4


def test_the_towers_hash_guards_its_codes(coded, root, tower):
  found = coded["folder"]
  assert {record["tower_id"] for record in found} == {tower.tower_id()}
  assert found.info["codes"]["tower_id"] == tower.tower_id()
  tokenizer = Tokenizer(root / "t.model")
  data = dict(
    mixture=[dict(path=str(found.path), form="t2i", weight=1)],
    row=dict(length=384, slots=256, targets=192),
  )
  settings = forms.SequenceSettings(system_prompt="")
  with pytest.raises(ValueError, match="codes were made by tower"):
    pipeline.lm_dataset(data, settings, tokenizer, 4, batch_size=1, seed=0, tower_id="another")
  assert records.get_codes(found[0]).shape[-1] == tower.config.tower.quantizer.depth
