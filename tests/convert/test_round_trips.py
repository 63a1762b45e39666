"""In and out again: every bit of every tensor comes back, in every family."""

import dataclasses
import json
import shutil

import golden_lm
import jax
import ml_dtypes
import numpy as np
import pytest
import yaml
from flax import traverse_util
from safetensors.numpy import load_file, save_file

from vilau_jax import api, checkpoint, convert
from vilau_jax.config import LlamaConfig, TextConfig, VilaUConfig, VisionConfig
from vilau_jax.convert import formats, siglip

TOWER = "params/tower"


def tensors(folder) -> dict[str, np.ndarray]:
  """All safetensors below a folder."""
  found = {}
  for file in sorted(folder.rglob("*.safetensors")):
    found |= {f"{file.parent.name}/{name}": value for name, value in load_file(file).items()}
  return found


def same_bits(got: dict, want: dict) -> None:
  got, want = (traverse_util.flatten_dict(tree, sep="/") for tree in (got, want))
  assert got.keys() == want.keys()
  for name, value in want.items():
    assert got[name].dtype == value.dtype and got[name].shape == value.shape, name
    assert np.asarray(got[name]).tobytes() == np.asarray(value).tobytes(), name


def random_model(path, name: str, config: VilaUConfig, dtype="bfloat16") -> dict:
  """Writes a model directory with random values for one family; returns the variables."""
  random, dtype = np.random.default_rng(0), np.dtype(getattr(ml_dtypes, dtype, dtype))
  flat = {
    target: random.normal(size=shape).astype(dtype)
    for target, shape in formats.shapes_of(config, *formats.PARTS[name]).items()
  }
  llm = config.llm
  if llm is not None:  # rows that pad the vocabulary are zeros
    flat["params/llm/embed_tokens"][llm.vocab_size :] = 0
    if not llm.tied:
      flat["params/llm/lm_head"][:, llm.vocab_size :] = 0
  variables = traverse_util.unflatten_dict(flat, sep="/")
  checkpoint.save_model(path, config, variables)
  return variables


def test_the_golden_configs_are_read(release):
  read, want = convert.read_architecture("vila-u", release), golden_lm.config()
  llm = dataclasses.replace(want.llm, max_positions=512)
  want = dataclasses.replace(want, name=read.name, llm=llm, markers="release")
  assert read == want


def test_a_release_comes_back_as_it_was(release, imported, tmp_path):
  verified = convert.verify(imported, release)
  assert verified.total.tensors == 335 and verified.copies == 0
  report = convert.export_checkpoint("vila-u", imported, tmp_path / "out", shard_bytes=300_000)
  assert len(list((tmp_path / "out" / "llm").glob("model-*-of-*.safetensors"))) > 2
  got, want = tensors(tmp_path / "out"), tensors(release)
  copies = {f"vision_tower/rqvaesiglip.siglip_model.logit_{n}" for n in ("scale", "bias")}
  assert got.keys() == want.keys() | copies and report.copies == 2
  same_bits({k: got[k] for k in want}, want)
  again = convert.import_checkpoint("vila-u", tmp_path / "out", tmp_path / "again")
  assert again.copies == 2
  first, second = checkpoint.load_model(imported), checkpoint.load_model(tmp_path / "again")
  same_bits(second.variables, first.variables)
  assert dataclasses.replace(second.config, name=first.config.name) == first.config
  assert (tmp_path / "again" / "tokenizer.model").read_bytes() == (
    release / "llm" / "tokenizer.model"
  ).read_bytes()


def test_the_manifest_names_every_tensor(release, imported):
  manifest = json.loads((imported / "manifest.json").read_text())
  entries = {e["name"]: e for e in manifest["tensors"]}
  want = tensors(release)
  assert entries.keys() == want.keys()
  one = entries["llm/model.layers.1.mlp.up_proj.weight"]
  assert one["shape"] == [192, 96] and one["dtype"] == "float32" and len(one["sha256"]) == 64
  assert one["into"] == ["params/llm/layers/mlp/up_proj/kernel"] and one["layer"] == 1
  assert one["file"] == "llm/model.safetensors"


def test_verify_finds_one_changed_number(release, imported, tmp_path):
  changed = tmp_path / "changed"
  shutil.copytree(release, changed)
  file = changed / "llm" / "model.safetensors"
  values = load_file(file)
  values["model.layers.2.mlp.up_proj.weight"][3, 4] += 1
  save_file(values, file)
  with pytest.raises(ValueError) as error:
    convert.verify(imported, changed)
  assert "params/llm/layers/mlp/up_proj/kernel[2]: differs" in str(error.value)
  assert "llm/model.layers.2.mlp.up_proj.weight: SHA-256 differs" in str(error.value)


def test_a_release_opens_directly(release, imported):
  model = api.load(release)
  want = checkpoint.load_model(imported)
  assert model.config == want.config
  same_bits(convert.load_checkpoint("vila-u", release).variables, want.variables)
  assert model.encode_images(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 4, 4, 4)


GQA = LlamaConfig(
  vocab_size=37, vocab_multiple=8, width=24, hidden=40, depth=3, heads=6, kv_heads=2,
  rope_theta=5000.0, rope_scaling=4.0, max_positions=96, eps=3e-6,
)  # fmt: skip


@pytest.mark.parametrize("tied", [False, True])
def test_llama_round_trip_strips_padding(tmp_path, tied):
  llm = dataclasses.replace(GQA, tied=tied)
  config = VilaUConfig(name="out", tower=None, depth=None, llm=llm, dtype="bfloat16")
  variables = random_model(tmp_path / "model", "llama", config)
  convert.export_checkpoint("llama", tmp_path / "model", tmp_path / "out", shard_bytes=3000)
  written = {k.removeprefix("out/"): v for k, v in tensors(tmp_path / "out").items()}
  assert written["model.embed_tokens.weight"].shape == (37, 24)
  assert ("lm_head.weight" in written) != tied
  assert written["model.layers.2.self_attn.k_proj.weight"].shape == (8, 24)
  convert.import_checkpoint("llama", tmp_path / "out", tmp_path / "again")
  loaded = checkpoint.load_model(tmp_path / "again")
  assert loaded.config == dataclasses.replace(
    config, llm=dataclasses.replace(llm, vocab_multiple=1)
  )
  want = traverse_util.flatten_dict(variables, sep="/")
  want["params/llm/embed_tokens"] = want["params/llm/embed_tokens"][:37]
  if not tied:
    want["params/llm/lm_head"] = want["params/llm/lm_head"][:, :37]
  same_bits(loaded.variables, traverse_util.unflatten_dict(want, sep="/"))


def test_a_trained_model_is_written_as_releases_are(tmp_path):
  """Float32 in the workdir, bfloat16 in PyTorch's files."""
  config = VilaUConfig(name="out", tower=None, depth=None, llm=GQA, dtype="bfloat16")
  random_model(tmp_path / "model", "llama", config, dtype="float32")
  for name, more in (("wide", {}), ("half", dict(dtype="bfloat16"))):
    convert.export_checkpoint("llama", tmp_path / "model", tmp_path / name, **more)
  wide, half = (load_file(tmp_path / name / "model.safetensors") for name in ("wide", "half"))
  assert {v.dtype.name for v in wide.values()} == {"float32"}
  same_bits(half, {k: v.astype(ml_dtypes.bfloat16) for k, v in wide.items()})
  assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
  with pytest.raises(ValueError, match="dtype must be one of"):
    convert.export_checkpoint("llama", tmp_path / "model", tmp_path / "no", dtype="float16")


def siglip_config() -> VilaUConfig:
  vision = VisionConfig(
    image_size=28, patch_size=9, width=12, hidden=20, depth=4, heads=3, eps=1e-5
  )
  text = TextConfig(vocab_size=30, length=7, width=12, hidden=18, depth=2, heads=2, eps=2e-6)
  tower = siglip.tower_of(vision, text)
  return VilaUConfig(name="out", tower=tower, llm=None, depth=None, dtype="float16")


def test_siglip_round_trip(tmp_path):
  variables = random_model(tmp_path / "model", "siglip", siglip_config(), "float16")
  convert.export_checkpoint("siglip", tmp_path / "model", tmp_path / "out")
  convert.import_checkpoint("siglip", tmp_path / "out", tmp_path / "again")
  loaded = checkpoint.load_model(tmp_path / "again")
  assert loaded.config == siglip_config()
  same_bits(loaded.variables, variables)


@pytest.mark.parametrize("stacked", [False, True])
def test_big_vision_npz(tmp_path, stacked):
  config = siglip_config()
  variables = random_model(tmp_path / "model", "siglip", config, "float32")
  tower = traverse_util.flatten_dict(variables["params"]["tower"], sep="/")
  last = "vision/last_layer/"
  arrays = {"t": tower["logit_scale"], "b": tower["logit_bias"],
            "img/pos_embedding": tower["vision/embed/position"][None],
            "txt/pos_embedding": tower["text/position"][None],
            "txt/Embed_0/embedding": tower["text/token"]}  # fmt: skip
  modules = {
    "img/embedding": "vision/embed", "img/Transformer/encoder_norm": "vision/post_norm",
    "txt/Encoder_0/encoder_norm": "text/final_norm", "txt/head": "text/head",
    "img/MAPHead_0/LayerNorm_0": "vision/head/layer_norm",
    **{f"img/MAPHead_0/MlpBlock_0/Dense_{i}": f"vision/head/mlp/fc{i + 1}" for i in (0, 1)},
    **{f"img/MAPHead_0/MultiHeadDotProductAttention_0/{n}": f"vision/head/attention/{n}"
       for n in ("query", "key", "value", "out")},
  }  # fmt: skip
  for theirs, ours in modules.items():
    for leaf in ("kernel", "bias", "scale"):
      if f"{ours}/{leaf}" in tower:
        arrays[f"{theirs}/{leaf}"] = tower[f"{ours}/{leaf}"]
  arrays["img/MAPHead_0/probe"] = tower["vision/head/probe"]
  inner = {
    **{f"self_attn/{n}": f"MultiHeadDotProductAttention_0/{n}"
       for n in ("query", "key", "value", "out")},
    "layer_norm1": "LayerNorm_0", "layer_norm2": "LayerNorm_1",
    "mlp/fc1": "MlpBlock_0/Dense_0", "mlp/fc2": "MlpBlock_0/Dense_1",
  }  # fmt: skip
  for ours, theirs in (("vision", "img/Transformer"), ("text", "txt/Encoder_0")):
    for path, value in tower.items():
      if path.startswith(f"{ours}/layers/"):
        module, leaf = path.removeprefix(f"{ours}/layers/").rsplit("/", 1)
        if ours == "vision":
          value = np.concatenate([value, tower[f"{last}{module}/{leaf}"][None]])
        if stacked:
          arrays[f"{theirs}/encoderblock/{inner[module]}/{leaf}"] = value
        else:
          for i, one in enumerate(value):
            arrays[f"{theirs}/encoderblock_{i}/{inner[module]}/{leaf}"] = one
  file = tmp_path / "webli_en_tiny_28_1.npz"
  np.savez(file, **{f"params/{k}": v for k, v in arrays.items()}, **{"opt/count": np.zeros(1)})
  report = convert.import_checkpoint("siglip", file, tmp_path / "again")
  loaded = checkpoint.load_model(tmp_path / "again")
  assert loaded.config.tower.vision.grid == config.tower.vision.grid  # 27 pixels: no name says 28
  assert loaded.config.tower.text == dataclasses.replace(config.tower.text, eps=1e-6)
  assert list(report.ignored) == ["opt/count"]
  same_bits(loaded.variables, variables)


@pytest.mark.parity
def test_rqvae_round_trip_in_torch_files(tmp_path):
  torch = pytest.importorskip("torch")
  golden = golden_lm.A.parent / "rqvae"
  convert.import_checkpoint("rqvae", golden / "rqvae.safetensors", tmp_path / "model")
  convert.export_checkpoint("rqvae", tmp_path / "model", tmp_path / "out")
  file = tmp_path / "out" / "model.pt"
  stored = torch.load(file, weights_only=True)
  state = stored["state_dict"]
  books = [state[f"quantizer.codebooks.{d}.weight"] for d in range(3)]
  assert len({b.data_ptr() for b in books}) == 1 and not books[0][-1].any()
  torch.save(stored | {"epoch": 3, "optimizer": {"lr": 0.1}}, file)
  report = convert.import_checkpoint("rqvae", tmp_path / "out", tmp_path / "again")
  assert report.copies == 6 and set(report.ignored) == {"epoch", "optimizer"}
  first, second = (checkpoint.load_model(tmp_path / n) for n in ("model", "again"))
  same_bits(second.variables, first.variables)
  assert second.config.tower == first.config.tower
  arch = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["arch"]
  assert arch == yaml.safe_load((golden / "config.yaml").read_text())["arch"]


@pytest.mark.parity
def test_sharded_torch_files_of_llama(tmp_path):
  torch = pytest.importorskip("torch")
  config = VilaUConfig(name="out", tower=None, depth=None, llm=GQA, dtype="bfloat16")
  variables = random_model(tmp_path / "model", "llama", config)
  convert.export_checkpoint("llama", tmp_path / "model", tmp_path / "out")
  values = load_file(tmp_path / "out" / "model.safetensors")
  (tmp_path / "out" / "model.safetensors").unlink()
  values["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(2, np.float32)
  names, weight_map = sorted(values), {}
  for i, part in enumerate((names[:9], names[9:])):
    file = f"pytorch_model-{i + 1:05d}-of-00002.bin"
    weight_map |= dict.fromkeys(part, file)
    torch.save({n: to_torch(torch, values[n]) for n in part}, tmp_path / "out" / file)
  index = tmp_path / "out" / "pytorch_model.bin.index.json"
  index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
  report = convert.import_checkpoint("llama", tmp_path / "out", tmp_path / "again")
  assert list(report.ignored) == ["model.layers.0.self_attn.rotary_emb.inv_freq"]
  got = checkpoint.load_model(tmp_path / "again").variables["params"]["llm"]["layers"]
  same_bits(got, variables["params"]["llm"]["layers"])


def to_torch(torch, value):
  if value.dtype == ml_dtypes.bfloat16:
    return torch.from_numpy(value.view(np.int16).copy()).view(torch.bfloat16)
  return torch.from_numpy(value)


def test_a_model_that_training_wrote_is_exported_too(tmp_path):
  """Arrays that are stored whole, from a device, as save_model writes them."""
  config = VilaUConfig(name="out", tower=None, depth=None, llm=GQA, dtype="float32")
  variables = random_model(tmp_path / "numpy", "llama", config, "float32")
  checkpoint.save_model(tmp_path / "jax", config, jax.tree.map(jax.numpy.asarray, variables))
  for name in ("numpy", "jax"):
    convert.export_checkpoint("llama", tmp_path / name, tmp_path / f"{name}_out")
  files = [tmp_path / f"{n}_out" / "model.safetensors" for n in ("numpy", "jax")]
  assert files[0].read_bytes() == files[1].read_bytes()
