"""Checksums beside what was written, so that damage is found and named before it is used."""

import concurrent.futures
import hashlib
import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from vilau_jax import jsons

NAME = "manifest.json"
# What orbax writes into a checkpoint while it commits it, behind our back; it can do without.
UNSEALED = ("_CHECKPOINT_METADATA", "commit_success.txt", NAME)
_CHUNK, _THREADS = 2**22, 8


def write(directory: epath.PathLike, **facts: Any) -> None:
  """Writes manifest.json: size and SHA-256 of every file below `directory`, and `facts`."""
  directory = epath.Path(directory)
  files = sorted(_files(directory))
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    sums = pool.map(lambda name: _digest(directory / name), files)
    listed = {name: {"bytes": size, "sha256": hexed} for name, (size, hexed) in zip(files, sums)}
  partial = directory / f"{NAME}.partial"
  partial.write_text(json.dumps({**facts, "files": listed}, indent=1) + "\n")
  partial.replace(directory / NAME)


def problems(
  directory: epath.PathLike,
  *,
  below: tuple[str, ...] = ("",),
  part: tuple[int, int] = (0, 1),
  contents: bool = True,
  **facts: Any,
) -> list[str]:
  """What is wrong with a directory that `write` sealed; nothing where all is well.

  Args:
    directory: holds manifest.json.
    below: only files whose names start so.
    part: (index, count): check each count-th file only, so that processes can share the work.
    contents: False compares sizes only, which reads nothing.
    facts: what the manifest must say of itself, for example step=8.
  """
  directory = epath.Path(directory)
  try:
    stored = jsons.parse_object((directory / NAME).read_bytes())
    listed = sorted((n, e["bytes"], e["sha256"]) for n, e in stored["files"].items())
    if wrong := [n for n, size, hexed in listed if not _describes(n, size, hexed)]:
      raise ValueError(f"of {wrong[0]!r:.200}")
  except FileNotFoundError:
    return [f"{directory / NAME} is missing"]
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    return [f"{directory / NAME} is damaged ({error!s:.500})"]
  found = [
    f"{directory / NAME} is of {key} {stored.get(key)!r:.200}, not {value!r}"
    for key, value in facts.items()
    if stored.get(key) != value
  ]
  mine = [entry for entry in listed if entry[0].startswith(below)][part[0] :: part[1]]
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    found += [x for x in pool.map(lambda e: _compare(directory, *e, contents), mine) if x]
  return found


def _describes(name: str, size: Any, digest: Any) -> bool:
  """Whether an entry is one of a file in the directory."""
  inside = not name.startswith("/") and ".." not in name.split("/") and "\0" not in name
  return inside and type(size) is int and isinstance(digest, str) and len(digest) == 64


def _compare(directory: epath.Path, name: str, size: int, digest: str, contents: bool) -> str:
  file = directory / name
  if not file.exists():
    return f"{file} is missing"
  length = file.stat().length
  if length != size:
    return f"{file} has {length} bytes, {size} were written"
  if contents and _digest(file)[1] != digest:
    return f"{file} is not what was written (its SHA-256 differs)"
  return ""


def _files(directory: epath.Path, prefix: str = "") -> Iterator[str]:
  for entry in directory.iterdir():
    if entry.is_dir():
      yield from _files(entry, f"{prefix}{entry.name}/")
    elif entry.name not in UNSEALED:
      yield f"{prefix}{entry.name}"


def _digest(file: epath.Path) -> tuple[int, str]:
  digest, size = hashlib.sha256(), 0
  with file.open("rb") as f:
    while chunk := f.read(_CHUNK):
      digest.update(chunk)
      size += len(chunk)
  return size, digest.hexdigest()
