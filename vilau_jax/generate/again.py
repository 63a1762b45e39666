"""Making files again from what stands in their metadata."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from vilau_jax import jsons
from vilau_jax.data import media
from vilau_jax.generate.contents import Image, Video
from vilau_jax.generate.orders import conversation
from vilau_jax.generate.runtime import positive
from vilau_jax.generate.sampling import Sampling, output_seeds, whole

KEYS = ("file", "kind", "prompt", "seed", "settings", "model_id")


def read_entries(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The entries of a metadata.json or a results.jsonl.

  Raises:
    ValueError: if it is no such file, or an entry lacks something or holds what cannot be.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f"no metadata at {path}")
  text = path.read_text("utf-8")
  if path.suffix == ".jsonl":
    entries = jsons.parse_lines(text, path)
  else:
    try:
      entries = jsons.parse(text)
    except ValueError as error:
      raise ValueError(f"{path} is not readable JSON: {error}") from error
  if not isinstance(entries, list) or not entries:
    raise ValueError(f"{path} is not a list of generated files")
  for i, entry in enumerate(entries):
    try:
      _check(entry)
    except ValueError as error:
      raise ValueError(f"{path}, entry {i} cannot be made again: {error}") from error
  return entries


def _check(entry: Any) -> None:
  keys = (*KEYS, "num_frames") if isinstance(entry, dict) and entry.get("kind") == "video" else KEYS
  missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
  if missing:
    raise ValueError(f"it lacks {', '.join(missing)}")
  if entry["kind"] not in ("image", "video"):
    raise ValueError(f'its kind must be "image" or "video", got {entry["kind"]!r:.200}')
  for key in ("file", "model_id", "model", "first_frame"):
    if not isinstance(entry.get(key, ""), str):
      raise ValueError(f"{key} must be a text, got {entry[key]!r:.200}")
  parts = conversation(entry["prompt"], pathlib.Path())
  for part in [] if isinstance(parts, str) else parts:
    if isinstance(part, Image | Video) and not os.path.exists(part.source):
      raise ValueError(f"{part.source}, which its prompt shows, is not there")
  settings = entry["settings"]
  known = {field.name for field in dataclasses.fields(Sampling)} | {"speculative"}
  if not isinstance(settings, dict) or not settings.keys() <= known:
    raise ValueError(f"settings must be an object of {', '.join(sorted(known))}")
  Sampling(**{key: value for key, value in settings.items() if key != "speculative"})
  whole("speculative", settings.get("speculative", 0))
  output_seeds(entry["seed"], 1)
  if entry["kind"] == "video":
    positive("num_frames", entry["num_frames"])
    media.check_fps(entry.get("fps", 8))


def made_by(model, prompt: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
  """What an entry says of an output, and what is needed to make it again."""
  quantized = model.runtime.engine.quantized
  return {
    "prompt": prompt, "seed": int(seed),
    "settings": dataclasses.asdict(model.config.sampling) | settings,
    "model_id": model.identity(), **({"quantize": quantized} if quantized else {}),
  }  # fmt: skip


def quantization(entries: list[dict[str, Any]]) -> str | None:
  """How the model of the entries was loaded: see load's `quantize`.

  Raises:
    ValueError: if it was loaded in several ways.
  """
  first = entries[0].get("quantize")  # whatever stands there; load knows what it may be
  if any(entry.get("quantize") != first for entry in entries):
    raise ValueError(
      "some of these files were made with --int8 and some without; give each kind its own file of "
      "metadata"
    )
  return first


def draw_again(
  model, entries: list[dict[str, Any]], batch_size: int, on_progress
) -> Iterator[list[tuple[int, np.ndarray]]]:
  """Batches of places in `entries` and pixels; entries of one kind and settings share one.

  Raises:
    ValueError: if they are of another model.
  """
  identity = model.identity()
  other = next((e for e in entries if e["model_id"] != identity), None)
  if other is not None:
    raise ValueError(
      f"{other['file']} was made by model {other['model_id']}, and {model.path} is {identity}"
    )
  groups: dict[str, list[int]] = {}
  for i, entry in enumerate(entries):
    same = (entry["kind"], entry["settings"], entry.get("num_frames"), entry.get("first_frame"))
    groups.setdefault(json.dumps(same, sort_keys=True), []).append(i)
  for members in groups.values():
    for start in range(0, len(members), batch_size):
      here = members[start : start + batch_size]
      yield list(zip(here, _draw(model, [entries[i] for i in here], on_progress)))


def _draw(model, entries: list[dict[str, Any]], on_progress) -> np.ndarray:
  first = entries[0]
  common = dict(
    seed=[entry["seed"] for entry in entries],
    batch_size=len(entries),
    on_progress=on_progress,
    **first["settings"],
  )
  prompts = [conversation(entry["prompt"], pathlib.Path()) for entry in entries]
  if first["kind"] == "image":
    return model.generate_images(prompts, **common)
  given = first.get("first_frame")
  return model.generate_videos(
    prompts, num_frames=first["num_frames"], first_frames=given and [given] * len(prompts), **common
  )
