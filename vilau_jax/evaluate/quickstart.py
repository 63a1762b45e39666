"""Every figure of the quickstart, its report.json and its report.html."""

import dataclasses
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

from vilau_jax import api
from vilau_jax.data.formats import emoji
from vilau_jax.data.records import INFO
from vilau_jax.evaluate import drawing, reading, report, runs, seeing
from vilau_jax.evaluate.figures import Scores
from vilau_jax.evaluate.parts import Part, Parts, replacing
from vilau_jax.evaluate.scenes import Judge
from vilau_jax.evaluate.sets import PARTS, Sets
from vilau_jax.models.vilau import describe_parameters

VERSION = 1  # of what is measured; parts of another version are computed again


@dataclasses.dataclass(frozen=True)
class Sizes:
  """How many samples each figure takes, at most; what the test sets hold bounds it too."""

  pictures: int = 400
  retrieval: int = 150
  questions: int = 100_000  # pictures whose questions are asked
  drawings: int = 520
  videos: int = 240
  validation: int = 64
  video_validation: int = 32
  shapes: int = 64
  sheet: int = 8


# Equal numbers share compiled programs.
SMOKE = Sizes(
  pictures=8,
  retrieval=8,
  questions=8,
  drawings=8,
  videos=8,
  validation=8,
  video_validation=8,
  shapes=8,
  sheet=8,
)


@dataclasses.dataclass(frozen=True)
class Result:
  """Where the report is, what it holds, and all figures."""

  page: pathlib.Path
  figures: pathlib.Path
  scores: Scores


def run(
  model: str | os.PathLike,
  data: str | os.PathLike,
  output: str | os.PathLike,
  *,
  runs_directory: str | os.PathLike | None = None,
  seed: int = 0,
  smoke: bool = False,
  say: Callable[[str], None] = print,
) -> Result:
  """Measures a quickstart model; goes on where an interrupted evaluation stopped.

  Args:
    model: the final workdir, or a model directory.
    data: holds emoji/ and easy_vqa/.
    output: report.html, report.json and parts/ go there.
    runs_directory: where the stages' metrics and times lie; None = beside the model.
    seed: of the drawings and of the choice of validation prompts.
    smoke: a few samples of everything.
    say: gets progress lines.

  Raises:
    ValueError: if the model lacks a component, or data are missing.
  """
  began = time.monotonic()
  runs_directory = pathlib.Path(runs_directory or pathlib.Path(model).parent)
  output = pathlib.Path(output)
  loaded = api.load(model)
  _check(loaded)
  sizes = SMOKE if smoke else Sizes()
  sets = Sets(data, loaded.config.tower.image_size, limit=SMOKE.pictures if smoke else 0)
  stamp = {
    "version": VERSION, "model": loaded.identity(), "data": _data_identity(sets.root),
    "seed": seed, "sizes": dataclasses.asdict(sizes),
  }  # fmt: skip
  store = Parts(output / "parts", stamp, say)
  parts = measure(loaded, sets, store, sizes, seed)
  scores = collect(parts)
  own = time.monotonic() - began - store.computed_seconds + store.all_seconds
  facts = _facts(loaded, sets, os.fspath(model), runs_directory, own, smoke, seed)
  total = sum(facts.stages.values())
  scores.add("minutes_total", total / 60, len(facts.stages))
  with replacing(output / "report.html") as temporary:
    temporary.write_text(report.build(facts, scores, parts), encoding="utf-8")
  with replacing(output / "report.json") as temporary:
    content = json.dumps(_json(facts, scores, parts), indent=1, ensure_ascii=False)
    temporary.write_text(content + "\n", encoding="utf-8")
  return Result(output / "report.html", output / "report.json", scores)


def measure(model: api.VilaU, sets: Sets, store: Parts, sizes: Sizes, seed: int) -> dict[str, Part]:
  """All parts, each computed or found finished."""
  judge = Judge.of(sets.canvas)
  hand = drawing.Hand(model, judge, seed)
  scenes, videos = sets.scenes, sets.videos
  parts: dict[str, Part] = {}

  def part(name: str, compute) -> None:
    parts[name] = store.get(name, compute)

  part("pictures", lambda: seeing.pictures(model, sets, judge, most=sizes.pictures))
  part("retrieval", lambda: seeing.retrieval(model, scenes, most=sizes.retrieval))
  part("easy_vqa", lambda: reading.easy_vqa(model, sets.easy_vqa.first(sizes.questions)))
  part("questions", lambda: reading.scenes(model, scenes.first(sizes.questions)))
  part("videos_read", lambda: reading.videos(model, videos.first(sizes.videos)))
  validation = sets.validation("scenes", sizes.validation, seed)
  part("settings", lambda: drawing.image_settings(hand, validation))
  wish = parts["settings"].values["chosen"]
  part("drawings", lambda: drawing.drawings(hand, scenes.first(sizes.drawings), wish))
  part("sheet", lambda: drawing.sheet(hand, scenes, wish["temperature"], prompts=sizes.sheet))
  part("shapes", lambda: drawing.shapes(hand, sets.easy_vqa.first(sizes.shapes), wish))
  moving = sets.validation("videos", sizes.video_validation, seed)
  part("video_settings", lambda: drawing.video_settings(hand, moving, wish["temperature"]))
  wish = parts["video_settings"].values["chosen"]
  part("videos", lambda: drawing.videos(hand, videos.first(sizes.videos), wish))
  return parts


def collect(parts: dict[str, Part]) -> Scores:
  """The figures under their names, from the parts."""
  scores = Scores()
  pictures = parts["pictures"].values
  for name, psnr in pictures["psnr"].items():
    scores.add(f"psnr_{name}", psnr["value"], psnr["n"])
  for depth, (used, perplexity) in enumerate(
    zip(pictures["codes"]["used"], pictures["codes"]["perplexity"]), 1
  ):
    scores.add(f"codes_used_{depth}", used, pictures["codes"]["positions"])
    scores.add(f"perplexity_{depth}", perplexity, pictures["codes"]["positions"])
  for key in ("ground_truth", "ceiling", "shuffled"):
    judged = pictures["judge"][key]
    scores.add(f"scorer_{key}_all", judged["all"], judged["n"])
    for name in ("background", "object", "count", "pairs"):
      scores.add(
        f"scorer_{key}_{name}", judged[name], judged["n_pairs" if name == "pairs" else "n"]
      )
  found = parts["retrieval"].values
  for k in (1, 5):
    chance = min(1.0, k / found["n"])
    scores.add(f"retrieval_at_{k}", found[f"at_{k}"], found["n"], chance)
  _collect_reading(scores, parts)
  _collect_drawing(scores, parts)
  return scores


def _collect_reading(scores: Scores, parts: dict[str, Part]) -> None:
  def add(prefix: str, whole: str, kinds: dict[str, Any]) -> None:
    for kind, found in kinds.items():
      name = whole if kind == "all" else f"{prefix}_{kind}"
      scores.add(name, found["value"], found["n"], found["text_only"], "text only")

  easy = parts["easy_vqa"].values["kinds"]
  add("easy_vqa", "easy_vqa_accuracy", easy)
  scores.add("easy_vqa_text_only", easy["all"]["text_only"], easy["all"]["n"])
  questions = parts["questions"].values
  add("qa", "qa_accuracy", questions["kinds"])
  add("caption_exact", "caption_exact", questions["captions"])
  videos = parts["videos_read"].values
  n = videos["n"]
  scores.add("video_to_text_direction", videos["direction"], n, 1 / len(emoji.DIRECTIONS))
  scores.add("video_to_text_object", videos["object"], n, 1 / len(emoji.OBJECTS))
  scores.add("video_to_text_exact", videos["exact"], n)
  add("video_qa", "video_qa_accuracy", videos["kinds"])


def _collect_drawing(scores: Scores, parts: dict[str, Part]) -> None:
  drawings = parts["drawings"].values
  luck = "luck"  # a true picture of another prompt
  for name, of in (
    ("background", "n"), ("object", "n"), ("count", "n"), ("all", "n"),
    ("all_count_scenes", "n_count_scenes"), ("pairs", "n_pairs"),
  ):  # fmt: skip
    rates = drawings["rates"]
    scores.add(f"t2i_{name}", rates[name], rates[of], drawings["chance"][name], luck)
  for kind, rates in drawings["by_kind"].items():
    for name in ("object", "count", "all"):
      scores.add(f"t2i_{kind}_{name}", rates[name], rates["n"])
  shapes = parts["shapes"].values
  for name in ("color", "shape", "all"):
    scores.add(f"t2i_easy_vqa_{name}", shapes["drawn"][name], shapes["n"], shapes["chance"][name])
    scores.add(f"t2i_easy_vqa_{name}_ceiling", shapes["ceiling"][name], shapes["n"])
  videos = parts["videos"].values
  for name in ("background", "object", "direction", "all"):
    rates = videos["rates"]
    scores.add(f"t2v_{name}", rates[name], rates["n"], videos["chance"][name], luck)
    scores.add(f"t2v_{name}_ceiling", videos["ceiling"][name], rates["n"])
  scores.add("t2v_all_truth", videos["truth"]["all"], videos["truth"]["n"])


def _check(model: api.VilaU) -> None:
  c = model.config
  lacking = [name for name in ("tower", "llm", "depth") if getattr(c, name) is None]
  if lacking or c.tower.vision is None or model.tower_tokenizer_path is None:
    what = ", ".join(lacking) or "text side of the tower"
    raise ValueError(
      f"{model.path} has no {what}; evaluate the last stage of a quickstart run, for example "
      "--model=runs/quickstart/finetune"
    )


def _data_identity(root: pathlib.Path) -> str:
  digest = hashlib.sha256()
  for part in PARTS:
    digest.update((root / part / INFO).read_bytes())
  return digest.hexdigest()[:16]


def _facts(model, sets, typed, runs_directory, own_seconds, smoke, seed) -> report.Facts:
  tower = model.config.tower
  return report.Facts(
    model=typed,
    parameters={k: v for k, v in describe_parameters(model.config).items() if v},
    geometry={
      "picture": f"{tower.image_size} × {tower.image_size} pixels",
      "grid": f"{tower.grid} × {tower.grid} cells",
      "codes a cell": str(tower.quantizer.depth),
      "codebook": f"{tower.quantizer.entries} entries",
      "video": f"{model.config.video_frames} frames",
    },
    stages={**runs.seconds(runs_directory), "evaluate": own_seconds},
    curves=runs.curves(runs_directory),
    samples=runs.samples(runs_directory),
    scenes=_how_scenes_are_made(sets),
    smoke=smoke,
    seed=seed,
  )


def _how_scenes_are_made(sets: Sets) -> tuple[str, ...]:
  canvas, counts = sets.canvas, sets.counts
  return (
    f"A scene is {canvas.size} × {canvas.size} pixels: one of {len(emoji.BACKGROUNDS)} plain "
    f"backgrounds ({', '.join(emoji.BACKGROUNDS)}) and {len(emoji.OBJECTS)} kinds of object, flat "
    f"emoji of {canvas.sprite} pixels: {', '.join(emoji.OBJECTS)}.",
    f"{100 * (1 - emoji.PAIRS):.0f}% of the scenes show one to three of a kind, the others two "
    "different objects, one to the left of the other. Captions say exactly what is there.",
    f"A simplification that helps: objects stand on a lattice of {canvas.lattice} pixels. They "
    "never overlap and are never cut off, rotated or scaled.",
    f"A video has {canvas.frames} frames; one object moves {canvas.lattice} pixels a frame to the "
    "left, to the right, up or down.",
    f"Held out are whole combinations, one in {emoji.HELD_OUT}: object, background and number; two "
    "objects and background; object, background and direction. Test scenes and prompts show only "
    "those; every word of them occurs in training.",
    f"Here: {counts['emoji/train_scenes']} training scenes, {counts['emoji/test_scenes']} held-out "
    f"scenes, {counts['emoji/test_videos']} held-out videos, and the pictures and questions of "
    "easy-VQA 1.0 (MIT) with their published split. Sprites: Fluent Emoji, MIT, Microsoft.",
  )


def _json(facts: report.Facts, scores: Scores, parts: dict[str, Part]) -> dict[str, Any]:
  """Figures under their own names; what belongs to them under "n", "without" and so on."""
  return {
    **scores.values,
    "n": scores.n,
    "without": scores.floors,
    "settings": {"images": parts["settings"].values, "videos": parts["video_settings"].values},
    "psnr_by_depth": parts["pictures"].values["psnr_by_depth"],
    "confusion": parts["drawings"].values["confusion"],
    "parameters": facts.parameters,
    "geometry": facts.geometry,
    "stage_seconds": {name: round(s, 1) for name, s in facts.stages.items()},
    "seed": facts.seed,
    "smoke": facts.smoke,
    "model": facts.model,
  }
