"""The families behind their names: how each is opened, planned and refused.

"vila-u" and "llama" are folders, "siglip" is a folder or a big_vision .npz, "rqvae" is a folder
with config.yaml and a .pt file, or that file.
"""

import dataclasses
import json
import os
import pathlib

from vilau_jax.config import VilaUConfig
from vilau_jax.convert import big_vision, llama, rqvae, siglip, vilau
from vilau_jax.convert.plan import Plan, Row, make_plan, shapes_of
from vilau_jax.convert.sources import Tensors, join, open_tensors, read_json
from vilau_jax.convert.transforms import Shape
from vilau_jax.data.tokenizer import ADDED, Tokenizer

FORMATS = ("vila-u", "siglip", "llama", "rqvae")
# The variables that a family holds.
PARTS = {
  "vila-u": ("params", "quantizer"),
  "siglip": siglip.PARTS,
  "llama": (llama.AT,),
  "rqvae": rqvae.PARTS,
}
HUB = "hf://"
_CONFIGS = ("*.json", "*.yaml", "*.model")
_RQVAE_FILES = ("model.pt", "model.safetensors", "pytorch_model.bin")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """An opened checkpoint; nothing but headers and configs has been read."""

  config: VilaUConfig
  tensors: Tensors
  plan: Plan
  tokenizer: pathlib.Path | None
  tower_tokenizer: pathlib.Path | None


def need_format(name: str) -> None:
  """Raises a ValueError for an unknown format."""
  if name not in FORMATS:
    raise ValueError(f"unknown format {name!r}; known: {', '.join(FORMATS)}")


def locate(source: str | os.PathLike) -> pathlib.Path:
  """A path on this machine; "hf://owner/name" is downloaded (or found in the cache) first.

  Raises:
    ValueError: if there is nothing, or it cannot be downloaded.
  """
  if not str(source).startswith(HUB):
    path = pathlib.Path(source)
    if not path.exists():
      raise ValueError(f"no such checkpoint: {path}")
    return path
  name = str(source).removeprefix(HUB).strip("/")
  if name.count("/") != 1:
    raise ValueError(f"{source!r}: write hf://owner/name")
  try:
    import huggingface_hub
  except ModuleNotFoundError as error:
    raise ValueError(
      f"{source}: this needs huggingface_hub; pip install -e '.[hub]', or give a folder"
    ) from error
  try:
    patterns = [*_CONFIGS, "*.safetensors"]
    folder = pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    if not any(folder.rglob("*.safetensors")):
      patterns += ["*.bin", "*.pt", "*.npz"]
      folder = pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
  except Exception as error:  # requests', httpx's and the hub's own: all say that it did not work
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
    raise ValueError(
      f"{source} cannot be downloaded ({reason}). Is there a network, and do you have access? A "
      "folder that was downloaded elsewhere does as well: --source=FOLDER"
    ) from error
  return folder


def is_release(path: str | os.PathLike) -> bool:
  """Whether this is a VILA-U release and no model directory; "hf://" names are taken for one."""
  folder = pathlib.Path(path)
  return str(path).startswith(HUB) or any(map(vilau.is_release, (folder, folder / "model")))


def read_config(name: str, source: str | os.PathLike) -> VilaUConfig:
  """The architecture of a checkpoint, from its configs alone (a .npz has none: from its shapes).

  Raises:
    ValueError: naming file and key that are missing, contradictory or not honoured.
  """
  need_format(name)
  config = _read_config(name, locate(source))
  if str(source).startswith(HUB):  # the folder of a download is named by its hash
    config = dataclasses.replace(config, name=str(source).strip("/").rpartition("/")[2])
  return config


def _read_config(name: str, path: pathlib.Path) -> VilaUConfig:
  if name == "vila-u":
    return vilau.read_config(_release(path))
  if name == "llama":
    return llama.read_config(path)
  if name == "rqvae":
    return rqvae.read_config(path)
  if path.suffix == ".npz":
    return big_vision.read_config(path, open_tensors(path))
  return siglip.read_config(path)


def open_checkpoint(name: str, source: str | os.PathLike) -> Checkpoint:
  """Opens a checkpoint of a family; `plan.check` says whether it is complete.

  Raises:
    ValueError: for a config or a file that cannot be used.
  """
  config, path = read_config(name, source), locate(source)
  path = _release(path) if name == "vila-u" else path
  tensors = _tensors(name, config, path)
  try:
    shapes = shapes_of(config, *PARTS[name])
  except ValueError as error:
    raise ValueError(f"{path}: its config describes no model that works: {error}") from error
  npz = name == "siglip" and path.suffix == ".npz"
  rows = big_vision.rows(config.tower, tensors) if npz else _rows(name, config, shapes)
  ignored = {"vila-u": vilau, "siglip": siglip, "llama": llama}.get(name)
  plan = make_plan(shapes, rows, ignored.IGNORED if ignored else {})
  return Checkpoint(config, tensors, plan, *_tokenizers(name, config, path))


def export_plan(name: str, config: VilaUConfig) -> Plan:
  """What an export in this format writes.

  Raises:
    ValueError: if the format cannot carry the model; lists why.
  """
  need_format(name)
  needs = {"vila-u": ("tower", "llm", "depth"), "llama": ("llm",)}.get(name, ("tower",))
  missing = [part for part in needs if getattr(config, part) is None]
  if missing:
    raise ValueError(f"this model has no {' and no '.join(missing)}: no {name} checkpoint of it")
  wrong = _unsupported(name, config)
  if wrong:
    raise ValueError(
      f"a {name} checkpoint cannot carry this model, because it has no place for: "
      + "; ".join(wrong)
    )
  shapes = shapes_of(config, *PARTS[name])
  return make_plan(shapes, _rows(name, config, shapes), {})


def _unsupported(name: str, config: VilaUConfig) -> list[str]:
  if name == "vila-u":
    return vilau.unsupported(config)
  tower = config.tower
  if name == "siglip" and (tower.encoder != "siglip" or tower.text is None):
    return ["a tower without both SigLIP encoders"]
  if name == "siglip":
    return ["tower.vision.pool_positions"] if tower.vision.pool_positions else []
  if name == "rqvae":
    if tower.encoder != "rqvae":
      return ["a tower with a SigLIP encoder"]
    same = tower.cnn == tower.decoder and not tower.latent_grid
    return rqvae.unsupported(tower) + ([] if same else ["an encoder unlike the decoder"])
  return []


def _rows(name: str, config: VilaUConfig, shapes: dict[str, Shape]) -> list[Row]:
  if name == "vila-u":
    return vilau.rows(config, shapes)
  if name == "llama":
    return llama.rows(config.llm)
  return siglip.rows(config.tower) if name == "siglip" else rqvae.rows(config.tower, shapes)


def _release(path: pathlib.Path) -> pathlib.Path:
  """A release may lie in a subfolder "model"."""
  path = path / "model" if vilau.is_release(path / "model") else path
  if not vilau.is_release(path):
    raise ValueError(f"{path} is no VILA-U release: it needs config.json, llm/ and vision_tower/")
  return path


def _tensors(name: str, config: VilaUConfig, path: pathlib.Path) -> Tensors:
  if name == "vila-u":
    folders = [vilau.LLM, vilau.TOWER]
    folders += [vilau.PROJECTOR] if config.projector != "identity" else []
    return join(path, {f"{folder}/": open_tensors(path / folder) for folder in folders})
  if name == "rqvae" and path.is_dir():
    found = [path / n for n in _RQVAE_FILES if (path / n).is_file()]
    found = found or [f for f in sorted(path.iterdir()) if f.suffix in (".pt", ".safetensors")]
    if len(found) != 1 and not (path / _RQVAE_FILES[0]).is_file():
      names = ", ".join(f.name for f in found) or "nothing"
      raise ValueError(f"{path}: expected {_RQVAE_FILES[0]} or one other file of weights, found "
                       f"{names}")  # fmt: skip
    return open_tensors(found[0])
  return open_tensors(path)


def _tokenizers(
  name: str, config: VilaUConfig, path: pathlib.Path
) -> tuple[pathlib.Path | None, pathlib.Path | None]:
  """Files of the language model's and the tower's tokenizer, where the checkpoint has them."""
  if name == "siglip":
    file = path / "spiece.model"
    return None, file if path.is_dir() and file.is_file() else None
  folder = path / vilau.LLM if name == "vila-u" else path
  file = folder / "tokenizer.model"
  if name == "rqvae" or not file.is_file():
    return None, None
  if name == "vila-u":
    _check_added(folder, Tokenizer(file), config.llm.vocab_size)
  return file, None


def _check_added(folder: pathlib.Path, tokenizer: Tokenizer, vocabulary: int) -> None:
  """The four added tokens must be the last ids of the vocabulary, in order."""
  if tokenizer.vocab_size != vocabulary:
    raise ValueError(
      f"{folder}: tokenizer.model with the four added tokens has {tokenizer.vocab_size} ids, but "
      f"config.json says vocab_size {vocabulary}"
    )
  file = folder / "added_tokens.json"
  if file.is_file():
    wanted = dict(zip(ADDED, range(vocabulary - len(ADDED), vocabulary)))
    found = read_json(file)
    if found != wanted:
      raise ValueError(f"{file}: expected {json.dumps(wanted)}, found {json.dumps(found)}")
