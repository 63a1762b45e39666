"""The figures of a run's folder as PNG files: what report.html shows, without a model or data."""

import os
import pathlib
import re

import numpy as np

from vilau_jax.evaluate import parts, report_charts, runs

_ASK = "vilau evaluate quickstart --output={run} writes {what}"


def write(
  run: str | os.PathLike, output: str | os.PathLike
) -> tuple[list[pathlib.Path], list[str]]:
  """Draws all that the folder has figures of.

  Args:
    run: a training workdir, or a folder of them, with parts/ where an evaluation has written there.
    output: made when absent; files of the same names are replaced.

  Returns:
    (files written, sentences about what the folder has nothing for).

  Raises:
    FileNotFoundError: if there is no such folder.
    ValueError: if the folder has nothing to draw.
  """
  run, output = pathlib.Path(run), pathlib.Path(output)
  if not run.is_dir():
    raise FileNotFoundError(f"no run's folder at {run}")
  found = parts.read(run / "parts", "pictures"), parts.read(run / "parts", "drawings")
  curves = {stage: series for stage, series in runs.curves(run).items() if series}
  samples = runs.samples(run)
  if not (curves or samples or any(found)):
    raise ValueError(
      f"{run} has nothing to draw: no {runs.METRICS} of a training in it or one folder below, and "
      "no parts/ of an evaluation; give what training had as --workdir"
    )
  output.mkdir(parents=True, exist_ok=True)
  written, missing = [], []

  def path(name: str) -> pathlib.Path:
    written.append(output / f"{re.sub(r'[^a-z0-9]+', '_', name.lower())}.png")
    return written[-1]

  for stage, series in curves.items():
    report_charts.losses(path(f"losses {stage}"), f"Losses, {stage}", series)
  for stage in curves:
    if stage not in samples:
      missing.append(
        f"no samples of {stage}: none that can be read; log.samples_every=0 draws none"
      )
  for stage, sheets in samples.items():
    rows = {f"step {step}": [sheet] for step, sheet in sheets.items()}
    title = f"Samples while training, {stage}"
    if stage == runs.STAGES["tower"]:
      title += ": pictures, from their first codes, from all codes"
    report_charts.pictures(path(f"samples {stage}"), title, rows, cell=6.4)
  if found[0] is None:
    missing.append(f"no reconstructions: {_ASK.format(run=run, what='parts/pictures')}")
  else:
    _reconstructions(path("reconstructions"), found[0])
  if found[1] is None:
    missing.append(f"no confusion tables: {_ASK.format(run=run, what='parts/drawings')}")
  else:
    for name, table in found[1].values["confusion"].items():
      counts = np.array(table["table"])
      # A drawing counts once by its number; every object in it counts by its kind.
      found_ones = f"{counts[:, :-1].sum()} objects in them"
      what = found_ones if name == "objects" else f"{counts.sum()} drawings"
      title = f"{name.capitalize()} asked and drawn, prompts of one kind: {what}"
      report_charts.table(
        path(f"confusion {name}"), title, counts, table["rows"],
        table["columns"], x="drawn", y="asked",
      )  # fmt: skip
  return written, missing


def _reconstructions(path: pathlib.Path, part: parts.Part) -> None:
  """Held-out pictures, and what their first code, the first two and so on decode to."""
  rows = {}
  for name, words in (("scenes", "scene"), ("easy_vqa", "easy-VQA")):
    pairs = zip(part.arrays[name], part.arrays[f"{name}_by_depth"])
    rows |= {f"{words} {i}": [image, *steps] for i, (image, steps) in enumerate(pairs, 1)}
  psnr = part.values["psnr_by_depth"]["scenes"]
  columns = ["original"]
  columns += [f"{d} code{'s' * (d > 1)}\n{value:.1f} dB" for d, value in enumerate(psnr, 1)]
  title = "Reconstructions by codes a position (PSNR of scenes)"
  report_charts.pictures(path, title, rows, columns)
