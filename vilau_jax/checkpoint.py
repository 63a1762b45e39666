"""Everything that is written to and read from disk as weights. orbax is imported here and in
train/checkpoints.py alone.

A model directory holds config.json, params/ (all variables) and the tokenizers. A training workdir
holds config.json, checkpoints/STEP/{params,opt,collections,config,data}, which is what is trained,
and frozen/, which is written once. `load_model` reads both, and goes round a checkpoint that its
manifest shows to be damaged.
"""

import dataclasses
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from absl import logging
from etils import epath
from flax import traverse_util
from jax.experimental import multihost_utils

from vilau_jax import jsons, lora, manifest, paths
from vilau_jax.config import VilaUConfig
from vilau_jax.streaming import StoredArray, Streamed

FORMAT_VERSION = 1
TOKENIZER, TOWER_TOKENIZER = "tokenizer.model", "tower_tokenizer.model"
# Top-level entries of a training state that are not part of a model.
_TRAINING_ONLY = ("discriminator",)
_Path = epath.PathLike
Flat = dict[tuple[str, ...], Any]


@dataclasses.dataclass(frozen=True)
class LoadedModel:
  """What a model directory or workdir holds; `variables` are numpy arrays, not yet on a device, or
  StoredArray: still on the disk."""

  config: VilaUConfig
  variables: dict[str, Any]
  tokenizer_path: str | None
  tower_tokenizer_path: str | None
  path: str


def first_says(here: bool) -> bool:
  """What process 0 says; all processes must ask. What one finds on the disk another may have
  written meanwhile, and then they would go different ways, and wait for each other for ever."""
  if jax.process_count() == 1:
    return here
  return bool(multihost_utils.broadcast_one_to_all(np.array(here)))


def save_model(
  path: _Path,
  config: VilaUConfig,
  variables: Mapping[str, Any],
  tokenizer: _Path | None = None,
  tower_tokenizer: _Path | None = None,
) -> None:
  """Writes a model directory; config.json comes last, so a directory that has it is complete.

  Leaves of `variables` are arrays, or all of them are Streamed.

  Raises:
    FileExistsError: if `path` already holds a model or a workdir.
  """
  path = epath.Path(path)
  if (path / "config.json").exists():
    raise FileExistsError(f"{path} already holds a model; choose another directory or remove it")
  path.mkdir(parents=True, exist_ok=True)
  _write_tree(path / "params", dict(variables))
  copy_tokenizers(path, tokenizer, tower_tokenizer)
  write_json(path / "config.json", {"format_version": FORMAT_VERSION, "model": config.to_dict()})


def load_model(path: _Path, *, on_disk: Sequence[str] = ()) -> LoadedModel:
  """Reads a model directory, or a training workdir at its newest checkpoint.

  Where training kept an average of the weights, the average is what is loaded; adapters are merged.
  The parameters of the components in `on_disk` are not read yet: they are StoredArray, unless
  there are adapters to merge.

  Raises:
    FileNotFoundError: if there is no model at `path`.
    ValueError: if it was written by a newer format.
  """
  path = epath.Path(path)
  stored = read_config(path)
  found = {name: (path / name) for name in (TOKENIZER, TOWER_TOKENIZER)}
  # Absolute: they are read later too, wherever the process is then.
  tokenizers = [str(paths.absolute(file)) if file.exists() else None for file in found.values()]
  index = _index(path)
  adapters = stored.get("experiment", {}).get("lora", {})
  if adapters and not adapters["rank"]:
    adapters = {}
  later = {k: e for k, e in index.items() if k[0] == "params" and k[1] in on_disk and not adapters}
  read = _read({k: entry for k, entry in index.items() if k not in later})
  variables = traverse_util.unflatten_dict(read | _open(later))
  if adapters:
    variables["params"] = lora.merged(variables["params"], adapters)
  config = model_config(path)
  return LoadedModel(config, variables, *tokenizers, str(path))


def load_variables(path: _Path, abstract: Mapping[str, Any]) -> dict[str, Any]:
  """Reads the part of a model that `abstract` names, placed as its shardings say.

  Args:
    path: model directory or workdir.
    abstract: tree of jax.ShapeDtypeStruct, a subset of the model's variables.

  Raises:
    ValueError: listing what `path` lacks or holds in another shape.
  """
  want = traverse_util.flatten_dict(dict(abstract))
  index = _plain_index(path)
  wrong = []
  for key, leaf in want.items():
    if key not in index:
      wrong.append(f"{'/'.join(key)}: missing")
    elif tuple(index[key][2].shape) != tuple(leaf.shape):
      wrong.append(f"{'/'.join(key)}: {tuple(index[key][2].shape)} there, {leaf.shape} wanted")
  if wrong:
    more = f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else ""
    raise ValueError(f"{path} does not fit this model:\n  " + "\n  ".join(wrong[:20]) + more)
  return traverse_util.unflatten_dict(_read({k: index[k] for k in want}, want))


def components(path: _Path) -> set[str]:
  """Components of the model stored at `path`: "tower", "llm", "projector", "depth", ..."""
  return {key[1] for key in _index(epath.Path(path)) if key[0] == "params"}


def read_config(path: _Path) -> dict[str, Any]:
  """config.json of a model directory or a workdir, format version checked."""
  file = epath.Path(path) / "config.json"
  if not file.exists():
    raise FileNotFoundError(f"{path} is neither a model directory nor a workdir: no config.json")
  try:
    stored = jsons.parse_object(file.read_bytes())
  except ValueError as error:
    raise ValueError(f"{file} is damaged: {error}") from error
  version = stored.get("format_version")
  if version != FORMAT_VERSION:
    raise ValueError(f"{file}: format_version {version!r:.80}, this release reads {FORMAT_VERSION}")
  return stored


def model_config(path: _Path) -> VilaUConfig:
  """The architecture that config.json of a model directory or a workdir describes.

  Raises:
    ValueError: if it describes none.
  """
  described = read_config(path).get("model")
  if not isinstance(described, dict):
    raise ValueError(f"{epath.Path(path) / 'config.json'} describes no model")
  return VilaUConfig.from_dict(described)


def write_json(path: _Path, value: Any) -> None:
  """Writes JSON under a temporary name first, so that readers never see half a file."""
  if jax.process_index():
    return
  path = epath.Path(path)
  partial = path.parent / f"{path.name}.partial"
  partial.write_text(json.dumps(value, indent=2) + "\n")
  partial.replace(path)


def copy_tokenizers(path: _Path, tokenizer: _Path | None, tower_tokenizer: _Path | None) -> None:
  """Puts the tokenizer files that exist into a model directory or workdir."""
  if jax.process_index():
    return
  for source, name in ((tokenizer, TOKENIZER), (tower_tokenizer, TOWER_TOKENIZER)):
    if source and epath.Path(source) != epath.Path(path) / name:
      partial = epath.Path(path) / f"{name}.partial"
      partial.write_bytes(epath.Path(source).read_bytes())
      partial.replace(epath.Path(path) / name)


def tower_id(variables: Mapping[str, Any]) -> str:
  """16 hex digits that name the function image -> codes of a model.

  It covers the weights up to the quantiser and the codebook; records carry it beside their codes,
  and training refuses codes of another tower.

  Raises:
    ValueError: if there is no tower.
  """
  tower = variables["params"].get("tower")
  if tower is None:
    raise ValueError("this model has no tower, so it cannot make codes")
  vision = tower.get("vision", {})
  decisive = {k: vision[k] for k in ("embed", "layers") if k in vision}
  decisive |= {k: tower[k] for k in ("encoder", "quant") if k in tower}
  decisive["codebook"] = variables["quantizer"]["codebook"]
  digest = hashlib.sha256()
  for key, leaf in sorted(traverse_util.flatten_dict(decisive).items()):
    whole = getattr(leaf, "is_fully_addressable", True)
    value = np.asarray(leaf if whole else multihost_utils.process_allgather(leaf, tiled=True))
    digest.update(f"{'/'.join(key)} {value.dtype} {value.shape}\n".encode())
    digest.update(np.ascontiguousarray(value).tobytes())
  return digest.hexdigest()[:16]


def save_frozen(workdir: _Path, variables: Mapping[str, Any], identity: str | None) -> None:
  """Writes what stands outside the trained state once; a complete copy is left alone."""
  frozen = epath.Path(workdir) / "frozen"
  if first_says((frozen / "hash.json").exists()):
    return
  _write_tree(frozen / "variables", dict(variables))
  if jax.process_index() == 0:
    manifest.write(frozen / "variables")
  write_json(frozen / "hash.json", {"tower_id": identity})


def frozen_tower_id(workdir: _Path) -> str | None:
  """The tower_id that save_frozen wrote."""
  return json.loads((epath.Path(workdir) / "frozen" / "hash.json").read_text())["tower_id"]


def load_frozen(workdir: _Path, abstract: Mapping[str, Any]) -> dict[str, Any]:
  """Reads the part of frozen/ that `abstract` names, placed as its shardings say.

  Raises:
    ValueError: if a file there is not what was written.
  """
  want = traverse_util.flatten_dict(dict(abstract))
  where = paths.absolute(workdir) / "frozen" / "variables"
  if (where / manifest.NAME).exists():
    part = jax.process_index(), jax.process_count()
    if wrong := manifest.problems(where, part=part):
      raise ValueError(
        "the run's frozen part is damaged:\n  " + "\n  ".join(wrong[:3])
        + f"\nbring back a copy of {where.parent}, or begin again in another workdir"
      )  # fmt: skip
  stored = _metadata(where) if want else {}
  return traverse_util.unflatten_dict(_read({k: (where, k, stored[k]) for k in want}, want))


def load_frozen_tower(workdir: _Path) -> dict[str, Any]:
  """The tower in frozen/: {"params": {"tower"}, "quantizer"} as numpy."""
  where = paths.absolute(workdir) / "frozen" / "variables"
  wanted = {k: (where, k, leaf) for k, leaf in _metadata(where).items()
            if k[0] == "quantizer" or k[:2] == ("params", "tower")}  # fmt: skip
  return traverse_util.unflatten_dict(_read(wanted))


def open_arrays(path: _Path) -> dict[tuple[str, ...], StoredArray]:
  """The variables of a model directory or workdir, without reading them."""
  return _open(_plain_index(path))


def _open(index: Mapping[tuple[str, ...], Any]) -> dict[tuple[str, ...], StoredArray]:
  arrays = {}
  for key, (directory, inside, leaf) in index.items():
    local = {"driver": "file", "path": f"{directory}/"}
    base = f"{directory}/" if paths.is_remote(directory) else local
    store = {"driver": "ocdbt", "base": base, "path": f"{'.'.join(inside)}/"}
    opened = tensorstore.open({"driver": "zarr", "kvstore": store}, read=True).result()
    arrays[key] = StoredArray(tuple(leaf.shape), np.dtype(leaf.dtype), opened)
  return arrays


def _write_tree(directory: epath.Path, tree: dict[str, Any]) -> None:
  if not any(isinstance(leaf, Streamed) for leaf in jax.tree.leaves(tree)):
    with ocp.StandardCheckpointer() as writer:  # force: replaces an interrupted attempt
      writer.save(paths.absolute(directory), tree, force=True)
    return
  streamed = _StreamedHandler()
  handlers = ocp.type_handlers.create_type_handler_registry(
    (Streamed, streamed), (jax.Array, ocp.type_handlers.ArrayHandler())
  )
  handler = ocp.PyTreeCheckpointHandler(type_handler_registry=handlers)
  try:
    with ocp.Checkpointer(handler) as writer:
      writer.save(paths.absolute(directory), args=ocp.args.PyTreeSave(tree), force=True)
  finally:
    streamed.stop()


class _StreamedHandler(ocp.type_handlers.NumpyHandler):
  """Writes Streamed leaves so that they are read as arrays: one leaf, and one part of it, at a
  time; the parts are the chunks on disk. It blocks instead of waiting, which keeps the leaves in
  order. orbax would print a failure's traceback, so it is kept for `stop` to raise."""

  def __init__(self):
    super().__init__(deepcopy_host_arrays=False)
    self._error: BaseException | None = None
    self._stopped, self._writing = False, threading.Lock()

  def stop(self) -> None:
    """Waits for the part under way, writes no more, and raises what went wrong."""
    self._stopped = True
    with self._writing:
      if self._error is not None:
        raise self._error

  async def _open_and_write(self, value: Streamed, tspec: dict[str, Any], ts_context: Any) -> None:
    with self._writing:
      try:
        if self._error is None:
          self._write(value, tspec, ts_context)
      except BaseException as error:  # Ctrl-C too, which orbax's event loops do not always pass on
        self._error = error

  def _write(self, value: Streamed, tspec: dict[str, Any], ts_context: Any) -> None:
    store = None
    for index, part in value.parts():
      if self._stopped:
        return
      try:
        if store is None:
          chunks = [1, *value.shape[1:]] if index is not None else list(value.shape)
          tspec.get("base", tspec)["metadata"]["chunks"] = chunks
          spec = tensorstore.Spec(tspec)
          store = tensorstore.open(spec, create=True, open=True, context=ts_context).result()
        (store if index is None else store[index]).write(part).result()
      except ValueError as error:  # tensorstore's for a full disk, no permission, ...
        raise OSError(str(error)[-300:]) from error


def _plain_index(path: _Path) -> dict[tuple[str, ...], Any]:
  """As _index; refuses adapters, which a reader of single arrays would leave out."""
  index = _index(epath.Path(path))
  if any(lora.is_adapter(key) for key in index):
    raise ValueError(f"{path} is a run with adapters; first make a model of it: "
                     f"vilau convert merge --model={path} --output=DIR")  # fmt: skip
  return index


def _index(path: epath.Path) -> dict[tuple[str, ...], tuple[epath.Path, tuple[str, ...], Any]]:
  """Variable -> (orbax directory, key in it, metadata) over all that is stored at `path`."""
  path = paths.absolute(path)
  if (path / "params").exists():
    return {key: (path / "params", key, leaf) for key, leaf in _metadata(path / "params").items()}
  index = {}
  if (path / "frozen" / "hash.json").exists():
    where = path / "frozen" / "variables"
    index |= {key: (where, key, leaf) for key, leaf in _metadata(where).items()}
  step = _newest_good(path)
  for key, leaf in _metadata(step / "params").items():
    if key[0] not in _TRAINING_ONLY:
      index["params", *key] = (step / "params", key, leaf)
  if (step / "collections").exists():
    for key, leaf in _metadata(step / "collections").items():
      if key[0] == "ema" and key[1] not in _TRAINING_ONLY:
        index["params", *key[1:]] = (step / "collections", key, leaf)
      elif key[0] not in ("ema", *_TRAINING_ONLY):
        index[key] = (step / "collections", key, leaf)
  return index


def _newest_good(path: epath.Path) -> epath.Path:
  """The newest checkpoint whose weights are as they were written; the run itself moves others away
  when it goes on. One without a manifest is taken as it is."""
  root, said = path / "checkpoints", []
  steps = ocp.utils.checkpoint_steps(root) if root.exists() else []
  for step in sorted(steps, reverse=True):
    wrong = []
    if (root / str(step) / manifest.NAME).exists():
      wrong = manifest.problems(root / str(step), below=("params/", "collections/"), step=step)
    if not wrong:
      return root / str(step)
    said.append(f"checkpoint {step} of {path} is damaged: {'; '.join(wrong[:3])}")
    logging.error("%s", said[-1])
  if said:
    raise ValueError("\n".join(said))
  raise FileNotFoundError(f"{path} holds no weights: neither params/ nor a finished checkpoint")


def _metadata(directory: epath.Path) -> Flat:
  return traverse_util.flatten_dict(ocp.PyTreeCheckpointHandler().metadata(directory).tree)


def _read(index: Mapping[tuple[str, ...], Any], placed: Flat | None = None) -> Flat:
  """Reads the indexed leaves; as numpy, or as the ShapeDtypeStructs of `placed` say."""
  flat = {}
  for directory in dict.fromkeys(entry[0] for entry in index.values()):
    here = {key: entry for key, entry in index.items() if entry[0] == directory}
    item = {
      entry[1]: placed[key] if placed else jax.ShapeDtypeStruct(entry[2].shape, entry[2].dtype)
      for key, entry in here.items()
    }
    item = traverse_util.unflatten_dict(item)
    if placed:
      arguments = ocp.checkpoint_utils.construct_restore_args(item)
    else:
      arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      restore = ocp.args.PyTreeRestore(item=item, restore_args=arguments, partial_restore=True)
      restored = traverse_util.flatten_dict(reader.restore(directory, args=restore))
    flat |= {key: restored[entry[1]] for key, entry in here.items()}
  return flat
