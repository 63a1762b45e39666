"""The report's exhibits: pictures, videos and answers with their marks, and the charts beside them.

Every function takes the finished parts and returns a section of HTML.
"""

import numpy as np

from vilau_jax.evaluate import charts, page
from vilau_jax.evaluate.parts import Part

Finished = dict[str, Part]


def drawings(parts: Finished) -> str:
  part, chosen = parts["drawings"], parts["settings"].values["chosen"]
  cells = []
  for image, example in zip(part.arrays["pictures"], part.values["examples"]):
    wrong = example["wrong"]
    verdict = "" if not wrong else f'<br><span class="bad small">wrong: {", ".join(wrong)}</span>'
    prompt = page.escape(example["prompt"])
    cells.append(
      (page.picture(image, example["prompt"]), f"{page.mark(not wrong)} {prompt}{verdict}")
    )
  shapes = parts["shapes"]
  shaped = [
    (page.picture(image, prompt), f"{page.mark(right)} {page.escape(prompt)}")
    for image, prompt, right in zip(
      shapes.arrays["pictures"], shapes.values["prompts"], shapes.values["right"]
    )
  ]
  return page.section(
    "drawings",
    "Drawings for prompts it has never seen",
    page.paragraph(
      f"The first of {part.values['rates']['n']} held-out prompts ({part.values['distinct']} "
      "different ones), one drawing each, none picked. Every word occurs in training; these "
      "combinations do not. The marks are the judge's: background, objects, number and order must "
      f"all be right. Guidance {chosen['cfg_scale']:g}, temperature {chosen['temperature']:g}, "
      "chosen on other prompts."
    ),
    page.gallery(cells),
    "<h3>easy-VQA's shapes, by their captions</h3>",
    page.gallery(shaped),
  )


def films(parts: Finished) -> str:
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


def reading(parts: Finished) -> str:
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

  seen = parts["videos_read"]
  films = [
    (
      page.film(frames, "a held-out video"),
      f"{page.mark(said == truth)} {page.escape(said)}"
      + ("" if said == truth else f'<br><span class="small">true: {page.escape(truth)}</span>'),
    )
    for frames, said, truth in zip(
      seen.arrays["films"], seen.values["written"], seen.values["captions"]
    )
  ]
  return page.section(
    "reading",
    "Answers about held-out pictures",
    page.paragraph("What the model wrote, greedily, about the first pictures of each test set."),
    cards(parts["questions"]),
    "<h3>easy-VQA, the published test pictures</h3>",
    cards(parts["easy_vqa"]),
    "<h3>What it writes about held-out videos</h3>",
    page.gallery(films, cell=120),
  )


def reconstructions(parts: Finished) -> str:
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


def codes(parts: Finished) -> str:
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


def guidance(parts: Finished) -> str:
  settings, sheet = parts["settings"].values, parts["sheet"]
  rows, chosen, videos = settings["rows"], settings["chosen"], parts["video_settings"].values

  def sweep(title: str, rows, key: str, words: str) -> str:
    rows = sorted(rows, key=lambda r: r[key])
    names = {"background": "background", "object": "objects", "count": "number",
             "direction": "direction", "all": "all right"}  # fmt: skip
    curves = {
      n: ([r[key] for r in rows], [r[k] for r in rows]) for k, n in names.items() if k in rows[0]
    }
    return charts.lines(title, curves, x=words, y="right", percent=True, marker=True)

  def alike(key: str) -> list[dict]:
    return [row for row in rows if row[key] == chosen[key]]

  scales = [f"{scale:g}" for scale in sheet.values["scales"]]
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
      f"Measured on {settings['n']} prompts ({videos['n']} for videos) whose combinations are in "
      "the training set, so that the figures above stay untouched by the choice. Chosen: "
      f"{chosen['cfg_scale']:g} at temperature {chosen['temperature']:g}, videos "
      f"{videos['chosen']['cfg_scale']:g}. The paper uses 3 for a model a thousand times larger."
    ),
    page.chart_row([
      sweep("Drawings by guidance", alike("temperature"), "cfg_scale", "guidance scale"),
      sweep("Drawings by temperature", alike("cfg_scale"), "temperature", "temperature"),
      sweep("Videos by guidance", videos["rows"], "cfg_scale", "guidance scale"),
    ]),
    "<h3>The same held-out prompts and seeds at each guidance scale</h3>",
    f'<div class="twin">{"".join(strips)}</div>',
  )  # fmt: skip


def confusion(parts: Finished) -> str:
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
