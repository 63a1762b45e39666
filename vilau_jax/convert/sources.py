"""Checkpoint files, read one tensor at a time: safetensors, torch's .bin and .pt, NumPy's .npz.

`open_tensors` gives a Tensors: names, shapes and dtypes at once, values only when asked for. Files
are closed between reads, because pages of a mapped file count as resident memory. Torch files are
read with weights_only: a pickle that holds anything but tensors is refused and never executed.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from vilau_jax import jsons

DTYPES = {
  "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
  "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8,
  "BOOL": np.bool_,
}  # fmt: skip
# Single files and indexes that a folder may hold, in the order of preference.
SINGLE = ("model.safetensors", "pytorch_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_REOPEN = 2**30  # bytes read from a mapped torch file before its pages are given back


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """What a file says of a tensor; `dtype` is None for kinds that no checkpoint here has."""

  shape: tuple[int, ...]
  dtype: np.dtype | None
  file: pathlib.Path
  kind: str  # the dtype as the file spells it


class Tensors:
  """The tensors of one or several files.

  Attributes:
    where: the folder or file they come from, for messages.
    infos: name -> TensorInfo.
    ignored: parts of the files that are no weights -> why they are left out.
  """

  def __init__(self, where: pathlib.Path, files: list[Any]):
    self.where = where
    self._file_of = {name: file for file in files for name in file.infos}
    self.infos: dict[str, TensorInfo] = {n: f.infos[n] for n, f in self._file_of.items()}
    self.ignored = {name: why for file in files for name, why in file.ignored.items()}

  def read(self, name: str) -> np.ndarray:
    """The values of one tensor, in the stored dtype.

    Raises:
      ValueError: naming file and tensor, if they cannot be read.
    """
    info = self.infos[name]
    with _naming(info.file, name):
      value = self._file_of[name].read(name)
    if value.shape != info.shape or value.dtype != info.dtype:
      raise ValueError(f"{info.file}: {name} is {value.dtype} {value.shape}, but the file "
                       f"announces {info.kind} {info.shape}")  # fmt: skip
    return value


def join(where: pathlib.Path, parts: dict[str, Tensors]) -> Tensors:
  """Several Tensors as one; the names of each get its prefix."""
  whole = Tensors(where, [])
  for prefix, tensors in parts.items():
    whole.ignored |= {prefix + name: why for name, why in tensors.ignored.items()}
    for name, info in tensors.infos.items():
      whole.infos[prefix + name] = info
      whole._file_of[prefix + name] = _Renamed(tensors._file_of[name], name)
  return whole


@dataclasses.dataclass(frozen=True)
class _Renamed:
  file: Any
  name: str

  def read(self, _: str) -> np.ndarray:
    return self.file.read(self.name)


def open_tensors(path: str | os.PathLike) -> Tensors:
  """Opens a file, or the weights of a folder (one file, or shards with their index).

  Raises:
    ValueError: if there are no weights, or a file is corrupt, truncated or missing.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    for name in INDEXES:
      if (path / name).is_file():
        return _open_index(path / name)
    found = [path / name for name in SINGLE if (path / name).is_file()]
    if not found:
      raise ValueError(f"{path} holds no weights: none of {', '.join((*SINGLE, *INDEXES))}")
    path = found[0]
  if not path.is_file():
    raise ValueError(f"no such checkpoint: {path}")
  return Tensors(path, [_open_file(path)])


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """A JSON object.

  Raises:
    ValueError: naming the file, if it is missing or no JSON object.
  """
  if not path.is_file():
    raise ValueError(f"{path} is missing")
  try:
    return jsons.parse_object(path.read_bytes())
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def inside(folder: pathlib.Path, name: str, said_by: pathlib.Path) -> pathlib.Path:
  """folder/name, which must not lead out of the folder.

  Raises:
    ValueError: if it does; names the file that said so.
  """
  pure = pathlib.PurePosixPath(name)
  if pure.is_absolute() or ".." in pure.parts or "\\" in name or not pure.parts:
    raise ValueError(f"{said_by}: {name!r:.200} leads out of the checkpoint's folder; refused")
  return folder / name


def _open_index(index: pathlib.Path) -> Tensors:
  weight_map = read_json(index).get("weight_map")
  if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
    raise ValueError(f"{index}: weight_map must map tensor names to file names")
  paths = {name: inside(index.parent, name, index) for name in sorted(set(weight_map.values()))}
  missing = [name[:200] for name, path in paths.items() if not os.path.isfile(path)]
  if missing:
    raise ValueError(f"{index} names shards that are not there: {', '.join(shorten(missing))}")
  shards = {name: _open_file(path) for name, path in paths.items()}
  problems = [
    f"{name}: the index places it in {shard}, which does not hold it"
    for name, shard in weight_map.items()
    if name not in shards[shard].infos
  ]
  for shard, file in shards.items():
    problems += [
      f"{name}: in {shard}, but the index places it {_place(weight_map.get(name))}"
      for name in file.infos
      if weight_map.get(name) != shard
    ]
  if problems:
    raise ValueError(f"{index} and its shards disagree:\n  " + "\n  ".join(shorten(problems)))
  return Tensors(index.parent, list(shards.values()))


def _place(shard: str | None) -> str:
  return "nowhere" if shard is None else f"in {shard}"


def shorten(lines: list[str], most: int = 20) -> list[str]:
  """The first lines, and how many more there are: an error should fit a screen."""
  more = [f"and {len(lines) - most} more"] if len(lines) > most else []
  return [line[:200] for line in lines[:most]] + more


def _open_file(path: pathlib.Path) -> Any:
  kinds = {".safetensors": _Safetensors, ".npz": _Npz}
  kinds |= dict.fromkeys((".bin", ".pt", ".pth", ".ckpt"), _Torch)
  if path.suffix not in kinds:
    raise ValueError(f"{path}: unknown kind of checkpoint; known: {', '.join(kinds)}")
  with _naming(path):
    return kinds[path.suffix](path)


@contextlib.contextmanager
def _naming(path: pathlib.Path, tensor: str | None = None) -> Iterator[None]:
  """Turns what the libraries say of a broken file into an error that names file and tensor."""
  try:
    yield
  except (
    safetensors.SafetensorError, zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError,
    LookupError, RuntimeError, TypeError, ValueError, SyntaxError, ArithmeticError, MemoryError,
  ) as error:  # fmt: skip
    what = f"{path}: cannot read tensor {tensor!r:.200}" if tensor else f"{path}: cannot be read"
    raise ValueError(f"{what} ({error!s:.500}); is the file truncated or corrupt?") from error


class _Safetensors:
  def __init__(self, path: pathlib.Path):
    self._path, self.infos, self.ignored = path, {}, {}
    with safetensors.safe_open(path, framework="numpy") as file:
      for name in file.keys():
        part = file.get_slice(name)
        kind = part.get_dtype()
        dtype = np.dtype(DTYPES[kind]) if kind in DTYPES else None
        self.infos[name] = TensorInfo(tuple(part.get_shape()), dtype, path, kind)

  def read(self, name: str) -> np.ndarray:
    with safetensors.safe_open(self._path, framework="numpy") as file:
      return file.get_tensor(name)


class _Npz:
  """Names are as in the file, without the prefix "params/" of big_vision's training states."""

  PREFIX = "params/"

  def __init__(self, path: pathlib.Path):
    self._path, self.infos, self.ignored = path, {}, {}
    self._members: dict[str, str] = {}
    with zipfile.ZipFile(path) as file:
      names = [n for n in file.namelist() if n.endswith(".npy")]
      prefixed = any(n.startswith(self.PREFIX) for n in names)
      for member in names:
        name = member.removesuffix(".npy")
        if prefixed and not name.startswith(self.PREFIX):
          self.ignored[name] = "not under params/: state of the optimizer"
          continue
        name = name.removeprefix(self.PREFIX)
        size = file.getinfo(member).file_size
        with file.open(member) as stream:
          version = np.lib.format.read_magic(stream)
          header = np.lib.format.read_array_header_1_0
          header = header if version == (1, 0) else np.lib.format.read_array_header_2_0
          shape, _, stored = header(stream)
          # Checked here, because NumPy makes room for what a header announces before it reads.
          told = math.prod(shape) * stored.itemsize
          if min(shape, default=0) < 0 or (not stored.hasobject and stream.tell() + told > size):
            raise ValueError(f"{path}: {name!r:.200} announces {told} bytes, there are {size}")
        self._members[name] = member.removesuffix(".npy")
        self.infos[name] = TensorInfo(shape, _npz_dtype(stored), path, str(stored))

  def read(self, name: str) -> np.ndarray:
    if self.infos[name].dtype is None:
      raise ValueError(f"{name!r:.200} holds Python objects, which are not read")
    with np.load(self._path, allow_pickle=False) as file:
      return file[self._members[name]].view(self.infos[name].dtype)


def _npz_dtype(stored: np.dtype) -> np.dtype | None:
  if stored.hasobject:
    return None
  return np.dtype(ml_dtypes.bfloat16) if stored == np.dtype("V2") else stored


def _torch(path: pathlib.Path) -> Any:
  try:
    import torch
  except ModuleNotFoundError as error:
    raise ValueError(f"{path} is a torch file: pip install -e '.[torch]'") from error
  return torch


class _Torch:
  """A .bin or .pt file: a state dict, or a training checkpoint that holds one."""

  STATES = ("state_dict_ema", "state_dict")  # the average of the weights is what is used

  def __init__(self, path: pathlib.Path):
    self._path, self.infos, self.ignored, self._since = path, {}, {}, 0
    self._prefix: str | None = None
    self._state = self._load()
    for name, value in self._state.items():
      kind = str(value.dtype).removeprefix("torch.")
      dtype = np.dtype(ml_dtypes.bfloat16) if kind == "bfloat16" else None
      if dtype is None and kind in {np.dtype(d).name for d in DTYPES.values()}:
        dtype = np.dtype(kind)
      self.infos[name] = TensorInfo(tuple(value.shape), dtype, path, kind)

  def _load(self) -> dict[str, Any]:
    torch = _torch(self._path)
    try:
      stored = torch.load(
        self._path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(self._path)
      )
    except Exception as error:  # the unpickler's own class, and whatever a broken file raises
      reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
      raise ValueError(
        f"{self._path}: torch cannot read it as pure tensors ({reason}). Either it is corrupt, or "
        "it is a pickle of other objects, which is not executed here; save its state_dict() alone"
      ) from error
    return self._state_dict(stored)

  def _state_dict(self, stored: Any) -> dict[str, Any]:
    torch = _torch(self._path)
    if isinstance(stored, dict):
      chosen = next((k for k in self.STATES if isinstance(stored.get(k), dict)), None)
      if chosen is not None:
        self.ignored = dict.fromkeys(stored, f"beside {chosen}: not the model's weights")
        del self.ignored[chosen]
        stored = stored[chosen]
    if not isinstance(stored, dict) or not stored:
      raise ValueError(f"{self._path} holds a {type(stored).__name__}, expected a state dict")
    wrong = [str(k) for k, v in stored.items() if not isinstance(v, torch.Tensor)]
    if wrong:
      raise ValueError(f"{self._path}: not tensors: {', '.join(shorten(wrong, 5))}")
    return dict(stored)

  def read(self, name: str) -> np.ndarray:
    torch = _torch(self._path)
    if self._since > _REOPEN:
      self._state, self._since = {}, 0
      self._state = self._load()
    value = self._state[name].contiguous()
    self._since += value.numel() * value.element_size()
    if value.dtype == torch.bfloat16:
      return value.view(torch.int16).numpy().copy().view(ml_dtypes.bfloat16)
    return value.numpy().copy()
