"""What benchmarks of drawings share: pictures for prompts, written as files where the official
tools look for them."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vilau_jax.evaluate.task import Request


@dataclasses.dataclass(frozen=True)
class Wish:
  """A picture or video to make.

  Attributes:
    prompt: what to draw.
    file: where it goes, below the output.
    seed: of this one.
    cfg_scale: guidance; None takes the model's.
  """

  prompt: str
  file: str
  seed: int
  cfg_scale: float | None = None


def sampling_settings(model) -> dict[str, Any]:
  """The model's own, for scores.json."""
  return dataclasses.asdict(model.config.sampling)


def draw(
  model, requests: Sequence[Request], directory: pathlib.Path, batch: int, *, video: bool, write
) -> list[dict[str, Any]]:
  """Draws the wishes of the requests, those of one guidance together.

  Args:
    write: (uint8 picture or frames, path) -> None.

  Returns:
    A row a request: prompt, file, seed, settings.
  """
  rows: dict[str, dict[str, Any]] = {}
  by_scale: dict[float | None, list[Request]] = {}
  for request in requests:
    by_scale.setdefault(request.content.cfg_scale, []).append(request)
  for scale, here in by_scale.items():
    wishes = [r.content for r in here]
    make = model.generate_videos if video else model.generate_images
    drawn = make(
      [w.prompt for w in wishes], cfg_scale=scale, seed=[w.seed for w in wishes], batch_size=batch
    )
    settings = sampling_settings(model) | ({} if scale is None else {"cfg_scale": scale})
    for request, wish, picture in zip(here, wishes, drawn, strict=True):
      _place(picture, directory / wish.file, write)
      rows[request.id] = {"prompt": wish.prompt, "file": wish.file, "seed": wish.seed,
                          "settings": settings}  # fmt: skip
  return [rows[request.id] for request in requests]


def _place(picture: np.ndarray, path: pathlib.Path, write) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  write(picture, path)
