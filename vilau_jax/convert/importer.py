"""Checkpoint -> model directory, one tensor at a time; and its check afterwards."""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from flax import traverse_util

from vilau_jax import checkpoint, paths
from vilau_jax.convert.formats import Checkpoint, open_checkpoint
from vilau_jax.convert.plan import Piece, check
from vilau_jax.convert.report import Report, read_manifest, summarise, write_manifest
from vilau_jax.convert.sources import shorten
from vilau_jax.data.tokenizer import TowerTokenizer
from vilau_jax.streaming import Streamed

Progress = Callable[[int, int], None]


def import_checkpoint(
  format: str,
  source: str | os.PathLike,
  output: str | os.PathLike,
  *,
  tower_tokenizer: str | os.PathLike | None = None,
  progress: Progress | None = None,
) -> Report:
  """Writes a model directory from a PyTorch checkpoint; tensors keep their stored dtype.

  The directory is written under a temporary name and renamed when it is complete and on disk; after
  an error nothing is left.

  Args:
    format: one of FORMATS.
    source: folder, file, or "hf://owner/name".
    output: the model directory; must not exist, or be empty.
    tower_tokenizer: SigLIP's sentencepiece model, for embed_texts; a SigLIP folder brings its own.
    progress: called with (tensors done, tensors in all).

  Raises:
    FileExistsError: if `output` is not empty.
    ValueError: if the checkpoint is broken, incomplete, or not what its config says; names files
      and tensors.
  """
  began = time.monotonic()
  opened = open_checkpoint(format, source)
  check(opened.plan, opened.tensors)
  texts = tower_tokenizer or opened.tower_tokenizer
  if texts is not None:
    _check_texts(texts, opened)
  reader = _Reader(opened, progress)
  with replacing(output) as partial:
    streamed = traverse_util.unflatten_dict(reader.streamed(), sep="/")
    with reader.naming_failures(output):
      checkpoint.save_model(partial, opened.config, streamed, opened.tokenizer, texts)
      reader.read_ignored()
      write_manifest(partial, format, str(source), reader.records())
  ignored = opened.tensors.ignored | reader.ignored
  return Report("imported", format, str(source), str(output), reader.parts(), ignored,
                reader.copies, time.monotonic() - began)  # fmt: skip


def load_checkpoint(format: str, source: str | os.PathLike) -> checkpoint.LoadedModel:
  """A checkpoint in memory, as load_model would return its import.

  Raises:
    ValueError: as import_checkpoint.
  """
  opened = open_checkpoint(format, source)
  check(opened.plan, opened.tensors)
  reader = _Reader(opened, None, hashing=False)
  variables = {}
  for target, leaf in reader.streamed().items():
    whole = np.empty(leaf.shape, leaf.dtype)
    for index, part in leaf.parts():
      whole[() if index is None else index] = part
    variables[target] = whole
  tokenizers = [
    str(f.absolute()) if f else None for f in (opened.tokenizer, opened.tower_tokenizer)
  ]
  variables = traverse_util.unflatten_dict(variables, sep="/")
  return checkpoint.LoadedModel(opened.config, variables, *tokenizers, str(source))


def verify(
  model: str | os.PathLike, source: str | os.PathLike, *, progress: Progress | None = None
) -> Report:
  """Reads an imported model and its source again: every source tensor must have the SHA-256 of the
  manifest and, converted, the bits of the stored array.

  Raises:
    ValueError: listing what differs.
  """
  began, model = time.monotonic(), pathlib.Path(model)
  manifest = read_manifest(model)
  opened = open_checkpoint(manifest["format"], source)
  check(opened.plan, opened.tensors)
  wrong = []
  config = checkpoint.model_config(model)
  if config != dataclasses.replace(opened.config, name=config.name):  # the folder may have moved
    wrong.append("config.json: another architecture than the source's")
  reader, stored = _Reader(opened, progress), checkpoint.open_arrays(model)
  for target, leaf in reader.streamed().items():
    array = stored.get(tuple(target.split("/")))
    if array is None or (array.shape, array.dtype) != (leaf.shape, leaf.dtype):
      wrong.append(f"{target}: {'missing' if array is None else f'{array.dtype} {array.shape}'} in "
                   f"the model, {leaf.dtype} {leaf.shape} expected")  # fmt: skip
      continue
    stacked = opened.plan.leaves[target][1][0].layer is not None
    values = array.rows() if stacked else iter([array.read()])
    for (index, part), value in zip(leaf.parts(), values):
      if np.ascontiguousarray(part).tobytes() != np.ascontiguousarray(value).tobytes():
        at = "" if index is None else f"[{index}]"
        wrong.append(f"{target}{at}: differs from the source")
  reader.read_ignored()
  found = {record["name"]: record["sha256"] for record in reader.records()}
  known = {record["name"]: record["sha256"] for record in manifest["tensors"]}
  for name in sorted(found.keys() | known.keys()):
    if found.get(name) != known.get(name):
      what = "not in the source" if name not in found else "not in the manifest"
      both = name in found and name in known
      wrong.append(f"{name}: {'SHA-256 differs from the manifest' if both else what}")
  if wrong:
    raise ValueError(f"{model} is not what {source} holds:\n  " + "\n  ".join(shorten(wrong)))
  return Report("verified", manifest["format"], str(source), str(model), reader.parts(),
                opened.tensors.ignored | reader.ignored, reader.copies,
                time.monotonic() - began)  # fmt: skip


@contextlib.contextmanager
def replacing(output: str | os.PathLike) -> Iterator[pathlib.Path]:
  """A directory under a temporary name beside `output`, which it becomes when all went well.

  Raises:
    FileExistsError: if `output` is there and not empty.
    ValueError: if it cannot be written.
  """
  if paths.is_remote(output):
    raise ValueError(f"{output} is in an object store: write to a local folder, and copy it there")
  output = pathlib.Path(output).absolute()
  if output.exists() and (not output.is_dir() or any(output.iterdir())):
    raise FileExistsError(f"{output} is not empty; choose another directory or remove it")
  partial = output.with_name(f".{output.name}.partial")
  try:
    shutil.rmtree(partial, ignore_errors=True)  # of an attempt that was killed
    partial.mkdir(parents=True)
    yield partial
    _sync(partial)
    partial.rename(output)
  except OSError as error:
    raise ValueError(f"{output} cannot be written: {error}; nothing is left of it") from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _sync(folder: pathlib.Path) -> None:
  """Puts files and directories on the disk, so that the rename never gets there first."""
  for path in (*folder.rglob("*"), folder):
    descriptor = os.open(path, os.O_RDONLY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


def _check_texts(path: str | os.PathLike, opened: Checkpoint) -> None:
  tower = opened.config.tower
  if tower is None or tower.text is None:
    raise ValueError("--tower_tokenizer is for towers with a text encoder; this model has none")
  size = TowerTokenizer(path, tower.text.length).vocab_size
  if size > tower.text.vocab_size:
    raise ValueError(
      f"{path} has {size} pieces, the text encoder reads {tower.text.vocab_size} ids"
    )


class _Reader:
  """Reads the pieces of a plan, each source tensor hashed and recorded once.

  Attributes:
    ignored: tensors that the plan does not use -> why.
    copies: tensors found to be copies of another one.
  """

  def __init__(self, opened: Checkpoint, progress: Progress | None, hashing: bool = True):
    self._plan, self._tensors = opened.plan, opened.tensors
    self._progress, self._hashing = progress, hashing
    self._records: dict[str, dict[str, Any]] = {}
    self._dtypes: dict[str, np.dtype] = {}
    self._reading = ""
    self.copies = 0
    self.ignored = {name: why for name in opened.tensors.infos if (why := opened.plan.reason(name))}

  def streamed(self) -> dict[str, Streamed]:
    """Our variables, read when they are written."""
    leaves = {}
    for target, (shape, pieces) in self._plan.leaves.items():
      dtype = self._tensors.infos[self._present(pieces[0])[0]].dtype
      self._dtypes[target] = dtype
      leaves[target] = Streamed(shape, dtype, lambda t=target: self._parts_of(t))
    return leaves

  def _present(self, piece: Piece) -> list[str]:
    return [name for name in piece.names if name in self._tensors.infos]

  def _parts_of(self, target: str) -> Iterator[tuple[int | None, np.ndarray]]:
    for piece in self._plan.leaves[target][1]:
      first, *others = self._present(piece)
      self._reading = first
      value = self._tensors.read(first)
      self._record(first, value, target, piece)
      for name in others:
        self._compare(first, name, value, target, piece)
      yield piece.layer, piece.to_ours(value)

  def _compare(self, first: str, name: str, value: np.ndarray, target: str, piece: Piece) -> None:
    other = self._tensors.read(name)
    if other.dtype != value.dtype or not np.array_equal(_bytes(other), _bytes(value)):
      raise ValueError(f"{self._tensors.where}: {first} and {name} must be copies of one tensor, "
                       "but they differ")  # fmt: skip
    if name not in self._records:
      self.copies += 1
    self._record(name, other, target, piece)

  def _record(self, name: str, value: np.ndarray, target: str | None, piece: Piece | None) -> None:
    if name in self._records:  # parts of one tensor go to several of our arrays
      if target is not None:
        self._records[name]["into"].append(target)
      return
    info = self._tensors.infos[name]
    record = {
      "name": name,
      "file": str(info.file.relative_to(self._tensors.where))
      if info.file.is_relative_to(self._tensors.where) and info.file != self._tensors.where
      else info.file.name,
      "shape": list(info.shape),
      "dtype": info.dtype.name if info.dtype is not None else info.kind,
      "sha256": hashlib.sha256(_bytes(value)).hexdigest() if self._hashing else "",
    }
    if target is not None:
      record |= {"into": [target], "layer": piece.layer, "transform": piece.how.name}
    else:
      record["ignored"] = self.ignored[name]
    self._records[name] = record
    if self._progress is not None:
      self._progress(len(self._records), len(self._tensors.infos))

  def read_ignored(self) -> None:
    """Records what the plan does not use."""
    for name in self.ignored:
      self._record(name, self._tensors.read(name), None, None)

  def records(self) -> list[dict[str, Any]]:
    """Entries of the manifest, in the source's order."""
    return [self._records[name] for name in self._tensors.infos]

  def parts(self) -> tuple:
    """Rows of the report."""
    names: dict[str, int] = dict.fromkeys(self._plan.leaves, 0)
    for record in self._records.values():
      if "into" in record:
        names[record["into"][0]] += 1
    return summarise(self._plan, self._dtypes, names)

  @contextlib.contextmanager
  def naming_failures(self, output: str | os.PathLike) -> Iterator[None]:
    """Says at which tensor writing failed: a full disk, for example."""
    try:
      yield
    except OSError as error:
      raise ValueError(f"{output} cannot be written ({error}); the tensor under way was "
                       f"{self._reading or 'none'}; nothing is left of it") from error  # fmt: skip


def _bytes(value: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(value).reshape(-1).view(np.uint8)
