"""report.html of the quickstart: one self-contained page from the finished parts."""

import dataclasses
from typing import Any

import numpy as np

from vilau_jax.evaluate import charts, exhibits, page
from vilau_jax.evaluate.figures import GROUPS, Scores
from vilau_jax.evaluate.parts import Part

TITLE = "vilau_jax quickstart: a small VILA-U, trained here"


@dataclasses.dataclass(frozen=True)
class Facts:
  """What the page tells beside the figures.

  Attributes:
    model: path of the model as the user typed it, for the commands.
    parameters: component -> count, with "total".
    geometry: short words -> value, for example "picture" -> "60 x 60".
    stages: stage -> seconds of computing, in order.
    curves: stage -> metric -> (steps, values).
    samples: stage -> step -> picture that training wrote.
    scenes: how the scenes are made, in the words of the data format; one string a sentence.
    smoke: few samples; the figures mean nothing.
    seed: of the evaluation.
  """

  model: str
  parameters: dict[str, int]
  geometry: dict[str, str]
  stages: dict[str, float]
  curves: dict[str, dict[str, tuple[list[float], list[float]]]]
  samples: dict[str, dict[int, np.ndarray]]
  scenes: tuple[str, ...]
  smoke: bool
  seed: int


def build(facts: Facts, scores: Scores, parts: dict[str, Part]) -> str:
  """The page as a string."""
  return page.document(
    TITLE,
    [
      _opening(facts, scores, parts),
      exhibits.drawings(parts),
      exhibits.films(parts),
      exhibits.reading(parts),
      _table(scores),
      exhibits.reconstructions(parts),
      exhibits.codes(parts),
      exhibits.guidance(parts),
      exhibits.confusion(parts),
      _training(facts),
      _judge(facts, scores, parts),
      _next(facts, parts),
    ],
  )


def _opening(facts: Facts, scores: Scores, parts: dict[str, Part]) -> str:
  total = facts.parameters["total"] / 1e6
  names = (
    ("drawings", "Drawings"), ("films", "Videos"), ("reading", "Answers"), ("figures", "Figures"),
    ("reconstructions", "Reconstructions"), ("guidance", "Guidance"), ("training", "Training"),
    ("judge", "The judge"), ("next", "What to type next"),
  )  # fmt: skip
  value = scores.values
  cells = [
    (f"{value['minutes_total']:.1f} min", "computing from the raw pictures to this page"),
    (f"{total:.2f} M", "parameters, trained from nothing"),
    (_percent(value["t2i_object"]), "drawings with the right objects"),
    (_percent(value["t2v_direction"]), "drawn videos that move the right way"),
    (_percent(value["qa_accuracy"]), "questions about unseen scenes answered"),
    (_percent(value["easy_vqa_accuracy"]), "of easy-VQA's published test questions"),
  ]
  warning = (
    [page.paragraph("<b>Smoke run:</b> every stage ran for a few steps only. The figures say that "
                    "the path works, nothing about quality.", "bad")]
    if facts.smoke else []
  )  # fmt: skip
  return "\n".join(
    [
      f"<h1>{page.escape(TITLE)}</h1>",
      *warning,
      page.paragraph(
        "One model that reads and writes text, pictures and short videos. A vision tower turns "
        "each picture into a grid of residual codes that are aligned with text and can be decoded "
        "back to pixels; a Llama-style language model reads and predicts words and codes alike, "
        "and a small depth transformer picks the "
        f"{page.escape(facts.geometry['codes a cell'])} codes of each grid cell. It is the "
        "architecture of VILA-U (arXiv 2409.04429), small enough to be trained on this machine."
      ),
      page.tiles(cells),
      "<nav>" + "".join(f'<a href="#{n}">{w}</a>' for n, w in names) + "</nav>",
      page.paragraph(
        " · ".join(f"{page.escape(k)}: {page.escape(v)}" for k, v in facts.geometry.items()),
        "soft small",
      ),
    ]
  )


def _table(scores: Scores) -> str:
  rows: list[Any] = []
  for group, figures in GROUPS.items():
    rows.append(page.escape(group))
    for figure in figures:
      if figure.name not in scores.values:
        continue
      value = f"<b>{scores.shown(figure)}</b>" if figure.headline else scores.shown(figure)
      error = scores.error(figure)
      name = figure.name.replace("_", "_<wbr>")  # may break there on a phone
      rows.append((
        f'{page.escape(figure.words)}<br><code class="soft">{name}</code>',
        value + (f'<br><span class="soft small">{error}</span>' if error else ""),
        page.escape(scores.floor(figure)),
        str(scores.n[figure.name]),
      ))  # fmt: skip
  return page.section(
    "figures",
    "Every figure",
    page.paragraph(
      "All on data that training has not seen; ± is one standard error. The column “without” says "
      "what the same samples give without the skill: text only is the most frequent answer to each "
      "question, whatever the picture; luck is the true picture or video of another prompt; chance "
      "is one of so many."
    ),
    page.table(["what", "value", "without", "n"], rows, right={1, 3}),
  )


def _training(facts: Facts) -> str:
  curves = [
    charts.lines(f"Losses, {stage}", series, x="step", y="loss", log=True)
    for stage, series in facts.curves.items()
    if series
  ]
  blocks = []
  for stage, samples in facts.samples.items():
    cells = [
      (page.picture(image, f"{stage}, step {step}"), f"{page.escape(stage)}, step {step}")
      for step, image in samples.items()
    ]
    if cells:
      blocks += [f"<h3>Samples while training, {page.escape(stage)}</h3>",
                 page.gallery(cells, cell=260)]  # fmt: skip
  total = sum(facts.stages.values()) or 1.0
  rows = [(page.escape(name), f"{s:.0f} s", f"{100 * s / total:.0f}%")
          for name, s in facts.stages.items()]  # fmt: skip
  return page.section(
    "training",
    "Training",
    page.chart_row(curves) if curves else page.paragraph("No metrics.jsonl found.", "soft"),
    *blocks,
    "<h3>Where the time went</h3>",
    page.table(["stage", "time", "share"], rows, right={1, 2}),
    page.paragraph(
      "Parameters: " + ", ".join(
        f"{page.escape(name)} {count:,}" for name, count in facts.parameters.items()) + ".",
      "soft small",
    ),
  )  # fmt: skip


def _judge(facts: Facts, scores: Scores, parts: dict[str, Part]) -> str:
  judge = parts["pictures"].values["judge"]
  names = ("background", "object", "count", "pairs", "all")
  rows = [
    (words, *(_percent(judge[key][name]) for name in names))
    for key, words in (
      ("ground_truth", "true pictures"),
      ("ceiling", "true pictures through the codes and back"),
      ("shuffled", "true pictures of other prompts"),
    )
  ]
  return page.section(
    "judge",
    "How the scenes are made, and what the judge can see",
    page.bullets(page.escape(sentence) for sentence in facts.scenes),
    page.paragraph(
      "The judge is no network. It takes the palette colour nearest to the border as background, "
      "tries every sprite at every place of the slightly smoothed picture at half resolution, "
      "takes the one that explains most if it explains at least 40% of itself, blanks its window, "
      "and goes on. It can tell which objects are there, how many, where, and the background. It "
      "cannot see what is no sprite: smears, broken outlines, a wrong colour on a detail; and an "
      "object that a person would recognise may be too blurred for it. The second row is the best "
      "that any drawing made of these codes could reach, the third what luck gives."
    ),
    page.table(
      ["judged", "background", "objects", "number", "left and right", "all"],
      rows,
      right={1, 2, 3, 4, 5},
    ),
    page.paragraph(f"On {judge['ceiling']['n']} held-out scenes.", "soft small"),
  )


def _next(facts: Facts, parts: dict[str, Part]) -> str:
  prompts = parts["drawings"].values["examples"]
  prompt = next((e["prompt"] for e in prompts if not e["wrong"]), prompts[0]["prompt"])
  film = parts["videos"].values["examples"][0]["prompt"]
  still, moving = (_flags(parts[name].values["chosen"]) for name in ("settings", "video_settings"))
  lines = [
    f'vilau generate image --model={facts.model} --prompt="{prompt}" {still} --num=4 --output=out',
    f'vilau generate video --model={facts.model} --prompt="{film}" {moving} --output=films',
    f'vilau chat --model={facts.model} --image=out/000000.png "{parts["questions"].values["ask"]}"',
    f"vilau reconstruct --model={facts.model} --image=out/000000.png --output=out",
  ]
  return page.section(
    "next",
    "What to type next",
    f"<pre><code>{page.escape(chr(10).join(lines))}</code></pre>",
    page.paragraph(f"Evaluation seed {facts.seed}; the same seed gives the same figures.", "soft"),
  )


def _flags(chosen: dict[str, float]) -> str:
  return " ".join(f"--{name}={value:g}" for name, value in chosen.items())


def _percent(value: float) -> str:
  return f"{100 * value:.1f}%"
