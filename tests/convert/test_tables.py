"""The tables against the real models' lists of names and shapes; nothing is allocated."""

import json
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vilau_jax.config import VilaUConfig
from vilau_jax.convert import formats, siglip, transforms
from vilau_jax.convert.plan import check
from vilau_jax.convert.sources import TensorInfo, Tensors

SHAPES = pathlib.Path(__file__).parents[1] / "golden" / "shapes"


def announced(shapes: dict[str, list[int]]) -> Tensors:
  """A source that has nothing but its header."""
  source = Tensors(pathlib.Path("listed"), [])
  for name, shape in shapes.items():
    file = pathlib.Path("model.safetensors")
    source.infos[name] = TensorInfo(tuple(shape), np.dtype("float32"), file, "F32")
  return source


def release_shapes(name: str) -> dict[str, list[int]]:
  """Names with their folders; the language model's list stands apart, as both models share it."""
  listed = json.loads((SHAPES / f"vila-u-7b-{name}.shapes.json").read_text())["shapes"]
  del listed["vision_tower_aliases"]
  listed["llm"] = json.loads((SHAPES / "llama-2-7b.shapes.json").read_text())["shapes"]
  return {f"{folder}/{n}": shape for folder, part in listed.items() for n, shape in part.items()}


@pytest.mark.parametrize("name", ["256", "384"])
def test_the_real_models_fit_exactly(name):
  listed = release_shapes(name)
  plan = formats.export_plan("vila-u", VilaUConfig.from_preset(f"vilau_7b_{name}"))
  check(plan, announced(listed))  # zero missing, zero unused, all shapes equal
  written = {n: list(p.source_shape) for _, p in plan.pieces() for n in p.written}
  assert written == listed
  assert sum(n.startswith("vision_tower/") for n in written) == {"256": 1107, "384": 1239}[name]


def test_the_published_encoders_are_those_of_the_presets():
  for preset, hub in (("vilau_7b_256", "google/siglip-large-patch16-256"),
                      ("vilau_7b_384", "google/siglip-so400m-patch14-384")):  # fmt: skip
    tower = VilaUConfig.from_preset(preset).tower
    assert siglip.hub_config(hub) == (tower.vision, tower.text)
    built = siglip.tower_of(tower.vision, tower.text)
    assert (built.decoder, built.latent_grid) == (tower.decoder, tower.latent_grid)
  assert siglip.hub_config("google/siglip-huge-patch7-99") is None


def test_everything_wrong_is_listed_at_once_with_the_nearest_name():
  listed = release_shapes("256")
  moved = listed.pop("llm/model.norm.weight")
  listed["llm/model.normal.weight"] = moved
  listed["mm_projector/layers.0.weight"] = [4096, 1023]
  del listed["vision_tower/rqtransformer.pos_emb_d"]
  source = announced(listed)
  wrong = source.infos["llm/lm_head.weight"]
  source.infos["llm/lm_head.weight"] = TensorInfo(wrong.shape, None, wrong.file, "F8_E4M3")
  odd = "llm/model.layers.3.mlp.up_proj.weight"
  source.infos[odd] = TensorInfo(source.infos[odd].shape, np.dtype("float16"), wrong.file, "F16")
  plan = formats.export_plan("vila-u", VilaUConfig.from_preset("vilau_7b_256"))
  with pytest.raises(ValueError) as error:
    check(plan, source)
  said = str(error.value)
  assert "6 problems" in said and len(said.splitlines()) == 7
  assert "llm/model.norm.weight [4096]: missing (nearest: llm/model.normal.weight)" in said
  assert "llm/model.normal.weight [4096]: nothing of this model is called so" in said
  assert "layers.0.weight: shape [4096, 1023], the config makes it [4096, 1024]" in said
  assert "rqtransformer.pos_emb_d [1, 4, 2560]: missing" in said
  assert "llm/lm_head.weight: dtype F8_E4M3 in model.safetensors" in said
  assert f"{odd}: dtype float16, the rest of llm is float32" in said


@given(st.lists(st.integers(1, 4), min_size=4, max_size=4), st.sampled_from(["<f4", "<u2"]))
def test_transforms_are_undone_exactly(sizes, dtype):
  random = np.random.default_rng(0)
  for how, rank in ((transforms.SAME, 2), (transforms.LEADING_1, 2), (transforms.HEADS_BIAS, 2),
                    (transforms.LINEAR, 2), (transforms.HEADS_IN, 3), (transforms.HEADS_OUT, 3),
                    (transforms.CONV, 4), (transforms.CODEBOOK, 2)):  # fmt: skip
    shape = tuple(sizes[:rank])
    ours = random.integers(1, 99, shape).astype(dtype)
    source = how.to_source(ours)
    assert source.shape == how.source_shape(shape)
    np.testing.assert_array_equal(how.to_ours(source, shape), ours)
  table = np.pad(random.integers(1, 9, sizes[:2]), ((0, 3), (0, 0)))
  for head, padded in ((False, table), (True, table.T)):
    how = transforms.vocabulary(sizes[0], head=head)
    source = how.to_source(padded)
    assert source.shape == how.source_shape(padded.shape) == (sizes[0], sizes[1])
    np.testing.assert_array_equal(how.to_ours(source, padded.shape), padded)
