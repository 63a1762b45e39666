"""The paper's numbers (arXiv 2409.04429, tables 1 to 9), to stand beside ours."""

import functools
import importlib.resources
import json
from typing import Any

OURS = ("VILA-U 256", "VILA-U 384")


@functools.cache
def tables() -> dict[str, Any]:
  """task -> {table, title, main, better, split, protocols, rows: method -> metric -> value}."""
  text = (importlib.resources.files("vilau_jax.evaluate") / "paper.json").read_text("utf-8")
  return json.loads(text)["tasks"]


def peers(task: str, metric: str, count: int = 2) -> list[str]:
  """The best other methods of the paper's table by a metric."""
  entry = tables().get(task)
  if entry is None:
    return []
  values = {m: row[metric] for m, row in entry["rows"].items()
            if metric in row and not m.startswith("VILA-U")}  # fmt: skip
  return sorted(values, key=values.get, reverse=entry["better"] == "higher")[:count]


def differences(result: dict[str, Any]) -> list[str]:
  """Why a result (what scores.json holds) can't be compared with the paper's number; [] if it can.
  The paper names neither protocols nor judges, so a difference here is certain, equality is not."""
  entry = tables().get(result["benchmark"])
  if entry is None:
    return []
  reasons = []
  if result["partial"]:
    reasons.append(f"partial: {result['partial']}")
  if entry["split"] is not None and result["split"] != entry["split"]:
    reasons.append(f"the paper's split is {entry['split']}, this is {result['split']}")
  if result["protocol"] not in entry["protocols"]:
    wanted = " or ".join(entry["protocols"])
    reasons.append(f"the paper's protocol is {wanted}, this is {result['protocol']}")
  if result["options"].get("limit"):
    reasons.append(f"only the first {result['options']['limit']} were asked")
  if result["missing"]:
    reasons.append(f"{result['missing']} of {result['n']} without a prediction count as wrong")
  judge = result["details"].get("judge")
  if judge is not None:
    reasons.append(f"the judge is {judge['model']}, the paper doesn't name its own")
    if not judge["official_prompt"]:
      reasons.append("the judge got another prompt than the official one")
  return reasons


def rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
  """Head and rows of a table: each metric, its value, the paper's VILA-U 256 and 384, and the two
  best others."""
  task, metrics = result["benchmark"], result["metrics"]
  entry = tables().get(task)
  if entry is None:
    return ["metric", "value"], [[name, shown(value)] for name, value in metrics.items()]
  methods = [m for m in OURS if m in entry["rows"]] + peers(task, entry["main"])
  listed = list(metrics) or [entry["main"]]
  body = [
    [name, shown(metrics[name]) if name in metrics else "",
     *(shown(entry["rows"][m].get(name)) for m in methods)]
    for name in listed
  ]  # fmt: skip
  return ["metric", "value", *methods], body


def shown(value: float | None) -> str:
  if value is None:
    return ""
  return f"{value:g}" if isinstance(value, int) else f"{value:.4g}" if abs(value) < 10 else (
    f"{value:.2f}".rstrip("0").rstrip(".")
  )  # fmt: skip
