"""The readers of what comes with models and from users: tokenizers, conversations, configs,
checkpoints of others, flags, and the page's fields."""

import functools
import json
import pathlib
import random
import sys

import numpy as np
from absl import flags
from ml_collections import config_flags

from tests.fuzz.run import Target
from vilau_jax import checkpoint, manifest
from vilau_jax.cli import main as command
from vilau_jax.cli import train as train_command
from vilau_jax.config import VilaUConfig
from vilau_jax.convert import formats, sources
from vilau_jax.data import conversation
from vilau_jax.data.tokenizer import Tokenizer, TowerTokenizer, train_tokenizer
from vilau_jax.demo import uploads
from vilau_jax.generate import contents, sampling

ROOT = pathlib.Path(__file__).parents[2]
RELEASE = ROOT / "tests/golden/a/checkpoint"
TOKENIZER = RELEASE / "llm/tokenizer.model"
TEXTS = (
  "Describe the picture.", "a fox \U0001f98a on\ta blue   background\n", "USER: <image>\nHi</s>",
  "<s><unk><im_start> <im_end>", "\u2581 \u2581", "\ufb01 \u00e9 \u0130 \U0001d518", "0123 1_000",
)  # fmt: skip


# Tokenizers and conversations


def _model_seeds(folder: pathlib.Path) -> list[bytes]:
  small = train_tokenizer(TEXTS, folder / "small.model", 400).read_bytes()
  return [small, TOKENIZER.read_bytes()]


def _read_model(data: bytes, folder: pathlib.Path) -> object:
  path = folder / "tokenizer.model"
  path.write_bytes(data)
  tower = TowerTokenizer(path, 8)
  words = Tokenizer(path)
  for text in TEXTS[:3]:
    words.decode(words.encode(text))
  return tower.encode_batch(TEXTS[:2])


@functools.cache
def _tokenizers() -> tuple[Tokenizer, TowerTokenizer]:
  return Tokenizer(TOKENIZER), TowerTokenizer(TOKENIZER, 16, "hf")


def _encoded(texts: tuple[str, ...]) -> list[bytes]:
  return [text.encode() for text in texts]


def _read_text(data: bytes, folder: pathlib.Path) -> object:
  """Any text can be written and read back; so can any ids in the vocabulary."""
  words, tower = _tokenizers()
  text = data.decode("utf-8", "replace")
  ids = words.encode(text, bos=True)
  assert all(0 <= i < words.vocab_size for i in ids)
  words.decode(ids)
  drawn = np.frombuffer(data[: len(data) // 2 * 2], np.uint16)
  assert isinstance(words.decode(drawn % words.vocab_size, special=True), str)
  assert tower.encode(text).shape == (16,)
  return words.decode([1, 2, *drawn[:2] // 100])  # ids out of range are refused


TALK = json.dumps(
  [{"role": "user", "content": ["<image>\nWhat is it?", "more"]},
   {"role": "assistant", "content": "A fox."}, {"role": "user", "content": "And <image> now?"}]
).encode()  # fmt: skip


def _read_talk(data: bytes, folder: pathlib.Path) -> object:
  """A conversation of the user's, and as records have it with placeholders."""
  try:
    given = json.loads(data.decode())
  except (ValueError, RecursionError):
    given = data.decode("utf-8", "replace")
  talks = contents.as_list([given])
  turns = contents.to_turns(talks, 0, 2, lambda pictures: pictures)
  visuals = [conversation.Visual("image", None, (1, 4)), conversation.Visual("video", None, (2, 4))]
  rng = random.Random(len(data))
  for talk in turns:
    said = []
    for turn in talk:
      parts, visuals = conversation.from_values("".join(turn.parts), visuals)
      said.append(conversation.Turn(turn.role, tuple(parts)))
    spans = conversation.render(
      said, markers=rng.choice(("always", "release")), training=rng.random() < 0.5
    )
    words, _ = _tokenizers()
    for span in spans:
      if isinstance(span.content, str):
        words.encode(span.content.encode("utf-8", "replace").decode())
  return turns


# Models of ours and of others


def _config_seeds(folder: pathlib.Path) -> list[bytes]:
  found = [VilaUConfig.from_preset(name) for name in ("tiny", "vilau_7b_256", "rqvae_256")]
  return [
    json.dumps({"format_version": checkpoint.FORMAT_VERSION, "model": c.to_dict()}).encode()
    for c in found
  ]


def _read_config(data: bytes, folder: pathlib.Path) -> object:
  (folder / "config.json").write_bytes(data)
  return checkpoint.model_config(folder)


CONFIGS = ("config.json", "llm/config.json", "vision_tower/config.json", "mm_projector/config.json",
           "vision_tower/preprocessor_config.json", "siglip_config/config.json",
           "llm/added_tokens.json")  # fmt: skip


def _release_seeds(folder: pathlib.Path) -> list[bytes]:
  """A release whose weights stay where they are."""
  for path in sorted(RELEASE.rglob("*")):
    if path.is_file():
      copy = folder / "release" / path.relative_to(RELEASE)
      copy.parent.mkdir(parents=True, exist_ok=True)
      copy.write_bytes(path.read_bytes())
  return [(RELEASE / name).read_bytes() for name in CONFIGS]


def _read_release(data: bytes, folder: pathlib.Path) -> object:
  """One config of a release is the input; which one follows from what it says."""
  names = [n for n in CONFIGS if (RELEASE / n).read_bytes()[:40] == data[:40]]
  name = names[0] if names else CONFIGS[len(data) % len(CONFIGS)]
  whole = (folder / "release" / name).read_bytes()
  (folder / "release" / name).write_bytes(data)
  try:
    return formats.read_config("vila-u", folder / "release")
  finally:
    (folder / "release" / name).write_bytes(whole)


def _family_seeds(folder: pathlib.Path) -> list[bytes]:
  return [(RELEASE / name / "config.json").read_bytes() for name in ("llm", "siglip_config")]


def _read_families(data: bytes, folder: pathlib.Path) -> object:
  (folder / "config.json").write_bytes(data)
  family = "llama" if b"num_key_value_heads" in data else "siglip"
  return formats.read_config(family, folder)


RQVAE = b"""dataset: {type: imagenet}
arch:
  type: rq-vae
  code_hier: 1
  hparams: &h
    bottleneck_type: rq
    embed_dim: 8
    n_embed: 16
    latent_shape: [4, 4, 8]
    code_shape: [4, 4, 3]
    shared_codebook: true
    decay: 0.99
    restart_unused_codes: true
    loss_type: mse
    latent_loss_weight: 0.25
  ddconfig:
    double_z: false
    z_channels: 8
    resolution: 16
    in_channels: 3
    out_ch: 3
    ch: 8
    ch_mult: [1, 1, 2]
    num_res_blocks: 1
    attn_resolutions: [4]
    dropout: 0.0
"""


def _read_rqvae(data: bytes, folder: pathlib.Path) -> object:
  (folder / "config.yaml").write_bytes(data)
  return formats.read_config("rqvae", folder)


def _tensors(rng: np.random.Generator) -> dict[str, np.ndarray]:
  return {"a.weight": rng.random((3, 4), np.float32), "b": np.arange(5), "c.x": np.float16([1, 2]),
          "params/d": np.zeros((2, 0, 3), np.int8)}  # fmt: skip


def _safetensors_seeds(folder: pathlib.Path) -> list[bytes]:
  from safetensors.numpy import save

  return [save(_tensors(np.random.default_rng(0))), save({"x": np.zeros(2)}, {"format": "np"})]


def _npz_seeds(folder: pathlib.Path) -> list[bytes]:
  found = []
  for write, number in ((np.savez, 0), (np.savez_compressed, 1)):
    write(folder / f"{number}.npz", **_tensors(np.random.default_rng(number)))
    found.append((folder / f"{number}.npz").read_bytes())
  return found


def _torch_seeds(folder: pathlib.Path) -> list[bytes]:
  import torch

  values = {k: torch.from_numpy(v) for k, v in _tensors(np.random.default_rng(0)).items()}
  found = []
  for number, (state, zipped) in enumerate(
    ((values, True), (values, False), ({"state_dict": values, "epoch": 3}, True))
  ):
    torch.save(state, folder / f"{number}.pt", _use_new_zipfile_serialization=zipped)
    found.append((folder / f"{number}.pt").read_bytes())
  return found


def _read_tensors(suffix: str, data: bytes, folder: pathlib.Path) -> object:
  path = folder / f"x{suffix}"
  path.write_bytes(data)
  tensors = sources.open_tensors(path)
  refused = None
  for name in tensors.infos:
    try:
      tensors.read(name)
    except ValueError as error:  # the others are read all the same
      refused = error
  if refused is not None:
    raise refused
  return tensors.ignored


def _index_seeds(folder: pathlib.Path) -> list[bytes]:
  from safetensors.numpy import save_file

  for name in ("one", "two"):
    save_file({name: np.zeros(2)}, folder / f"{name}.safetensors")
  return [json.dumps({"metadata": {"total_size": 32}, "weight_map": {
    "one": "one.safetensors", "two": "two.safetensors"}}).encode()]  # fmt: skip


def _read_tensor_index(data: bytes, folder: pathlib.Path) -> object:
  (folder / "model.safetensors.index.json").write_bytes(data)
  return sources.open_tensors(folder).infos


def _manifest_seeds(folder: pathlib.Path) -> list[bytes]:
  (folder / "sealed").mkdir()
  for name in ("a", "b"):
    (folder / "sealed" / name).write_text(name)
  manifest.write(folder / "sealed", step=3)
  return [(folder / "sealed" / manifest.NAME).read_bytes()]


def _read_manifest(data: bytes, folder: pathlib.Path) -> object:
  (folder / "sealed" / manifest.NAME).write_bytes(data)
  found = manifest.problems(folder / "sealed", step=3)
  assert all(isinstance(problem, str) and len(problem) < 5000 for problem in found)
  return found or True


# Command lines and the page


FLAGS = (
  "--fuzzed.steps=3", "--fuzzed.optim.peak_lr=1e-3", "--fuzzed.mesh.fsdp=8", "--fuzzed.lora.rank=4",
  "--fuzzed.data.mixture=()", "--fuzzed.model.preset=tiny", "--fuzzed.optim.freeze=('a',)",
  "--fuzzed.log.prompts=('a fox',)", "--fuzzed.guard.hang_after=1.5", "--fuzzed.code_scale=auto",
)  # fmt: skip


def _read_flags(data: bytes, folder: pathlib.Path) -> object:
  """Overrides as a shell hands them over, a line each; refused with exit code 2 by the command."""
  lines = data.decode("utf-8", "surrogateescape").replace("\0", "").split("\n")
  lines = [
    line
    for line in lines
    if not line.startswith(("--flagfile", "-flagfile", "--fuzzed=", "--fuzzed "))
  ]
  config = f"--fuzzed={ROOT}/configs/quickstart_lm.py"
  sys.argv = ["vilau train", config, *(line for line in lines if line)]  # ml_collections reads it
  values = flags.FlagValues()  # of the command, which has one configuration
  holder = config_flags.DEFINE_config_file("fuzzed", None, "experiment", flag_values=values)
  command._parse(sys.argv, values)
  return train_command.read_config(holder)


FIELDS = json.dumps(
  {"prompt": "a fox", "question": "What?", "count": 4, "seed": 0,
   "settings": {"cfg_scale": 3.0, "temperature": 1.0, "top_k": 900, "top_p": 0.96}}
).encode()  # fmt: skip


def _read_fields(data: bytes, folder: pathlib.Path) -> object:
  """What a client of the page may send where the page has a text, a number or a slider."""
  try:
    given = json.loads(data.decode())
  except (ValueError, RecursionError):
    given = data.decode("utf-8", "replace")
  if not isinstance(given, dict):
    return uploads.text(given, uploads.Limits())
  limits = uploads.Limits()
  uploads.text(given.get("prompt"), limits), uploads.text(given.get("question"), limits, "question")
  uploads.whole(given.get("count"), 1, limits.outputs, "number")
  uploads.whole(given.get("seed"), 0, uploads.LARGEST_SEED, "seed")
  return sampling.Sampling(**uploads.settings(given.get("settings")))


MODELS = (
  Target("tokenizer_model", _model_seeds, _read_model, megabytes=512),
  Target("tokenizer_text", lambda f: _encoded(TEXTS), _read_text),
  Target("conversation", lambda f: [TALK, *_encoded(TEXTS)], _read_talk),
  Target("conversation_tree", lambda f: [TALK], _read_talk, tree=True),
  Target("model_config", _config_seeds, _read_config, tree=True),
  Target("release_configs", _release_seeds, _read_release, tree=True),
  Target("family_configs", _family_seeds, _read_families, tree=True),
  Target("rqvae_yaml", lambda f: [RQVAE], _read_rqvae),
  Target("safetensors", _safetensors_seeds, functools.partial(_read_tensors, ".safetensors")),
  Target("npz", _npz_seeds, functools.partial(_read_tensors, ".npz")),
  Target("torch", _torch_seeds, functools.partial(_read_tensors, ".pt"), needs="torch"),
  Target("tensor_index", _index_seeds, _read_tensor_index, tree=True),
  Target("manifest", _manifest_seeds, _read_manifest, tree=True),
  Target("flags", lambda f: [*_encoded(FLAGS), "\n".join(FLAGS).encode()], _read_flags,
         also=(flags.Error,)),
  Target("page_fields", lambda f: [FIELDS, b"a fox"], _read_fields, tree=True),
)  # fmt: skip
