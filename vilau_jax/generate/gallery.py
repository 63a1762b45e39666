"""An output directory: numbered pictures and videos, and metadata.json that says what made each."""

import hashlib
import json
import os
import pathlib
from typing import Any

import numpy as np

from vilau_jax import paths
from vilau_jax.data import media

METADATA = "metadata.json"
READABLE = 128  # pixels of width below which pictures are enlarged, or captions would not fit


def writable(directory: str | os.PathLike) -> pathlib.Path:
  """The directory, made when absent.

  Raises:
    ValueError: if nothing can be written there.
  """
  if paths.is_remote(directory):
    raise ValueError(
      f"{directory} is in an object store, and drawings are written to a folder of this machine: "
      "give one, and copy it when they are done"
    )
  path = pathlib.Path(directory)
  probe = path / f".{os.getpid()}"
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise ValueError(f"cannot write to {directory}: {error}") from error
  return path


def replace_text(path: pathlib.Path, text: str) -> None:
  """Writes under a temporary name first, so that readers never see half a file."""
  partial = path.with_name(f".{path.name}.{os.getpid()}")
  partial.write_text(text, "utf-8")
  partial.replace(path)


def pixels_sha256(pixels: np.ndarray) -> str:
  """What tells whether a picture or video was made again bit for bit."""
  return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


class Gallery:
  """Continues a directory; files and metadata are complete after every `add`.

  Args:
    directory: made when absent.

  Attributes:
    names: files written by this object.

  Raises:
    ValueError: if nothing can be written there, or its metadata.json is something else.
  """

  def __init__(self, directory: str | os.PathLike):
    self.directory = writable(directory)
    self.names: list[str] = []
    self._file = self.directory / METADATA
    self._entries = self._read()
    numbers = [int(p.stem) for p in self.directory.iterdir() if p.stem.isdigit()]
    self._next = 1 + max(numbers, default=-1)

  def add(self, pixels: np.ndarray, made_by: dict[str, Any], fps: float = 8) -> str:
    """Writes uint8 [S, S, 3] as PNG or [F, S, S, 3] as MP4, and its entry; returns the name."""
    image = pixels.ndim == 3
    name = f"{self._next:06}.{'png' if image else 'mp4'}"
    entry = {"file": name, "kind": "image" if image else "video", **made_by}
    entry["pixels_sha256"] = pixels_sha256(pixels)
    if image:
      media.write_image(pixels, self.directory / name, {"vilau": json.dumps(entry)})
    else:
      entry |= {"num_frames": len(pixels), "fps": fps}
      media.write_video(pixels, self.directory / name, fps)
    self._entries.append(entry)
    replace_text(self._file, json.dumps(self._entries, indent=1, ensure_ascii=False) + "\n")
    self.names.append(name)
    self._next += 1
    return name

  def compare(
    self, pixels: np.ndarray, made_by: dict[str, Any], entry: dict[str, Any]
  ) -> tuple[str, bool]:
    """Adds what was made again from `entry`: its name, and whether it is the same bit for bit."""
    extra = {k: entry[k] for k in ("first_frame",) if k in entry}
    name = self.add(pixels, made_by | extra, entry.get("fps", 8))
    return name, pixels_sha256(pixels) == entry.get("pixels_sha256")

  def sheet(self, columns: int) -> pathlib.Path | None:
    """grid.png: the pictures written by this object with their prompts; None for less than two."""
    mine = [e for e in self._entries if e["file"] in self.names and e["kind"] == "image"]
    if len(mine) < 2:
      return None
    pictures = [self.directory / entry["file"] for entry in mine]
    captions = [str(entry.get("prompt", "")) for entry in mine]
    scale = max(1, READABLE // media.open_image(pictures[0]).width)
    grid = media.contact_sheet(pictures, columns, captions, scale=scale)
    return media.write_image(grid, self.directory / "grid.png")

  def _read(self) -> list[dict[str, Any]]:
    if not self._file.exists():
      return []
    try:
      entries = json.loads(self._file.read_text("utf-8"))
    except json.JSONDecodeError as error:
      raise ValueError(f"{self._file} is not readable: {error}") from error
    if not isinstance(entries, list):
      raise ValueError(f"{self._file} is not a list of generated files; choose another directory")
    return entries
