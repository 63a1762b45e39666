"""The scenes of emoji.py as records: train_scenes, train_videos, test_scenes and test_videos."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

from vilau_jax.data import imports, media
from vilau_jax.data.formats import emoji, sprites
from vilau_jax.data.formats.emoji import Canvas, Scene

SCENES = 1024  # of a piece: whole batches for the tower
_DRAWN = {"scenes": emoji.pictures, "videos": emoji.videos}


def plans(
  source: None = None,
  *,
  scenes: int = 8000,
  videos: int = 1500,
  test_scenes: int = 520,
  test_videos: int = 240,
  seed: int = 0,
  size: int = 60,
) -> dict[str, imports.Plan]:
  """Records of kind "i2t" (pictures) and "t2v" (videos), with all questions and the scene itself.

  Args:
    source: None; the sprites come with the package.
    size: side of the pictures, a multiple of 5.

  Raises:
    ValueError: for a source, a count below 1, or another size.
  """
  if source is not None:
    raise ValueError(f"emoji scenes are made, not read: leave --source={source} out")
  counts = dict(
    train_scenes=scenes, train_videos=videos, test_scenes=test_scenes, test_videos=test_videos
  )
  canvas, files = Canvas.of_size(size), {"sprites": sprites.digest()}
  return {part: _plan(part, count, seed, canvas, files) for part, count in counts.items()}


def _plan(part: str, count: int, seed: int, canvas: Canvas, files) -> imports.Plan:
  if count < 1:
    raise ValueError(f"--{part.removeprefix('train_')} must be at least 1, got {count}")
  return imports.Plan(
    format="emoji",
    settings={"part": part, "count": count, "seed": seed, "canvas": dataclasses.asdict(canvas)},
    source="emoji",
    files=files,
    pieces=functools.partial(imports.numbered, part, count, SCENES),
    convert=functools.partial(_convert, part, seed, canvas),
    weight=count,
  )


def _convert(
  part: str, seed: int, canvas: Canvas, payload: tuple[int, int]
) -> Iterator[dict[str, Any]]:
  start, stop = payload
  split, what = part.split("_")
  drawn = _DRAWN[what](stop, split, seed, canvas, start)
  for number, scene in enumerate(drawn, start):
    yield to_record(scene, f"{part}/{number:06}")


def to_record(scene: Scene, name: str, source: str = "emoji") -> dict[str, Any]:
  """A scene as it is stored: caption, PNG pictures, all questions, and the scene itself."""
  asked = emoji.questions(scene)
  record = {
    "kind": "i2t",
    "id": name,
    "source": source,
    "caption": emoji.caption(scene),
    "wrong_captions": emoji.wrong_captions(scene),
    "conversations_from": ["human", "gpt"] * len(asked),
    "conversations_value": [text for q in asked for text in (q.text, q.answer)],
    "scene": scene.to_json(),
  }
  shown = emoji.video(scene) if scene.kind == "video" else emoji.render(scene)[None]
  encoded = [media.encode_png(image) for image in shown]
  record["width"] = record["height"] = [scene.canvas.size] * len(encoded)
  if scene.kind != "video":
    return {**record, "images": encoded}
  count = len(encoded)
  moving = dict(kind="t2v", frames=encoded, frame_index=list(range(count)), n_frames=count, fps=4.0)
  return {**record, **moving}
