"""What visitors take home, and how drawings are laid out for the page."""

import pathlib
import shutil
import tempfile
import time
import zipfile
from typing import Any

import numpy as np

from vilau_jax.data import media
from vilau_jax.generate.gallery import Gallery

FPS = 8  # frames a second, of films in the page and taken home
READABLE = 160  # pixels of width below which small pictures are enlarged, pixels kept sharp


def bundle(pixels: np.ndarray, made_by: dict[str, Any], folder: pathlib.Path) -> pathlib.Path:
  """A zip of pictures [n, S, S, 3] or videos [n, F, S, S, 3] with metadata.json, which `vilau
  generate --from_metadata` makes again. Output i has the seed made_by["seed"] + i."""
  folder = pathlib.Path(tempfile.mkdtemp(dir=folder))
  gallery = Gallery(folder / "drawings")
  for i, output in enumerate(pixels):
    gallery.add(output, made_by | {"seed": made_by["seed"] + i}, FPS)
  path = folder / "drawings.zip"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    for file in sorted(gallery.directory.iterdir()):
      archive.write(file, file.name)
  return path


def sweep(folder: pathlib.Path, seconds: float) -> None:
  """Removes what was made for visitors longer ago than that."""
  folder.mkdir(exist_ok=True)  # whatever clears temporary files may have been here
  for path in folder.iterdir():
    if time.time() - path.stat().st_mtime > seconds:
      shutil.rmtree(path, ignore_errors=True)


def enlarged(picture: np.ndarray) -> np.ndarray:
  """uint8 [H, W, 3] by a whole factor, at least READABLE wide."""
  scale = max(1, -(-READABLE // picture.shape[1]))
  return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def strips(videos: np.ndarray) -> np.ndarray:
  """Videos [n, F, S, S, 3] as rows of frames, uint8 [H, W, 3]."""
  frames = videos.reshape(-1, *videos.shape[2:])
  scale = max(1, READABLE // frames.shape[2])
  return media.contact_sheet(list(frames), videos.shape[1], scale=scale)


def film(videos: np.ndarray, folder: pathlib.Path) -> pathlib.Path:
  """One MP4 in which videos [n, F, S, S, 3] play side by side."""
  columns = min(len(videos), 4)
  scale = max(1, READABLE // videos.shape[3])
  frames = [
    media.contact_sheet(list(frame), columns, scale=scale) for frame in videos.swapaxes(0, 1)
  ]
  path = pathlib.Path(tempfile.mkdtemp(dir=folder)) / "film.mp4"
  return media.write_video(np.stack(frames), path, FPS)
