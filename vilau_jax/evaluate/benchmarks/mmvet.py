"""MM-Vet (Yu et al. 2023), table 2: open questions, marked 0 to 1 by a judge."""

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from vilau_jax.evaluate import judge_prompts
from vilau_jax.evaluate.answering import Answering, answer
from vilau_jax.evaluate.judge import Judge
from vilau_jax.evaluate.parts import replacing
from vilau_jax.evaluate.task import (
  Found,
  Request,
  Scores,
  field,
  find_file,
  find_media,
  numbered,
  read_json,
)

CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
AGAIN = "\nPredict the correctness of the answer (digit): "
# Temperatures of the first call and of the five that follow a reply without a number.
TEMPERATURES = (0.0, 0.0, 0.5, 1.0, 1.5, 2.0)


class Mmvet(Answering):
  """Data: mm-vet.json and images/NAME. Needs a judge; without one the answers are written for the
  benchmark's own page (submission.json, {id: text})."""

  name = "mmvet"
  protocols = ("official",)
  splits = ("test",)
  max_new_tokens = 1024
  uses = ("max_new_tokens", "judge", "judge_prompt")

  def requests(self) -> list[Request]:
    path = find_file(self.data, "mm-vet.json")
    self.sources.append(path)
    requests = []
    for name, row in read_json(path).items():
      where = f"{path}, {name}"
      file = field(row, "imagename", where)
      image = find_media(self.data, name, f"images/{file}", file)
      unknown = set(field(row, "capability", where)) - set(CAPABILITIES)
      if unknown or not row["capability"]:
        raise ValueError(f"{where}: capability {row['capability']}; known: {CAPABILITIES}")
      field(row, "answer", where)
      content = [self.image(image), field(row, "question", where)]
      requests.append(Request(name, content, row))
    return numbered(requests, str(path))

  def score(self, requests: Sequence[Request], found: Found) -> Scores:
    given = {r.id: answer(found.rows, r.id) for r in requests}
    texts = {name: text or "" for name, text in given.items()}
    with replacing(found.directory / "submission.json") as temporary:
      temporary.write_text(json.dumps(texts, ensure_ascii=False, indent=1), encoding="utf-8")
    if self.options.judge is None:
      note = "no judge: give --judge_url and --judge_model, or upload submission.json"
      return Scores({}, len(requests), partial=note)
    table, is_official = judge_prompts.mmvet(self.options.judge_prompt)
    judge = Judge(self.options.judge, found.directory / "verdicts.jsonl")
    grades = judge.map(lambda r: grade(judge, table, r.truth, texts[r.id]), requests)
    judged = {r.id: g for r, g in zip(requests, grades) if g is not None}
    facts = judge.facts() | {"official_prompt": is_official}
    with replacing(found.directory / "grades.json") as temporary:
      temporary.write_text(json.dumps(judged, ensure_ascii=False, indent=1), encoding="utf-8")
    partial = None
    if len(judged) < len(requests):
      partial = f"the judge gave no verdict on {len(requests) - len(judged)} of {len(requests)}"
    if not judged:
      return Scores({}, len(requests), details={"judge": facts}, partial=partial)
    marks = {name: g["score"] for name, g in judged.items()}
    metrics, sets = capability_scores({r.id: r.truth["capability"] for r in requests}, marks)
    return Scores(metrics, len(requests), categories={"capability_sets": sets},
                  details={"judge": facts, "judged": len(judged)}, partial=partial)  # fmt: skip


def row_prompt(table: str, truth: Mapping[str, Any], prediction: str) -> str:
  gold = truth["answer"].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
  return f"{table}\n{truth['question']} | {gold} | {prediction} | "


def grade(judge: Judge, table: str, truth: Mapping[str, Any], prediction: str) -> dict[str, Any]:
  """Asks until the reply begins with a number from 0 to 1; after six calls the score is 0.

  Raises:
    Unjudged: if the judge does not reply at all.
  """
  prompt, reply = row_prompt(table, truth, prediction), ""
  for call, temperature in enumerate(TEMPERATURES):
    text = prompt if call == 0 else prompt + AGAIN
    messages = [{"role": "user", "content": text}]
    reply = judge.ask(messages, temperature=temperature, max_tokens=3)
    score = parse(reply)
    if score is not None:
      return {"content": reply.split(" ")[0].strip(), "score": score}
  return {"content": reply, "score": 0.0}


def parse(reply: str) -> float | None:
  """The number from 0 to 1 that a reply begins with."""
  try:
    score = float(reply.split(" ")[0].strip())
  except ValueError:
    return None
  return score if 0 <= score <= 1 else None


def capability_scores(
  capabilities: Mapping[str, Sequence[str]], marks: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
  """Percent with one decimal: of each capability (over the questions that need it) and in total,
  and of each set of capabilities. Questions without a mark are left out."""
  by_one: dict[str, list[float]] = {}
  by_set: dict[str, list[float]] = {}
  for name, mark in marks.items():
    for capability in capabilities[name]:
      by_one.setdefault(capability, []).append(mark)
    by_set.setdefault("_".join(sorted(capabilities[name])), []).append(mark)
  show = lambda values: round(100 * statistics.fmean(values), 1)  # noqa: E731
  total = {"total": show(marks.values())}
  ones = {name: show(by_one[name]) for name in CAPABILITIES if name in by_one}
  return total | ones, {name: show(values) for name, values in by_set.items()}
