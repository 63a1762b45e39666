"""Model directory -> checkpoint of a PyTorch implementation, one tensor at a time.

A safetensors file says first where every tensor will lie, so tensors are written in our order, an
array of stacked layers at a time, each at its place.
"""

import json
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from vilau_jax import checkpoint
from vilau_jax.config import SYSTEM_PROMPT, VilaUConfig
from vilau_jax.convert import llama, rqvae, siglip, vilau
from vilau_jax.convert.formats import export_plan
from vilau_jax.convert.importer import Progress, replacing
from vilau_jax.convert.plan import Piece, Plan
from vilau_jax.convert.report import Report, summarise
from vilau_jax.convert.sources import DTYPES, shorten
from vilau_jax.convert.tokenizers import write_llama_tokenizer

WRITTEN = {"bfloat16": np.dtype(DTYPES["BF16"]), "float32": np.dtype(DTYPES["F32"])}
_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


def export_checkpoint(
  format: str,
  model: str | os.PathLike,
  output: str | os.PathLike,
  *,
  shard_bytes: int = 5 * 10**9,
  dtype: str | None = None,
  progress: Progress | None = None,
) -> Report:
  """Writes a checkpoint folder, without rows that only pad the vocabulary.

  Args:
    format: one of FORMATS.
    model: model directory or training workdir.
    output: the folder; must not exist, or be empty.
    shard_bytes: safetensors files grow to this size at most, but for tensors that are larger.
    dtype: of all tensors, "bfloat16" or "float32"; None leaves each as it is stored, which is
      float32 after training.
    progress: called with (tensors done, tensors in all).

  Raises:
    FileExistsError: if `output` is not empty.
    ValueError: if the format cannot carry the model, the model lacks a part, or for another dtype.
  """
  if dtype not in (None, *WRITTEN):
    raise ValueError(f"dtype must be one of {[*WRITTEN]}, got {dtype!r}")
  began = time.monotonic()
  config = checkpoint.model_config(model)
  if format == "vila-u" and config.system_prompt != SYSTEM_PROMPT:
    raise ValueError("a vila-u checkpoint has no place for this model's system_prompt "
                     f"{config.system_prompt!r}")  # fmt: skip
  plan = export_plan(format, config)
  arrays = {"/".join(key): value for key, value in checkpoint.open_arrays(model).items()}
  _check(plan, arrays, model)
  main = "params/llm/embed_tokens" if format in ("vila-u", "llama") else next(iter(plan.leaves))
  dtypes = {t: WRITTEN[dtype] if dtype else arrays[t].dtype for t in plan.leaves}
  tensors = _Written(plan, arrays, dtypes, progress)
  with replacing(output) as partial:
    if format == "rqvae":
      _write_torch(partial / "model.pt", tensors)
      (partial / "config.yaml").write_text(json.dumps(rqvae.write_config(config.tower), indent=2))
    else:
      _write_safetensors(partial, tensors, shard_bytes)
      _write_configs(format, config, partial, dtypes[main].name)
      _write_tokenizers(format, model, config, partial)
  parts = summarise(plan, dtypes, tensors.counts())
  return Report("exported", format, str(model), str(output), parts, {}, tensors.copies,
                time.monotonic() - began)  # fmt: skip


def _check(plan: Plan, arrays: Mapping[str, Any], model: str | os.PathLike) -> None:
  wrong = []
  for target, (shape, _) in plan.leaves.items():
    if target not in arrays:
      wrong.append(f"{target}: missing")
    elif arrays[target].shape != shape:
      wrong.append(f"{target}: {arrays[target].shape} there, its config makes it {shape}")
    elif arrays[target].dtype not in _NAMES:
      wrong.append(f"{target}: dtype {arrays[target].dtype}")
  if wrong:
    raise ValueError(f"{model} does not hold what this format needs:\n  "
                     + "\n  ".join(shorten(wrong)))  # fmt: skip


class _Written:
  """The tensors of an export: names, shapes and dtypes at once, values a piece at a time.

  Attributes:
    infos: name -> (shape, dtype), in the order of names.
    copies: how many are copies of another one.
  """

  def __init__(
    self,
    plan: Plan,
    arrays: Mapping[str, Any],
    dtypes: Mapping[str, np.dtype],
    progress: Progress | None,
  ):
    self._plan, self._arrays, self._dtypes, self._progress = plan, arrays, dtypes, progress
    found = {}
    self.copies = 0
    for target, piece in plan.pieces():
      for name in piece.written:
        found[name] = (piece.source_shape, dtypes[target])
      self.copies += len(piece.written) - 1 if piece.part[0] == 0 else 0
    self.infos = dict(sorted(found.items(), key=lambda item: _natural(item[0])))

  def counts(self) -> dict[str, int]:
    """Our variable -> tensors made of it; one that is made of several counts for the first."""
    counts = dict.fromkeys(self._plan.leaves, 0)
    for target, piece in self._plan.pieces():
      counts[target] += len(piece.written) if piece.part[0] == 0 else 0
    return counts

  def values(self) -> Iterator[tuple[Piece, np.ndarray]]:
    """Pieces and their values in the checkpoint's layout; a part of a tensor is that part alone."""
    done, total = 0, sum(1 for _ in self._plan.pieces())
    for target, (_, pieces) in self._plan.leaves.items():
      array = self._arrays[target]
      values = array.rows() if pieces[0].layer is not None else iter([array.read()])
      for piece, value in zip(pieces, values, strict=True):
        value = np.asarray(value).astype(self._dtypes[target], copy=False)
        yield piece, np.ascontiguousarray(piece.how.to_source(value))
        done += 1
        if self._progress is not None:
          self._progress(done, total)


def _natural(name: str) -> tuple:
  """Layer 10 after layer 9."""
  return tuple((int(p), "") if p.isdigit() else (-1, p) for p in name.split("."))


def _write_safetensors(folder: pathlib.Path, tensors: _Written, shard_bytes: int) -> None:
  """Names up to the last "/" are folders; each gets one file, or shards and their index."""
  places: dict[str, tuple[int, int]] = {}
  opened: list[int] = []
  groups: dict[str, dict[str, tuple]] = {}
  for name, info in tensors.infos.items():
    inner, _, short = name.rpartition("/")
    groups.setdefault(inner, {})[short] = info
  try:
    for inner, infos in groups.items():
      (folder / inner).mkdir(exist_ok=True)
      shards = _shards(infos, shard_bytes)
      _write_index(folder / inner, shards, infos)
      for file, names in shards.items():
        header, offsets = _header({name: infos[name] for name in names})
        opened.append(os.open(folder / inner / file, os.O_WRONLY | os.O_CREAT, 0o644))
        _write_at(opened[-1], header, 0)
        for name, offset in offsets.items():
          places[f"{inner}/{name}" if inner else name] = opened[-1], offset
    for piece, value in tensors.values():
      for name in piece.written:
        file, offset = places[name]
        _write_at(file, memoryview(value.reshape(-1).view(np.uint8)),
                  offset + piece.part[0] * value.nbytes)  # fmt: skip
  finally:
    for file in opened:
      os.close(file)


def _write_at(file: int, data: bytes | memoryview, offset: int) -> None:
  while len(data):
    written = os.pwrite(file, data, offset)
    data, offset = data[written:], offset + written


def _shards(infos: Mapping[str, tuple], shard_bytes: int) -> dict[str, list[str]]:
  """File name -> its tensors."""
  groups: list[list[str]] = [[]]
  size = 0
  for name, info in infos.items():
    if groups[-1] and size + _nbytes(*info) > shard_bytes:
      groups.append([])
      size = 0
    groups[-1].append(name)
    size += _nbytes(*info)
  if len(groups) == 1:
    return {"model.safetensors": groups[0]}
  return {f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors": g for i, g in enumerate(groups)}


def _nbytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
  return math.prod(shape) * dtype.itemsize


def _write_index(
  folder: pathlib.Path, shards: Mapping[str, list[str]], infos: Mapping[str, tuple]
) -> None:
  if len(shards) == 1:
    return
  total = sum(_nbytes(*info) for info in infos.values())
  weight_map = {name: file for file, names in shards.items() for name in names}
  _write_json(folder / "model.safetensors.index.json",
              {"metadata": {"total_size": total}, "weight_map": weight_map})  # fmt: skip


def _header(infos: Mapping[str, tuple]) -> tuple[bytes, dict[str, int]]:
  """The head of a safetensors file, and where each tensor starts in the file."""
  entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  offsets, at = {}, 0
  for name, (shape, dtype) in infos.items():
    end = at + _nbytes(shape, dtype)
    entries[name] = {
      "dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [at, end],
    }  # fmt: skip
    offsets[name], at = at, end
  text = json.dumps(entries, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  start = 8 + len(text)
  return len(text).to_bytes(8, "little") + text, {n: start + o for n, o in offsets.items()}


def _write_torch(path: pathlib.Path, tensors: _Written) -> None:
  """kakaobrain's stage-1 layout; copies of a shared codebook share their memory there too."""
  import torch

  state = {}
  for piece, value in tensors.values():
    if value.dtype.name == "bfloat16":
      tensor = torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    else:
      tensor = torch.from_numpy(value)
    state |= dict.fromkeys(piece.written, tensor)
  torch.save({"state_dict": {name: state[name] for name in tensors.infos}}, path)


def _write_configs(format: str, config: VilaUConfig, folder: pathlib.Path, dtype: str) -> None:
  if format == "vila-u":
    files = vilau.write_configs(config, dtype)
  elif format == "llama":
    files = {"config.json": llama.write_config(config.llm, dtype)}
  else:
    files = {
      "config.json": siglip.write_config(config.tower, dtype),
      "preprocessor_config.json": siglip.write_processor(config.tower.image_size),
    }
  for name, value in files.items():
    _write_json(folder / name, value)


def _write_json(path: pathlib.Path, value: Any) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_tokenizers(
  format: str, model: str | os.PathLike, config: VilaUConfig, folder: pathlib.Path
) -> None:
  model = epath.Path(model)
  texts, language = model / checkpoint.TOWER_TOKENIZER, model / checkpoint.TOKENIZER
  if format == "siglip" and texts.exists():
    (folder / "spiece.model").write_bytes(texts.read_bytes())
  elif format != "siglip" and language.exists():
    where = folder / vilau.LLM if format == "vila-u" else folder
    write_llama_tokenizer(language, where, config.llm.vocab_size)
