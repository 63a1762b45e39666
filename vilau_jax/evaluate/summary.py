"""All results of a directory on one page: report.md, with PNG charts beside it."""

import collections
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from vilau_jax.evaluate import paper, report_charts
from vilau_jax.evaluate.benchmarks.genai_bench import ADVANCED, BASIC
from vilau_jax.evaluate.parts import replacing
from vilau_jax.evaluate.task import read_json

TABLES = {
  1: "The vision tower",
  2: "Questions about pictures",
  3: "Questions about videos",
  4: "Pictures from prompts: MJHQ-30K",
  5: "Pictures from prompts: GenAI-Bench",
  6: "Videos from prompts: VBench",
  9: "Guidance",
}
GUIDANCE = 9
_OWN = "Built-in tasks"
_MANY = {"genai-bench": BASIC + ADVANCED, "vbench": ("total", "quality", "semantic")}
# What categories are where "by ..." does not say it.
_KINDS = {
  "used": "share of the codebook in use, by depth",
  "perplexity": "perplexity of the codes, by depth",
  "raw": "raw scores by dimension", "dimension": "normalised scores by dimension, in %",
  "random": "random questions", "popular": "popular questions",
  "adversarial": "adversarial questions", "category": "FID by category (lower is better)",
}  # fmt: skip
Row = tuple[float | None, ...]


def write(directory: str | os.PathLike) -> pathlib.Path:
  """Writes report.md and charts/*.png into the directory.

  Args:
    directory: searched with all its folders for scores.json.

  Returns:
    The path of report.md.

  Raises:
    ValueError: if there is no scores.json, or a broken one.
  """
  directory = pathlib.Path(directory)
  results = find(directory)
  (directory / "charts").mkdir(exist_ok=True)
  groups: dict[str, list[tuple[str, dict[str, Any]]]] = {}
  for folder, result in results:
    entry = paper.tables().get(result["benchmark"])
    title = f"Table {entry['table']}: {TABLES[entry['table']]}" if entry else _OWN
    groups.setdefault(title, []).append((folder, result))
  parts = ["# Evaluation", ""]
  for title in sorted(groups, key=lambda t: (t == _OWN, t)):
    parts += [f"## {title}", ""]
    parts += _overview(title, groups[title], directory)
    for folder, result in groups[title]:
      parts += _section(folder, result, directory)
  with replacing(directory / "report.md") as temporary:
    temporary.write_text("\n".join(parts) + "\n", encoding="utf-8")
  return directory / "report.md"


def find(directory: pathlib.Path) -> list[tuple[str, dict[str, Any]]]:
  """(folder, what scores.json holds), in the order of the folders' names."""
  if not directory.is_dir():
    raise ValueError(f"no directory at {directory}")
  results = []
  for path in sorted(directory.rglob("scores.json")):
    result = read_json(path)
    if not isinstance(result, dict) or "benchmark" not in result:
      raise ValueError(f"{path} is no scores.json of `vilau evaluate`")
    results.append((path.parent.relative_to(directory).as_posix(), result))
  if not results:
    raise ValueError(f"no scores.json below {directory}; run vilau evaluate TASK --output first")
  return results


def _section(folder: str, result: dict[str, Any], directory: pathlib.Path) -> list[str]:
  entry = paper.tables().get(result["benchmark"])
  title = entry["title"] if entry else result["benchmark"]
  mark = " (PARTIAL)" if result["partial"] else ""
  head, rows = paper.rows(result)
  model = result.get("model") or {"path": result.get("predictions"), "id": "given predictions"}
  lines = [
    f"### {title}{mark}", "",
    f"`{folder}`: {result['split']}, protocol {result['protocol']}, n = {result['n']}, "
    f"model `{model['path']}` ({model['id']})", "",
    *_table(head, rows), "",
  ]  # fmt: skip
  notes = [*paper.differences(result), *result["notes"]]
  lines += [f"- {note}" for note in notes] + [""] * bool(notes)
  for kind, values in result["categories"].items():
    flat = {name: v for name, v in values.items() if isinstance(v, int | float)}
    if flat:
      said = _KINDS.get(kind, f"by {kind.replace('_', ' ')}")
      lines += [f"{said[0].upper()}{said[1:]}:", ""]
      lines += [*_table(["", "value"], [[n, paper.shown(v)] for n, v in flat.items()]), ""]
      if 2 <= len(flat) <= 40:
        name = f"charts/{_slug(folder)}-{_slug(kind)}.png"
        words = f"{title}{':' * (kind in _KINDS)} {said}"
        _chart(directory / name, words, kind, result, flat)
        lines += [f"![{words}]({name})", ""]
  return lines


def _overview(title: str, results, directory: pathlib.Path) -> list[str]:
  """One chart a table: this directory's results beside the paper's, every scale by itself; a star
  marks what can't be compared as it is."""
  scales: dict[str, dict[str, Row]] = {}
  often = collections.Counter(result["benchmark"] for _, result in results)
  for folder, result in results:
    entry = paper.tables().get(result["benchmark"])
    if entry is None or entry["main"] not in result["metrics"] or entry["table"] == GUIDANCE:
      continue
    star = "*" * bool(paper.differences(result))
    many = _MANY.get(result["benchmark"])
    for metric in many or (entry["main"],):
      if metric in result["metrics"]:
        name = metric if many else entry["title"]
        name += f" ({folder})" if often[result["benchmark"]] > 1 else ""
        given = [entry["rows"].get(method, {}).get(metric) for method in paper.OURS]
        scale = _scale(metric, entry["better"])
        scales.setdefault(scale, {})[name + star] = (result["metrics"][metric], *given)
  if not scales:
    return []
  path = directory / "charts" / f"{_slug(title)}.png"
  whose = ("here", *(f"{method}, paper" for method in paper.OURS))
  parts = []
  for label, rows in scales.items():
    series = {who: [row[i] for row in rows.values()] for i, who in enumerate(whose)}
    shown = {who: v for who, v in series.items() if who == "here" or len(scales) > 1 or any(v)}
    parts.append(report_charts.Panel(label, list(rows), shown))
  report_charts.panels(path, title, parts)
  lines = [f"![{title}](charts/{path.name})", ""]
  if any(name.endswith("*") for rows in scales.values() for name in rows):
    lines += ["\\* differs from the paper's protocol as far as known; its section says how.", ""]
  return lines


def _scale(metric: str, better: str) -> str:
  """The axis of a metric: what is comparable stands on one."""
  if metric == "fid":
    return f"FID ({better} is better)"
  return {"perception": "MME points", "top1": "top-1 in %"}.get(metric, "score")


def _chart(path: pathlib.Path, title: str, kind: str, result, values: dict[str, float]) -> None:
  """By category; guidance is a curve beside the paper's."""
  if kind != "cfg_scale":
    return report_charts.lying(path, title, values)
  rows = paper.tables()[result["benchmark"]]["rows"][paper.OURS[0]]
  known = {float(k.removeprefix("fid_cfg_")): v for k, v in rows.items()}
  here = {float(k): v for k, v in values.items()}
  series = {"here": here, f"{paper.OURS[0]}, paper": known}
  return report_charts.curves(path, title, series, x="guidance", y="FID (lower is better)")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  line = lambda cells: "| " + " | ".join(cells) + " |"  # noqa: E731
  return [line(head), line(["---"] * len(head)), *map(line, rows)]


def _slug(text: str) -> str:
  return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-") or "here"
