"""Configs refuse what they do not know and survive a round trip through JSON."""

import dataclasses
import json

import pytest

from vilau_jax.config import VilaUConfig
from vilau_jax.presets import PRESETS


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_round_trip_through_json(name):
  config = PRESETS[name]
  assert VilaUConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
  "overrides, message",
  [
    ({"lmm": {}}, "unknown config key 'lmm' .did you mean 'llm'"),
    ({"llm": {"dept": 3}}, "unknown config key 'llm.dept' .did you mean 'depth'"),
    ({"llm": {"depth": "3"}}, "'llm.depth' must be int, got '3'"),
    ({"llm": {"depth": True}}, "'llm.depth' must be int, got True"),
    ({"llm": 3}, "'llm' must be"),
    ({"projector": "mlp"}, "projector must be one of"),
    ({"tower": {"encoder": "clip"}}, "tower.encoder must be one of"),
    ({"tower": {"vision": None}}, "needs its section"),
  ],
)
def test_bad_overrides_are_named(overrides, message):
  with pytest.raises(ValueError, match=message):
    VilaUConfig.from_preset("tiny", **overrides)


def test_unknown_preset_suggests_the_nearest():
  with pytest.raises(ValueError, match="did you mean 'vilau_7b_256'"):
    VilaUConfig.from_preset("vilau_7b_265")


def test_nested_overrides_keep_the_rest():
  config = VilaUConfig.from_preset("tiny", llm={"depth": 5}, code_scale=2)
  assert config.llm == dataclasses.replace(PRESETS["tiny"].llm, depth=5)
  assert config.code_scale == 2.0 and config.tower == PRESETS["tiny"].tower


def test_geometry_of_the_paper():
  """Paper section 4.1: 16x16x4 codes at 256 pixels, 27x27x16 at 384."""
  at_256, at_384 = PRESETS["vilau_7b_256"].tower, PRESETS["vilau_7b_384"].tower
  assert (at_256.grid, at_256.image_tokens, at_256.quantizer.depth) == (16, 256, 4)
  assert (at_384.grid, at_384.image_tokens, at_384.quantizer.depth) == (27, 729, 16)
  assert PRESETS["rqvae_256"].tower.grid == 16


def test_extensions_are_off_in_the_presets_of_the_paper():
  for name in ("vilau_7b_256", "vilau_7b_384", "vilau_1b3_256", "vilau_1b3_rqvae", "rqvae_256"):
    config = PRESETS[name]
    assert config.visual_positions == "none" and config.code_scale == 1.0
    assert config.tower.decoder.pixel_shuffle == 1
    assert config.tower.vision is None or not config.tower.vision.pool_positions
    assert config.tower.quantizer.restart_threshold == 1.0
    assert config.tower.quantizer.restart_draw == "uniform"
    assert config.tower.quantizer.update == "sequential_per_depth"
