"""Broken and hostile checkpoints: one screen that names file and tensor, exit code 2, no trace."""

import json
import pathlib
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vilau_jax.cli.main import run

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
LLM, TOWER = "llm/model.safetensors", "vision_tower/model.safetensors"
SCREEN = 40  # lines


@pytest.fixture
def release(tmp_path):
  """A private copy of golden checkpoint a."""
  return pathlib.Path(shutil.copytree(GOLDEN / "a" / "checkpoint", tmp_path / "source"))


def refused(capfd, format, source, *names):
  """Imports; checks code, length and names of the error, and that nothing is left behind."""
  before = sorted(p.name for p in source.parent.iterdir())
  output = source.parent / "model"
  code = run(["convert", "import", format, f"--source={source}", f"--output={output}"])
  said = capfd.readouterr().err
  errors = said[said.index("vilau: error:") :]
  assert code == 2, said
  for name in names:
    assert name in errors, said
  assert "Traceback" not in said and len(said.splitlines()) <= SCREEN, said
  assert sorted(p.name for p in source.parent.iterdir()) == before
  return errors


def edit(file, **changes):
  """Puts tensors into a safetensors file; None takes one out."""
  tensors = load_file(file)
  for name, value in changes.items():
    if value is None:
      del tensors[name]
    else:
      tensors[name] = value
  save_file(tensors, file)
  return tensors


def edit_json(file, **changes):
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("keep", [0, 5, 300, 100_000, -1])
def test_truncated_file(release, capfd, keep):
  file = release / TOWER
  file.write_bytes(file.read_bytes()[:keep])
  refused(capfd, "vila-u", release, str(file), "truncated or corrupt")


@pytest.mark.parametrize("at", [0, 7, 30])
def test_corrupt_header(release, capfd, at):
  file = release / LLM
  content = bytearray(file.read_bytes())
  content[at : at + 2] = b"\xff\xff"
  file.write_bytes(content)
  refused(capfd, "vila-u", release, str(file), "truncated or corrupt")


def sharded(release):
  """The language model in two shards; returns the index."""
  file = release / LLM
  tensors = load_file(file)
  file.unlink()
  names, where = sorted(tensors), {}
  for i in range(2):
    name = f"model-0000{i + 1}-of-00002.safetensors"
    save_file({n: tensors[n] for n in names[i::2]}, release / "llm" / name)
    where |= dict.fromkeys(names[i::2], name)
  index = release / "llm" / "model.safetensors.index.json"
  index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": where}))
  return index, where


def test_shard_that_is_not_there(release, capfd):
  index, _ = sharded(release)
  (release / "llm" / "model-00002-of-00002.safetensors").unlink()
  refused(capfd, "vila-u", release, str(index), "model-00002-of-00002.safetensors")


def test_shard_missing_from_the_index(release, capfd):
  index, where = sharded(release)
  first = {k: v for k, v in where.items() if "00001" in v}
  edit_json(index, weight_map=first)
  refused(capfd, "vila-u", release, "lm_head.weight" if "lm_head.weight" not in first else
          sorted(where.keys() - first.keys())[0], "missing")  # fmt: skip


def test_tensor_that_the_index_places_elsewhere(release, capfd):
  index, where = sharded(release)
  name = next(k for k, v in where.items() if "00001" in v)
  edit_json(index, weight_map=where | {name: "model-00002-of-00002.safetensors"})
  refused(capfd, "vila-u", release, str(index), name, "model-00002-of-00002.safetensors")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/../../x.safetensors",
                                  "..\\x.safetensors"])  # fmt: skip
def test_shard_name_that_leads_out_of_the_folder(release, capfd, name):
  index, where = sharded(release)
  save_file({"model.norm.weight": np.ones(96, np.float32)}, release / "secret.safetensors")
  edit_json(index, weight_map=where | {"model.norm.weight": name})
  refused(capfd, "vila-u", release, str(index), repr(name), "leads out")


def test_pretrained_model_that_leads_out_of_the_folder(release, capfd):
  shutil.move(release / "siglip_config", release.parent / "siglip_config")
  file = release / "vision_tower" / "config.json"
  values = json.loads(file.read_text())
  values["rqvaesiglip"]["pretrained_model"] = "../siglip_config"
  file.write_text(json.dumps(values))
  refused(capfd, "vila-u", release, str(file), "'../siglip_config'")


@pytest.mark.parametrize("dtype", [np.int32, np.float64, np.float16, np.uint8])
def test_wrong_dtype(release, capfd, dtype):
  name = "model.layers.1.mlp.up_proj.weight"
  value = load_file(release / LLM)[name]
  edit(release / LLM, **{name: value.astype(dtype)})
  refused(capfd, "vila-u", release, name, np.dtype(dtype).name.replace("int32", "I32").replace(
    "float64", "F64").replace("uint8", "U8"))  # fmt: skip


def test_unknown_missing_and_misshapen_tensors_are_listed_together(release, capfd):
  value = load_file(release / TOWER)["rqtransformer.in_mlp_1.weight"]
  edit(
    release / TOWER,
    **{
      "rqtransformer.in_mlp_1.weight": None,
      "rqtransformer.in_mlp1.weight": value,
      "rqvaesiglip.post_quant_conv.bias": np.zeros(47, np.float32),
      "surprise": value,
    },
  )
  said = refused(capfd, "vila-u", release, str(release), "surprise", "47", "48",
                 "rqvaesiglip.post_quant_conv.bias", "4 problems")  # fmt: skip
  assert "in_mlp_1.weight" in said and "nearest" in said


@pytest.mark.parametrize(
  ("file", "field", "value", "said"),
  [
    ("llm/config.json", "num_hidden_layers", 4, "model.layers.3."),
    ("llm/config.json", "num_hidden_layers", 2, "model.layers.2."),
    ("llm/config.json", "intermediate_size", 191, "mlp.down_proj.weight"),
    ("llm/config.json", "num_key_value_heads", 2, "k_proj.weight"),
    ("llm/config.json", "vocab_size", 520, "520"),
    ("llm/config.json", "hidden_size", 192, "192"),
    ("llm/config.json", "hidden_act", "gelu", "hidden_act"),
    ("llm/config.json", "attention_bias", True, "attention_bias"),
    ("llm/config.json", "sliding_window", 8, "sliding_window"),
    ("mm_projector/config.json", "mm_projector_type", "mlp3x_gelu", "layers.4"),
    ("mm_projector/config.json", "mm_projector_type", "resampler", "mm_projector_type"),
    ("config.json", "mm_vision_select_layer", -1, "mm_vision_select_layer"),
    ("config.json", "image_aspect_ratio", "pad", "image_aspect_ratio"),
    ("config.json", "model_type", "llava", "model_type"),
    ("vision_tower/preprocessor_config.json", "image_mean", [0.4, 0.5, 0.5], "image_mean"),
    ("vision_tower/preprocessor_config.json", "resample", 2, "resample"),
  ],
)
def test_config_that_contradicts_the_tensors_or_is_not_honoured(
  release, capfd, file, field, value, said
):
  edit_json(release / file, **{field: value})
  outer = json.loads((release / "config.json").read_text())
  for part, key in (("llm", "llm_cfg"), ("mm_projector", "mm_projector_cfg")):
    if file.startswith(part):  # both places say the same, so only the tensors contradict
      outer[key][field] = value
  (release / "config.json").write_text(json.dumps(outer))
  refused(capfd, "vila-u", release, str(release), said)


def tower_case(path, value, said):
  return pytest.param(path, value, said, id=".".join(path))


@pytest.mark.parametrize(
  ("path", "value", "said"),
  [
    tower_case(("rqvaesiglip", "n_embed"), 63, "63"),
    tower_case(("rqvaesiglip", "shared_codebook"), True, "codebooks"),
    tower_case(("rqvaesiglip", "code_shape"), [4, 4, 5], "5"),
    tower_case(("rqvaesiglip", "code_shape"), [4, 2, 4], "code_shape"),
    tower_case(("rqvaesiglip", "decoder_latent_shape"), [6, 6], "latent"),
    tower_case(("rqvaesiglip", "decoder_latent_shape"), [None, None], "must be a square"),
    tower_case(("rqvaesiglip", "ddconfig", "ch_mult"), [1, 2, 2, 1], "decoder"),
    tower_case(("rqvaesiglip", "ddconfig", "double_z"), True, "double_z"),
    tower_case(("rqvaesiglip", "ddconfig", "attn_resolutions"), [8], "attn"),
    tower_case(("rqvaesiglip", "pretrained_model"), "google/siglip-huge", "google/siglip-huge"),
    tower_case(("rqtransformer", "head", "n_layer"), 3, "blocks.2"),
    tower_case(("rqtransformer", "embed_dim"), 60, "in_mlp_1"),
    tower_case(("rqtransformer", "vocab_size"), 65, "vocab_size"),
    tower_case(("hidden_size",), 72, "hidden_size"),
  ],
)
def test_tower_config_that_contradicts(release, capfd, path, value, said):
  outer = json.loads((release / "config.json").read_text())
  inner = json.loads((release / "vision_tower" / "config.json").read_text())
  for tree in (inner, outer["vision_tower_cfg"]):
    for key in path[:-1]:
      tree = tree[key]
    tree[path[-1]] = value
  (release / "config.json").write_text(json.dumps(outer))
  (release / "vision_tower" / "config.json").write_text(json.dumps(inner))
  refused(capfd, "vila-u", release, str(release), said)


def test_outer_config_that_contradicts_an_inner_one(release, capfd):
  outer = json.loads((release / "config.json").read_text())
  outer["llm_cfg"]["rope_scaling"] = {"type": "linear", "factor": 2.0}
  (release / "config.json").write_text(json.dumps(outer))
  refused(capfd, "vila-u", release, str(release / "config.json"), "llm_cfg")


def test_missing_and_broken_json(release, capfd):
  file = release / "mm_projector" / "config.json"
  file.write_text("{not json")
  refused(capfd, "vila-u", release, str(file), "not JSON")
  file.unlink()
  refused(capfd, "vila-u", release, str(file))


class Payload:
  """Unpickling it would create a file."""

  def __init__(self, marker):
    self.marker = str(marker)

  def __reduce__(self):
    return open, (self.marker, "w")


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["zip", "bare", "inside"])
def test_a_pickle_is_never_executed(release, capfd, tmp_path, kind):
  torch = pytest.importorskip("torch", reason="the extra [torch] is not installed")
  marker, folder = tmp_path / "executed", release / "llm"
  (release / LLM).unlink()
  file = folder / "pytorch_model.bin"
  payload = Payload(marker)
  if kind == "bare":
    file.write_bytes(pickle.dumps({"model.norm.weight": payload}))
  else:
    torch.save({"model.norm.weight": torch.ones(3), "x": payload} if kind == "inside" else payload,
               file)  # fmt: skip
  refused(capfd, "llama", folder, str(file), "not executed")
  assert not marker.exists()
  pickle.loads(pickle.dumps(payload)).close()  # what would have happened
  assert marker.exists()


@pytest.mark.parity
def test_torch_file_with_other_things_than_tensors(release, capfd):
  torch = pytest.importorskip("torch", reason="the extra [torch] is not installed")
  (release / LLM).unlink()
  file = release / "llm" / "pytorch_model.bin"
  torch.save({"model.norm.weight": [1.0, 2.0]}, file)
  refused(capfd, "llama", release / "llm", str(file), "model.norm.weight")
  torch.save({"a": torch.ones(2)}, file)
  content = file.read_bytes()
  file.write_bytes(content[: len(content) // 2])
  refused(capfd, "llama", release / "llm", str(file))


def test_npz_with_objects(tmp_path, capfd):
  file = tmp_path / "siglip.npz"
  np.savez(file, **{"params/t": np.array([Payload(tmp_path / "executed")], object)})
  refused(capfd, "siglip", file, str(file))
  assert not (tmp_path / "executed").exists()


LIMITED = """import resource, sys
from vilau_jax.cli.main import run
most = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
sys.exit(run(sys.argv[2:]))"""


@pytest.mark.parametrize(("action", "most"), [("import", 50_000), ("export", 400_000)])
def test_disk_full_half_way(release, tmp_path, action, most):
  """No file may grow beyond a part of what is needed, as when a disk is full."""
  arguments = ["import", "vila-u", f"--source={release}", f"--output={tmp_path / 'model'}"]
  if action == "export":
    assert run(["convert", *arguments]) == 0
    arguments = ["export", "vila-u", f"--model={tmp_path / 'model'}", f"--output={tmp_path}/out"]
  before = sorted(p.name for p in tmp_path.iterdir())
  done = subprocess.run(
    [sys.executable, "-c", LIMITED, str(most), "convert", *arguments],
    capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[2],
  )  # fmt: skip
  assert done.returncode == 2, done.stderr
  said = done.stderr[done.stderr.index("vilau: error:") :]
  assert "cannot be written" in said and "Traceback" not in done.stderr, done.stderr
  assert len(done.stderr.splitlines()) <= SCREEN
  assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_output_that_is_there_is_not_touched(release, tmp_path, capfd):
  (tmp_path / "model").mkdir()
  (tmp_path / "model" / "thesis.txt").write_text("mine")
  refused(capfd, "vila-u", release, str(tmp_path / "model"))
  assert (tmp_path / "model" / "thesis.txt").read_text() == "mine"
