"""A release of another geometry in every number: in, used, and out again bit for bit."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import second_release
from golden_model import golden
from safetensors.numpy import load_file, save_file

import vilau_jax
from vilau_jax import checkpoint, convert
from vilau_jax.config import VilaUConfig

PARTS = ("llm", "vision_tower", "mm_projector")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
  folder = tmp_path_factory.mktemp("second") / "release"
  second_release.write(folder)
  return folder


@pytest.fixture(scope="module")
def imported(release):
  """(model directory, report)."""
  folder = release.parent / "model"
  return folder, convert.import_checkpoint("vila-u", release, folder)


@pytest.fixture(scope="module")
def model(imported):
  return vilau_jax.load(imported[0])


def tensors(folder):
  return {
    f"{part}/{name}": value
    for part in PARTS
    for file in sorted((folder / part).glob("*.safetensors"))
    for name, value in load_file(file).items()
  }


def assert_same_bits(got, want):
  assert got.keys() == want.keys()
  for name, value in want.items():
    assert got[name].dtype == value.dtype, name
    np.testing.assert_array_equal(got[name].view(np.uint8), value.view(np.uint8), err_msg=name)


def assert_same_model(one, other):
  first, second = (checkpoint.load_model(path) for path in (one, other))
  same = dataclasses.replace(first.config, name=second.config.name)
  assert same == second.config
  jax.tree.map(np.testing.assert_array_equal, first.variables, second.variables)


def test_every_number_differs_from_golden_a():
  """So a field that nobody reads shows. Left are those that no release writes down."""
  first, second = (dict(_numbers(c.to_dict())) for c in (golden().config, _config_by_hand("x")))
  unwritten = {"fold", "groups", "pixel_shuffle", "vocab_multiple", "restart_threshold", "unroll",
               "pool_positions", "dropout", "code_scale", "cfg_scale", "temperature", "top_k",
               "top_p", "tied"}  # fmt: skip
  same = {k for k, v in second.items() if v == first[k]} - {"tower.quantizer.eps", "depth.eps"}
  assert {k.rpartition(".")[2] for k in same} == unwritten


def _numbers(tree, prefix=""):
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from _numbers(value, f"{prefix}{key}.")
    elif isinstance(value, int | float | tuple):
      yield f"{prefix}{key}", value


def _config_by_hand(name):
  return VilaUConfig.from_dict(
    {
      "name": name,
      "projector": "mlp3x_gelu",
      "video_frames": second_release.FRAMES,
      "markers": "release",
      "tower": {
        "vision": dict(image_size=40, patch_size=12, width=72, hidden=136, depth=3, heads=6,
                       eps=3e-6),
        "text": dict(vocab_size=190, length=12, width=72, hidden=104, depth=1, heads=3, eps=5e-6),
        "quantizer": dict(depth=6, entries=96, width=72, shared=True, decay=0.97, restart=False),
        "decoder": dict(channels=64, multipliers=(1, 1, 1, 2), blocks=2, latent_channels=40,
                        resolution=40, attention_resolutions=(10, 5)),
        "latent_grid": 5,
      },
      "llm": dict(vocab_size=VOCABULARY, width=80, hidden=208, depth=4, heads=10, kv_heads=2,
                  rope_theta=20000.0, rope_scaling=2.5, max_positions=160, eps=3e-6),
      "depth": dict(width=48, hidden=192, depth=3, heads=6),
    }
  )  # fmt: skip


VOCABULARY = 388


def test_the_architecture_is_what_the_configs_say(release, imported):
  config = checkpoint.load_model(imported[0]).config
  assert config == _config_by_hand(config.name)
  assert convert.read_architecture("vila-u", release) == config
  assert config.tower.grid == 3 and config.tower.image_tokens == 9


def test_every_tensor_is_used_once(release, imported):
  folder, report = imported
  found = tensors(release)
  assert not report.ignored and report.copies == 0
  assert report.total.tensors == len(found)
  records = json.loads((folder / "manifest.json").read_text())["tensors"]
  assert {r["name"] for r in records} == found.keys()
  assert all(r["into"] for r in records)


@pytest.mark.slow
def test_export_gives_the_same_bits(release, imported, tmp_path):
  convert.export_checkpoint("vila-u", imported[0], tmp_path / "out")
  got, want = tensors(tmp_path / "out"), tensors(release)
  # An export writes what shares memory under all its names.
  for name in got.keys() - want.keys():
    first = name.replace("siglip_model.logit", "logit")
    for depth in range(1, 6):
      first = first.replace(f"codebooks.{depth}.", "codebooks.0.")
    want[name] = want[first]
  assert_same_bits(got, want)
  assert not got["vision_tower/rqvaesiglip.quantizer.codebooks.0.weight"][-1].any()
  convert.import_checkpoint("vila-u", tmp_path / "out", tmp_path / "again")
  assert_same_model(imported[0], tmp_path / "again")
  convert.verify(tmp_path / "again", tmp_path / "out")


@pytest.mark.slow
def test_a_release_with_all_copies_gives_the_same_model(imported, tmp_path):
  second_release.write(tmp_path / "copies", copies=True)
  report = convert.import_checkpoint("vila-u", tmp_path / "copies", tmp_path / "model")
  assert report.copies == 2 + 3 * 5
  assert_same_model(imported[0], tmp_path / "model")
  convert.export_checkpoint("vila-u", tmp_path / "model", tmp_path / "out")
  assert_same_bits(tensors(tmp_path / "out"), tensors(tmp_path / "copies"))


@pytest.mark.slow
@pytest.mark.parametrize(
  "name", ["quantizer.codebooks.4.embed_ema", "siglip_model.logit_bias",
           "quantizer.codebooks.2.weight"],
)  # fmt: skip
def test_copies_that_differ_are_refused(tmp_path, name):
  second_release.write(tmp_path / "r", copies=True)
  file = tmp_path / "r" / "vision_tower" / "model.safetensors"
  values = load_file(file)
  values[f"rqvaesiglip.{name}"].flat[0] += 1
  save_file(values, file)
  with pytest.raises(ValueError, match=name.replace(".", r"\.")):
    convert.import_checkpoint("vila-u", tmp_path / "r", tmp_path / "m")
  assert sorted(p.name for p in tmp_path.iterdir()) == ["r"]


@pytest.mark.slow
def test_half_a_set_of_copies_and_shards(imported, tmp_path):
  """Some trainers write some aliases; the language model comes in shards."""
  second_release.write(tmp_path / "r", copies=True, shards=3)
  file = tmp_path / "r" / "vision_tower" / "model.safetensors"
  values = load_file(file)
  for name in ("logit_scale", "siglip_model.logit_bias", "quantizer.codebooks.3.embed_ema"):
    del values[f"rqvaesiglip.{name}"]
  save_file(values, file)
  convert.import_checkpoint("vila-u", tmp_path / "r", tmp_path / "m")
  assert_same_model(imported[0], tmp_path / "m")
  convert.verify(tmp_path / "m", tmp_path / "r")


@pytest.mark.slow
def test_a_release_inside_a_folder_called_model(release, imported, tmp_path):
  shutil.copytree(release, tmp_path / "run" / "model")
  convert.import_checkpoint("vila-u", tmp_path / "run", tmp_path / "m")
  assert_same_model(imported[0], tmp_path / "m")


def test_it_sees_draws_and_talks(model):
  draw = np.random.default_rng(3)
  pictures = draw.integers(0, 256, (4, 40, 40, 3)).astype(np.uint8)
  codes = model.encode_images(pictures)
  assert codes.shape == (4, 3, 3, 6) and codes.max() < 96
  assert len(np.unique(codes)) > 20
  edge = pictures.copy()
  edge[:, 36:], edge[:, :, 36:] = 0, 0  # beyond the last whole patch
  np.testing.assert_array_equal(model.encode_images(edge), codes)
  assert model.decode_codes(codes).shape == (4, 40, 40, 3)
  drawn = model.generate_images(["two foxes on a blue background"], temperature=0.0)
  assert drawn.shape == (1, 40, 40, 3)
  talk = [[vilau_jax.Image(pictures[0]), "How many foxes?"]]
  first, second = (model.generate_text(talk, max_new_tokens=8) for _ in range(2))
  assert first == second and len(first) == 1


def test_a_release_loads_without_an_import(release, model):
  direct = vilau_jax.load(release)
  tokens = np.arange(3, 40, dtype=np.int32)[None]
  np.testing.assert_array_equal(direct.text_logits(tokens), model.text_logits(tokens))
  assert direct.tokenizer.vocab_size == VOCABULARY
