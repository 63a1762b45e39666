"""report.html of the quickstart: one self-contained page from the finished parts."""

import dataclasses
from typing import Any

import numpy as np

from vilau_jax.evaluate import charts, page
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
      _drawings(parts),
      _films(parts),
      _reading(parts),
      _table(scores),
      _reconstructions(parts),
      _codes(parts),
      _guidance(parts),
      _confusion(parts),
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


def _drawings(parts: dict[str, Part]) -> str:
  part, chosen = parts["drawings"], parts["settings"].values["chosen"]
  cells = []
  for image, example in zip(part.arrays["pictures"], part.values["examples"]):
    wrong = example["wrong"]
    verdict = "" if not wrong else f'<br><span class="bad small">wrong: {", ".join(wrong)}</span>'
    prompt = page.escape(example["prompt"])
    cells.append(
      (page.picture(image, example["prompt"]), f"{page.mark(not wrong)} {prompt}{verdict}")
    )
  return page.section(
    "drawings",
    "Drawings for prompts it has never seen",
    page.paragraph(
      "The first prompts of the held-out set, one drawing each, none picked. Every word occurs in "
      "training; these combinations do not. The marks are the judge's: background, objects, number "
      f"and order must all be right. Guidance {chosen['cfg_scale']:g}, temperature "
      f"{chosen['temperature']:g}, chosen on other prompts."
    ),
    page.gallery(cells),
  )


def _films(parts: dict[str, Part]) -> str:
  part = parts["videos"]
  cells = [
    (
      page.film(frames, example["prompt"]),
      f"{page.mark(not example['wrong'])} {page.escape(example['prompt'])}",
    )
    for frames, example in zip(part.arrays["films"], part.values["examples"])
  ]
  return page.section(
    "films",
    "Short videos for unseen prompts",
    page.paragraph(
      f"{part.arrays['films'].shape[1]} frames each, drawn code by code after the text, again the "
      "first prompts of the held-out set. A mark means that background, object (first and last "
      "frame) and direction are right. Chance for the direction is 25%."
    ),
    page.gallery(cells, cell=120),
  )


def _reading(parts: dict[str, Part]) -> str:
  def cards(part: Part) -> str:
    asks = []
    for image, lines in zip(part.arrays["pictures"], part.values["examples"]):
      said = []
      for line in lines:
        answer = page.escape(line["given"])
        right = line["given"] == line["answer"]
        truth = "" if right else f' <span class="soft">(true: {page.escape(line["answer"])})</span>'
        said.append(
          f'<span class="soft">{page.escape(line["question"])}</span><br>'
          f"{page.mark(right)} {answer}{truth}"
        )
      asks.append(page.answers(page.picture(image, "a held-out picture"), said))
    return f'<div class="asks">{"".join(asks)}</div>'

  return page.section(
    "reading",
    "Answers about held-out pictures",
    page.paragraph("What the model wrote, greedily, about the first pictures of each test set."),
    cards(parts["questions"]),
    "<h3>easy-VQA, the published test pictures</h3>",
    cards(parts["easy_vqa"]),
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
      "what blind guessing, or the best answer to a question without its picture, would give on "
      "the same samples."
    ),
    page.table(["what", "value", "without", "n"], rows, right={1, 3}),
  )


def _reconstructions(parts: dict[str, Part]) -> str:
  part = parts["pictures"]
  depth = part.arrays["scenes_by_depth"].shape[1]
  labels = ["original", *(f"{d + 1} code{'s' * (d > 0)}" for d in range(depth))]
  rows = []
  for name in ("scenes", "easy_vqa"):
    for image, steps in zip(part.arrays[name], part.arrays[f"{name}_by_depth"]):
      tags = [page.picture(image, "original")]
      tags += [page.picture(step, f"from {d + 1} codes") for d, step in enumerate(steps)]
      rows.append(page.strip(tags, labels))
  curves = {
    words: (list(range(1, depth + 1)), part.values["psnr_by_depth"][name])
    for name, words in (("scenes", "scenes"), ("easy_vqa", "easy-VQA"))
  }
  chart = charts.lines(
    "Reconstruction by number of codes", curves, x="codes a position", y="PSNR, dB", marker=True
  )
  return page.section(
    "reconstructions",
    "Reconstructions by depth",
    page.paragraph(
      "Every cell of the grid is a sum of code vectors, coarse to fine. These held-out pictures "
      "are decoded from the first code, the first two, and so on."
    ),
    f'<div class="twin">{"".join(rows)}</div>',
    page.chart_row([chart]),
  )


def _codes(parts: dict[str, Part]) -> str:
  codes = parts["pictures"].values["codes"]
  depths = [str(d + 1) for d in range(len(codes["used"]))]
  return page.section(
    "codes",
    "Use of the codebook",
    page.paragraph(
      f"Of {codes['entries']} entries, counted over {codes['positions']} grid cells of held-out "
      "scenes. Perplexity is the number of equally used entries that would carry as much."
    ),
    page.chart_row([
      charts.bars("Entries in use, by depth", dict(zip(depths, codes["used"])), y="entries"),
      charts.bars("Perplexity, by depth", dict(zip(depths, codes["perplexity"])), y="perplexity"),
    ]),
  )  # fmt: skip


def _guidance(parts: dict[str, Part]) -> str:
  settings, sheet = parts["settings"].values, parts["sheet"]
  rows = settings["rows"]
  chosen = settings["chosen"]

  def sweep(title: str, key: str, other: str, words: str) -> str:
    same = sorted((r for r in rows if r[other] == chosen[other]), key=lambda r: r[key])
    names = {"background": "background", "object": "objects", "count": "number", "all": "all right"}
    curves = {n: ([r[key] for r in same], [r[k] for r in same]) for k, n in names.items()}
    return charts.lines(title, curves, x=words, y="right", percent=True, marker=True)

  scales = [f"guidance {scale:g}" for scale in sheet.values["scales"]]
  strips = []
  for prompt, images in zip(sheet.values["prompts"], sheet.arrays["pictures"]):
    tags = [page.picture(image, prompt) for image in images]
    strips.append(
      f'<div><div class="small">{page.escape(prompt)}</div>{page.strip(tags, scales)}</div>'
    )
  return page.section(
    "guidance",
    "Guidance: how hard the text pulls",
    page.paragraph(
      "Classifier-free guidance mixes the prediction with and without the prompt; 1 is none. "
      f"Measured on {settings['n']} prompts whose combinations are in the training set, so that "
      "the figures above stay untouched by the choice. The paper uses 3 for a model a thousand "
      "times larger."
    ),
    page.chart_row([
      sweep("Drawings by guidance", "cfg_scale", "temperature", "guidance scale"),
      sweep("Drawings by temperature", "temperature", "cfg_scale", "temperature"),
    ]),
    "<h3>The same held-out prompts and seeds at each scale</h3>",
    f'<div class="twin">{"".join(strips)}</div>',
  )  # fmt: skip


def _confusion(parts: dict[str, Part]) -> str:
  confusion = parts["drawings"].values["confusion"]
  objects, counts = confusion["objects"], confusion["counts"]
  return page.section(
    "confusion",
    "What was asked, what was drawn",
    page.paragraph(
      "Held-out prompts for one to three of a kind. Left: the kinds the judge found for each kind "
      "asked, as shares of the row. Right: how many it found."
    ),
    page.chart_row([
      charts.matrix("Objects", np.array(objects["table"]), objects["rows"], objects["columns"],
                    x="drawn", y="asked"),
      charts.matrix("Numbers", np.array(counts["table"]), counts["rows"], counts["columns"],
                    x="drawn", y="asked"),
    ]),
  )  # fmt: skip


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
      "tries every sprite at every place at half resolution, takes the one that explains most of "
      "the picture if it explains at least 40% of itself, blanks its window, and goes on. It can "
      "tell which objects are there, how many, where, and the background. It cannot see what is "
      "no sprite: smears, broken outlines, a wrong colour on a detail; and a blurred object that "
      "a person would recognise may be missed. The second row is therefore the best that any "
      "drawing made of these codes could reach, the third what luck gives."
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
  lines = [
    f'vilau generate image --model={facts.model} --prompt="{prompt}" --num=4 --output=out',
    f'vilau generate video --model={facts.model} --prompt="{film}" --output=out',
    f'vilau chat --model={facts.model} --image=out/000000.png "{parts["questions"].values["ask"]}"',
    f"vilau reconstruct --model={facts.model} --image=out/000000.png --output=out",
  ]
  return page.section(
    "next",
    "What to type next",
    f"<pre><code>{page.escape(chr(10).join(lines))}</code></pre>",
    page.paragraph(f"Evaluation seed {facts.seed}; the same seed gives the same figures.", "soft"),
  )


def _percent(value: float) -> str:
  return f"{100 * value:.1f}%"
