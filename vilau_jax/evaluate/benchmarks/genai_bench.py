"""GenAI-Bench (Li et al. 2024), table 5: VQAScore of drawings by skill.

The score comes from CLIP-FlanT5, which lives in its own environment (t2v-metrics 3.0): drawings are
written as its scripts expect, vqascore.py scores them there, and the scores are read and averaged
here. Where t2v_metrics can be imported, it is called.
"""

import importlib.util
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vilau_jax.data import media
from vilau_jax.evaluate import drawing_tasks, vqascore
from vilau_jax.evaluate.drawing_tasks import Wish
from vilau_jax.evaluate.task import (
  Found,
  Options,
  Request,
  Scores,
  field,
  find_file,
  mean,
  numbered,
  pick,
  read_json,
)

BASIC = ("attribute", "scene", "spatial relation", "action relation", "part relation", "basic")
ADVANCED = ("counting", "comparison", "differentiation", "negation", "universal", "advanced")
MODEL = "vilau_jax"
QUALITY = 95  # of the JPEGs; the official generator's is Pillow's 75


class GenaiBench:
  """Data: genai_image.json and genai_skills.json (of the 527 or the 1600 prompts). Drawings go to
  images/vilau_jax/00000.jpeg. --external_scores: JSON {index: score}, or a .pt list."""

  name = "genai-bench"

  def __init__(self, data: pathlib.Path, options: Options):
    options.check(self.name, ("external_scores", "cfg_scales"))
    self.data, self.options = data, options
    self.protocol = pick("protocol", options.protocol, ("vqascore",))
    self.split = pick("split", options.split, ("527", "1600"))
    if len(options.cfg_scales) > 1:
      raise ValueError(f"{self.name} draws with one --cfg_scales, got {options.cfg_scales}")
    self.scale = options.cfg_scales[0] if options.cfg_scales else None
    self.settings: dict[str, Any] = {"cfg_scale": self.scale, "jpeg_quality": QUALITY}
    self.sources: list[pathlib.Path] = []

  def requests(self) -> list[Request]:
    paths = [find_file(self.data, f"genai_{kind}.json") for kind in ("image", "skills")]
    self.sources = paths
    self.skills = read_json(paths[1])
    requests = []
    for i, (name, row) in enumerate(read_json(paths[0]).items()):
      prompt = field(row, "prompt", f"{paths[0]}, {name}")
      file = f"images/{MODEL}/{int(name):05d}.jpeg"
      requests.append(
        Request(name, Wish(prompt, file, self.options.seed + i, self.scale), int(name))
      )
    known = {r.truth for r in requests}
    for skill in (*BASIC, *ADVANCED):
      unknown = set(map(int, field(self.skills, skill, str(paths[1])))) - known
      if unknown:
        raise ValueError(f"{paths[1]}: {skill} names prompt {min(unknown)}, which {paths[0]} lacks")
    return numbered(requests, str(paths[0]))

  def predict(
    self, model, requests: Sequence[Request], directory: pathlib.Path
  ) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    rows = drawing_tasks.draw(
      model, requests, directory, self.options.batch_size, video=False, write=_write_jpeg
    )
    return rows, {}

  def adopt(self, rows, requests):
    raise ValueError(f"{self.name} can't be scored from a file of answers; give --model")

  def score(self, requests: Sequence[Request], found: Found) -> Scores:
    if self.options.external_scores is not None:
      scores = read_scores(self.options.external_scores)
    elif importlib.util.find_spec("t2v_metrics") is not None:
      wanted = [(str(found.directory / r.content.file), r.content.prompt) for r in requests]
      scores = dict(zip((r.truth for r in requests), vqascore.official_scores(wanted)))
    else:
      note = (
        f"no scores: run `python {vqascore.__file__} {found.directory}` in an environment of "
        f"t2v-metrics 3.0, then give --external_scores={found.directory / vqascore.FILE}"
      )
      return Scores({}, len(requests), partial=note)
    known = {r.truth for r in requests}
    unknown, lacking = set(scores) - known, known - set(scores)
    if unknown or lacking:
      raise ValueError(
        f"{self.options.external_scores}: scores for unknown prompts {sorted(unknown)[:3]}, none "
        f"for {sorted(lacking)[:3]}"
      )
    skills = {k: [i for i in map(int, v) if i in scores] for k, v in self.skills.items()}
    means = {k: by_skill(scores, v) for k, v in skills.items() if v}
    metrics = {k: means[k] for k in (*BASIC, *ADVANCED) if k in means}
    metrics["all"] = by_skill(scores, {*skills["basic"], *skills["advanced"]})
    return Scores(metrics, len(requests))


def by_skill(scores: Mapping[int, float], prompts) -> float:
  """Mean over the prompts that carry a tag (basic and advanced are tags, not means of columns)."""
  return mean(scores[i] for i in sorted(set(prompts)))


def geometric_mean(logits: np.ndarray, labels: Sequence[int]) -> float:
  """exp of minus the mean cross-entropy of the answer's tokens, its end included: what the code of
  CLIP-FlanT5 returns, the geometric mean of the tokens' probabilities.

  Args:
    logits: [tokens, vocabulary].
    labels: [tokens], the answer and its end.
  """
  logits = np.asarray(logits, np.float64)
  logs = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
  logs -= logits.max(-1, keepdims=True)
  return float(np.exp(np.mean([row[label] for row, label in zip(logs, labels, strict=True)])))


def read_scores(file: str) -> dict[int, float]:
  """Scores by prompt: JSON {index: score} or a list, or t2v-metrics' .pt tensor (needs torch).

  Raises:
    ValueError: for something else.
  """
  path = pathlib.Path(file)
  if not path.is_file():
    raise ValueError(f"no scores at {path}")
  if path.suffix == ".pt":
    import torch

    content = torch.load(path, map_location="cpu", weights_only=True).reshape(-1).tolist()
  else:
    content = read_json(path)
  items = content.items() if isinstance(content, dict) else enumerate(content)
  try:
    return {int(k): float(v) for k, v in items}
  except (TypeError, ValueError) as error:
    raise ValueError(f"{path}: must hold a score for each prompt's index: {error}") from error


def _write_jpeg(picture: np.ndarray, path: pathlib.Path) -> None:
  media.open_image(picture).save(path, quality=QUALITY)
