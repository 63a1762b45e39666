"""What is refused, with words that name file, key and tensor, and nothing left behind."""

import dataclasses
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vilau_jax import convert
from vilau_jax.cli import main
from vilau_jax.config import CnnConfig, VilaUConfig
from vilau_jax.convert import formats
from vilau_jax.convert.sources import open_tensors


@pytest.fixture
def copy(release, tmp_path):
  shutil.copytree(release, tmp_path / "copy")
  return tmp_path / "copy"


def edit(file, **changes):
  values = json.loads(file.read_text())
  for key, value in changes.items():
    *parents, last = key.split("__")
    node = values
    for parent in parents:
      node = node[parent]
    node[last] = value
  file.write_text(json.dumps(values))


@pytest.mark.parametrize(
  "file, key, value, said",
  [
    ("llm", "hidden_act", "gelu", "hidden_act is 'gelu'"),
    ("llm", "attention_bias", True, "attention_bias is True"),
    ("llm", "sliding_window", 512, "not honoured by this importer: sliding_window = 512"),
    ("llm", "rope_scaling", {"type": "dynamic", "factor": 2.0}, "rope_scaling.type is 'dynamic'"),
    ("llm", "num_key_value_heads", 3, "num_key_value_heads 3 does not divide 4"),
    ("llm", "vocab_size", "many", "vocab_size must be int, got 'many'"),
    ("vision_tower", "rqvaesiglip__ddconfig__double_z", True, "ddconfig.double_z is True"),
    ("vision_tower", "rqvaesiglip__code_shape", [4, 2, 4], "code_shape must be a square"),
    ("vision_tower", "rqvaesiglip__pretrained_model", "google/other", "is 'google/other'"),
    ("vision_tower", "rqvaesiglip__pretrained_model", "../siglip_config", "leads out of"),
    ("vision_tower", "rqtransformer__vocab_size", 65, "rqtransformer.vocab_size is 65"),
    ("vision_tower", "rqvaesiglip__ddconfig__ch_mult", [1, 1, 2], "config describes no model"),
    ("mm_projector", "mm_projector_type", "mlp_downsample", "mm_projector_type is 'mlp_down"),
    ("", "mm_use_vi_start_end", False, "mm_use_vi_start_end is False"),
    ("", "num_video_frames", 0, "num_video_frames must be positive"),
    ("", "llm_cfg__num_hidden_layers", 4, "llm_cfg describes another model than llm/config.json"),
  ],
)
def test_a_field_that_is_not_honoured(copy, file, key, value, said, tmp_path):
  if "../" in str(value):
    shutil.copytree(copy / "siglip_config", tmp_path / "siglip_config")
  edit(copy / file / "config.json", **{key: value})
  if file and key != "vocab_size":  # the copy in the outer file says the same
    edit(copy / "config.json", **{f"{file}_cfg__{key}": value})
  with pytest.raises(ValueError) as error:
    formats.open_checkpoint("vila-u", copy)
  assert said in str(error.value) and str(copy) in str(error.value)


def test_the_processor_must_match(copy):
  edit(copy / "vision_tower" / "preprocessor_config.json", image_mean=[0.4, 0.5, 0.5])
  with pytest.raises(ValueError, match=r"preprocessor_config.json: image_mean is \[0.4"):
    convert.read_architecture("vila-u", copy)


@pytest.mark.parametrize(
  "change, said",
  [
    (dict(visual_positions="next_cell"), "visual_positions 'next_cell'"),
    (dict(code_scale=0.5), "code_scale 0.5"),
    (dict(tower=dict(vision=dict(pool_positions=True))), "tower.vision.pool_positions"),
    (dict(tower=dict(decoder=dict(pixel_shuffle=2))), "decoder.pixel_shuffle 2"),
    (dict(tower=dict(quantizer=dict(update="once_per_step"))), "quantizer.update"),
    (dict(depth=dict(eps=1e-3)), "depth.eps 0.001"),
  ],
)
def test_what_a_release_has_no_place_for(change, said):
  config = VilaUConfig.from_preset("vilau_1b3_256").with_overrides(**change)
  with pytest.raises(ValueError, match="cannot carry this model") as error:
    formats.export_plan("vila-u", config)
  assert said in str(error.value)


def test_formats_refuse_other_models():
  with pytest.raises(ValueError, match="has no llm and no depth"):
    formats.export_plan("vila-u", VilaUConfig.from_preset("rqvae_256"))
  with pytest.raises(ValueError, match="a tower with a SigLIP encoder"):
    formats.export_plan("rqvae", VilaUConfig.from_preset("vilau_7b_256"))
  with pytest.raises(ValueError, match="without both SigLIP encoders"):
    formats.export_plan("siglip", VilaUConfig.from_preset("rqvae_256"))
  tower = VilaUConfig.from_preset("rqvae_256").tower
  odd = dataclasses.replace(tower, decoder=CnnConfig(blocks=1))
  with pytest.raises(ValueError, match="an encoder unlike the decoder"):
    formats.export_plan("rqvae", VilaUConfig(tower=odd, llm=None, depth=None))
  with pytest.raises(ValueError, match="unknown format 'clip'"):
    convert.import_checkpoint("clip", ".", "nowhere")


def test_copies_that_differ_leave_nothing(copy, tmp_path):
  file = copy / "vision_tower" / "model.safetensors"
  values = load_file(file)
  name = "rqvaesiglip.siglip_model.logit_scale"
  values[name] = values["rqvaesiglip.logit_scale"] + 1
  save_file(values, file)
  with pytest.raises(ValueError, match="must be copies of one tensor, but they differ") as error:
    convert.import_checkpoint("vila-u", copy, tmp_path / "out")
  assert name in str(error.value)
  assert os.listdir(tmp_path) == ["copy"]


def test_a_full_disk_leaves_nothing(release, tmp_path):
  """Files may not grow beyond 100 kB, which the kernel reports as it reports a full disk."""
  code = (
    "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
    "from vilau_jax.cli import main; sys.exit(main.run(sys.argv[1:]))"
  )
  argv = ["convert", "import", "vila-u", f"--source={release}", f"--output={tmp_path / 'out'}"]
  result = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
  assert result.returncode == 2, result.stderr
  assert "cannot be written" in result.stderr and "the tensor under way was" in result.stderr
  assert "Traceback" not in result.stderr and len(result.stderr.splitlines()) < 20
  assert os.listdir(tmp_path) == []


def test_an_interrupted_import_leaves_nothing_and_the_next_one_works(release, tmp_path):
  argv = [sys.executable, "-m", "vilau_jax.cli.main", "convert", "import", "vila-u",
          f"--source={release}", f"--output={tmp_path / 'out'}"]  # fmt: skip
  for _ in range(5):  # on a busy machine the import may be done before the signal is sent
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / ".out.partial").exists():
      os.sched_yield()
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    if process.returncode != 0:
      break
    shutil.rmtree(tmp_path / "out")
  assert process.returncode == 130, said
  assert "stopping in a moment" in said and "Traceback" not in said
  assert os.listdir(tmp_path) == []
  convert.import_checkpoint("vila-u", release, tmp_path / "out")


def test_an_output_that_is_not_empty_is_kept(release, tmp_path):
  (tmp_path / "mine.txt").write_text("mine")
  with pytest.raises(FileExistsError, match="is not empty"):
    convert.import_checkpoint("vila-u", release, tmp_path)
  assert os.listdir(tmp_path) == ["mine.txt"]


def shards(folder, weight_map, **files):
  for name, values in files.items():
    save_file({n: np.zeros(2, np.float32) for n in values}, folder / f"{name}.safetensors")
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": weight_map}))
  return folder


@pytest.mark.parametrize(
  "weight_map, said",
  [
    ({"a": "one.safetensors", "b": "../two.safetensors"}, "leads out of the checkpoint's folder"),
    ({"a": "/etc/passwd"}, "leads out of the checkpoint's folder"),
    ({"a": "one.safetensors", "b": "two.safetensors"}, "shards that are not there: two"),
    ({"a": "one.safetensors", "c": "one.safetensors"}, "c: the index places it in one"),
    ({"b": "one.safetensors"}, "a: in one.safetensors, but the index places it nowhere"),
  ],
)
def test_an_index_that_is_wrong(tmp_path, weight_map, said):
  with pytest.raises(ValueError) as error:
    open_tensors(shards(tmp_path, weight_map, one=["a", "b"]))
  assert said in str(error.value) and "index.json" in str(error.value)


@pytest.mark.parametrize("keep", [0, 5, 60, -4])
def test_a_truncated_file_is_named(tmp_path, keep):
  file = tmp_path / "model.safetensors"
  save_file({"a": np.arange(9, dtype=np.float32)}, file)
  file.write_bytes(file.read_bytes()[:keep])
  with pytest.raises(ValueError, match=r"model.safetensors: cannot be read"):
    open_tensors(tmp_path)


class Evil:
  def __reduce__(self):
    return os.mkdir, (os.environ["EVIL"],)


@pytest.mark.parity
def test_a_pickle_is_refused_and_not_executed(tmp_path, monkeypatch):
  torch = pytest.importorskip("torch")
  monkeypatch.setenv("EVIL", str(tmp_path / "executed"))
  (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": Evil()}))
  torch.save({"a": torch.zeros(2), "b": Evil()}, tmp_path / "zip.pt")
  for name in ("plain.pt", "zip.pt"):
    with pytest.raises(ValueError, match=f"{name}: torch cannot read it as pure tensors"):
      open_tensors(tmp_path / name)
  assert not (tmp_path / "executed").exists()
  torch.save({"a": torch.zeros(2), "n": "text"}, tmp_path / "mixed.pt")
  with pytest.raises(ValueError, match="not tensors: n"):
    open_tensors(tmp_path / "mixed.pt")


def test_the_command_line(imported, release, tmp_path, capsys):
  assert main.run(["convert", "verify", f"--model={imported}", f"--source={release}"]) == 0
  printed = capsys.readouterr().out
  assert "depth 41 114,880 459,520" in " ".join(printed.split()) and "verified" in printed
  assert main.run(["convert", "import", "lama", f"--source={release}", "--output=x"]) == 2
  assert "did you mean 'llama'?" in capsys.readouterr().err
  assert main.run(["convert", "exprot", "llama"]) == 2
  argv = ["convert", "export", "llama", f"--model={imported}", f"--output={tmp_path / 'out'}"]
  assert main.run(argv) == 0
  assert (tmp_path / "out" / "added_tokens.json").exists()
  assert main.run(["convert", "import", "llama", "--source=/nowhere", "--output=x"]) == 2
  assert "no such checkpoint: /nowhere" in capsys.readouterr().err


def test_a_hub_name_without_a_network_says_so(tmp_path):
  environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
  argv = ["convert", "import", "llama", "--source=hf://nobody/nothing", "--output=x"]
  result = subprocess.run([sys.executable, "-m", "vilau_jax.cli.main", *argv],
                          capture_output=True, text=True, env=environment)  # fmt: skip
  assert result.returncode == 2
  assert "hf://nobody/nothing" in result.stderr and "Traceback" not in result.stderr
