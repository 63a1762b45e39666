"""All results of a directory on one page: report.md, with PNG charts beside it."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vilau_jax.evaluate import paper
from vilau_jax.evaluate.charts import COLOURS
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
_OWN = "Built-in tasks"


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
      lines += [f"By {kind.replace('_', ' ')}:", ""]
      lines += [*_table(["", "value"], [[n, paper.shown(v)] for n, v in flat.items()]), ""]
      if 2 <= len(flat) <= 40:
        name = f"charts/{_slug(folder)}-{_slug(kind)}.png"
        bars(directory / name, f"{title} by {kind}", list(flat), {folder: list(flat.values())})
        lines += [f"![{title} by {kind}]({name})", ""]
  return lines


def _overview(title: str, results, directory: pathlib.Path) -> list[str]:
  """One chart a table: this directory's results beside the paper's; a star marks what can't be
  compared as it is."""
  names, own, others = [], [], {method: [] for method in paper.OURS}
  for _, result in results:
    entry = paper.tables().get(result["benchmark"])
    if entry is None or entry["main"] not in result["metrics"] or entry["table"] in (9,):
      continue
    if entry["main"] == "perception":  # another scale than the rest of its table
      continue
    names.append(entry["title"] + "*" * bool(paper.differences(result)))
    own.append(result["metrics"][entry["main"]])
    for method, values in others.items():
      values.append(entry["rows"].get(method, {}).get(entry["main"]))
  if not names:
    return []
  path = directory / "charts" / f"{_slug(title)}.png"
  bars(path, title, names, {"here": own, **others})
  lines = [f"![{title}](charts/{path.name})", ""]
  if any(name.endswith("*") for name in names):
    lines += ["\\* differs from the paper's protocol as far as known; its section says how.", ""]
  return lines


def bars(
  path: pathlib.Path, title: str, names: Sequence[str],
  series: dict[str, Sequence[float | None]],
) -> None:  # fmt: skip
  """Writes a PNG of groups of bars; None leaves a gap."""
  figure = Figure(
    figsize=(max(4.5, 0.55 * len(names) * len(series) + 2), 3.4), layout="constrained"
  )
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  width = 0.8 / len(series)
  for i, (label, values) in enumerate(series.items()):
    at = [k + (i - (len(series) - 1) / 2) * width for k in range(len(names))]
    heights = [0 if v is None else v for v in values]
    drawn = axes.bar(at, heights, width * 0.92, label=label, color=COLOURS[i % len(COLOURS)])
    texts = ["" if v is None else paper.shown(round(v, 2)) for v in values]
    axes.bar_label(drawn, texts, fontsize=7, padding=1)
  axes.set_xticks(range(len(names)), names, fontsize=8)
  if max(map(len, names)) * len(names) > 60:
    axes.tick_params(axis="x", rotation=60)
  axes.spines[["top", "right"]].set_visible(False)
  axes.set_title(title, fontsize=11)
  if len(series) > 1:
    axes.legend(fontsize=8, frameon=False)
  figure.savefig(path, dpi=120, metadata={"Software": None})


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  line = lambda cells: "| " + " | ".join(cells) + " |"  # noqa: E731
  return [line(head), line(["---"] * len(head)), *map(line, rows)]


def _slug(text: str) -> str:
  return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-") or "here"
