"""VBench (Huang et al. 2024), table 6: videos for its prompts, and its total scores.

VBench's sixteen dimensions are measured by its own package in its own environment (on one GPU:
several aggregate some dimensions differently). Here videos are made under the names it looks for,
and what it found (*_eval_results.json) becomes quality, semantic and total.
"""

import importlib.util
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vilau_jax.data import media
from vilau_jax.evaluate import drawing_tasks
from vilau_jax.evaluate.drawing_tasks import Wish
from vilau_jax.evaluate.task import (
  Found,
  Options,
  Request,
  Scores,
  field,
  find_optional,
  numbered,
  pick,
  read_json,
)

# dimension -> (least, greatest) of the official normalisation.
QUALITY = {
  "subject consistency": (0.1462, 1.0), "background consistency": (0.2615, 1.0),
  "temporal flickering": (0.6293, 1.0), "motion smoothness": (0.706, 0.9975),
  "aesthetic quality": (0.0, 1.0), "imaging quality": (0.0, 1.0), "dynamic degree": (0.0, 1.0),
}  # fmt: skip
SEMANTIC = {
  "object class": (0.0, 1.0), "multiple objects": (0.0, 1.0), "human action": (0.0, 1.0),
  "color": (0.0, 1.0), "spatial relationship": (0.0, 1.0), "scene": (0.0, 0.8222),
  "appearance style": (0.0009, 0.2855), "temporal style": (0.0, 0.364),
  "overall consistency": (0.0, 0.364),
}  # fmt: skip
WEIGHTS = dict.fromkeys((*QUALITY, *SEMANTIC), 1.0) | {"dynamic degree": 0.5}
VIDEOS, FLICKERING_VIDEOS = 5, 25  # a prompt
FPS = 8


class Vbench:
  """Data: VBench_full_info.json (or an installed vbench). Videos go to videos/PROMPT-0.mp4, all
  in one folder. --external_scores: folder of *_eval_results.json, or one such file."""

  name = "vbench"

  def __init__(self, data: pathlib.Path, options: Options):
    options.check(self.name, ("external_scores", "cfg_scales", "num"))
    self.data, self.options = data, options
    self.protocol = pick("protocol", options.protocol, ("vbench",))
    self.split = pick("split", options.split, ("all",))
    if len(options.cfg_scales) > 1:
      raise ValueError(f"{self.name} draws with one --cfg_scales, got {options.cfg_scales}")
    self.scale = options.cfg_scales[0] if options.cfg_scales else None
    self.settings: dict[str, Any] = {"cfg_scale": self.scale, "fps": FPS, "num": options.num}
    self.sources: list[pathlib.Path] = []

  def requests(self) -> list[Request]:
    path = self._info()
    self.sources = [path]
    wanted: dict[str, int] = {}
    for i, row in enumerate(read_json(path)):
      prompt, dimensions = (
        field(row, k, f"{path}, record {i}") for k in ("prompt_en", "dimension")
      )
      count = FLICKERING_VIDEOS if "temporal_flickering" in dimensions else VIDEOS
      wanted[prompt] = max(wanted.get(prompt, 0), self.options.num or count)
    requests = []
    for prompt, count in wanted.items():
      if "/" in prompt or "\0" in prompt:
        raise ValueError(f"{path}: the prompt {prompt!r} can't be the name of a file")
      for i in range(count):
        wish = Wish(
          prompt, f"videos/{prompt}-{i}.mp4", self.options.seed + len(requests), self.scale
        )
        requests.append(Request(f"{prompt}-{i}", wish))
    return numbered(requests, str(path))

  def _info(self) -> pathlib.Path:
    path = find_optional(self.data, "VBench_full_info.json")
    package = importlib.util.find_spec("vbench")
    if path is None and package is not None:
      path = pathlib.Path(package.origin).parent / "VBench_full_info.json"
    if path is None:
      raise ValueError(f"{self.data} lacks the annotations: VBench_full_info.json")
    return path

  def predict(
    self, model, requests: Sequence[Request], directory: pathlib.Path
  ) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    write = lambda frames, path: media.write_video(frames, path, FPS)  # noqa: E731
    rows = drawing_tasks.draw(
      model, requests, directory, self.options.batch_size, video=True, write=write
    )
    return rows, {}

  def adopt(self, rows, requests):
    raise ValueError(f"{self.name} can't be scored from a file of answers; give --model")

  def score(self, requests: Sequence[Request], found: Found) -> Scores:
    check_folder(found.directory / "videos", [pathlib.Path(r.content.file).name for r in requests])
    if self.options.external_scores is None:
      note = f"no scores: run vbench on {found.directory / 'videos'} and give --external_scores"
      return Scores({}, len(requests), partial=note)
    raw = read_results(pathlib.Path(self.options.external_scores))
    lacking = [name for name in WEIGHTS if name not in raw]
    if lacking:
      note = f"VBench's results lack {', '.join(lacking)}: no total without them"
      return Scores({}, len(requests), categories={"raw": raw}, partial=note)
    scores = totals(raw)
    metrics = {name: 100 * scores[name] for name in ("total", "quality", "semantic")}
    normal = {name: 100 * normalised(name, value) for name, value in raw.items()}
    return Scores(metrics, len(requests), categories={"raw": raw, "dimension": normal})


def normalised(dimension: str, raw: float) -> float:
  """Between the official least and greatest value; not clipped, as in the original."""
  low, high = (QUALITY | SEMANTIC)[dimension]
  return (raw - low) / (high - low)


def totals(raw: Mapping[str, float]) -> dict[str, float]:
  """quality, semantic and total of all sixteen dimensions.

  Raises:
    ValueError: if one is missing; the original would count it as 0 before normalising.
  """
  missing = [name for name in WEIGHTS if name not in raw]
  if missing:
    raise ValueError(f"VBench's total needs every dimension; missing: {', '.join(missing)}")
  parts = {}
  for name, dimensions in (("quality", QUALITY), ("semantic", SEMANTIC)):
    weight = sum(WEIGHTS[d] for d in dimensions)
    parts[name] = sum(normalised(d, raw[d]) * WEIGHTS[d] for d in dimensions) / weight
  return parts | {"total": total(parts["quality"], parts["semantic"])}


def total(quality: float, semantic: float) -> float:
  return (4 * quality + semantic) / 5


def read_results(path: pathlib.Path) -> dict[str, float]:
  """Raw scores by dimension from VBench's files, {dimension: [score, per video]}.

  Raises:
    ValueError: if there is none, one is broken, or two give one dimension.
  """
  files = sorted(path.glob("*_eval_results.json")) if path.is_dir() else [path]
  if not files or not files[0].is_file():
    raise ValueError(f"no *_eval_results.json at {path}")
  raw: dict[str, float] = {}
  for file in files:
    for key, value in read_json(file).items():
      name = key.replace("_", " ")
      if name not in WEIGHTS:
        raise ValueError(f"{file}: unknown dimension {key!r}")
      if name in raw:
        raise ValueError(f"{file}: {key} appears twice in {path}")
      raw[name] = float(value[0] if isinstance(value, list) else value)
  return raw


def check_folder(folder: pathlib.Path, names: Sequence[str]) -> None:
  """Refuses a folder of videos that VBench would misread: it takes the suffix of the first entry
  for all, and every name for a prompt.

  Raises:
    ValueError: naming what is missing or does not belong there.
  """
  there = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
  missing, extra = sorted(set(names) - there), sorted(there - set(names))
  if missing or extra:
    raise ValueError(f"{folder}: missing {missing[:3]} ({len(missing)}), not VBench's {extra[:3]} "
                     f"({len(extra)})")  # fmt: skip


def prompt_of(file: str) -> str:
  """The prompt that VBench reads from a file's name."""
  return re.sub(r"(-\d+)?\.\w+$", "", pathlib.Path(file).name)


def action_of(file: str) -> str:
  """The label of human_action: behind "person is ", up to the first dash or underscore."""
  stem = pathlib.Path(file).stem
  return re.split(r"[-_]", stem.lower().split("person is ")[-1])[0]
