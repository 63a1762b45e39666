"""SEED-Bench-1 (Li et al. 2023), table 2: multiple choice about pictures and videos."""

import json
from collections.abc import Sequence

import numpy as np

from vilau_jax.data import media
from vilau_jax.evaluate.answering import Answering, answer
from vilau_jax.evaluate.parts import replacing
from vilau_jax.evaluate.task import (
  Found,
  Request,
  Scores,
  by_id,
  field,
  find_file,
  find_media,
  grouped,
  numbered,
  percent,
  read_json,
)
from vilau_jax.generate.contents import Image

LETTERS = "ABCD"


class Seedbench(Answering):
  """Data: SEED-Bench.json, SEED-Bench-image/DATA_ID, and for videos the middle frame
  SEED-Bench-video-image/QUESTION_ID.png (as LLaVA extracts it) or SEED-Bench-video/DATA_ID.

  Protocols: "llava" wants exactly the letter, "lmms" looks at the first character, "likelihood"
  takes the option with the smallest mean loss, as the benchmark's own code does.
  """

  name = "seedbench"
  protocols = ("llava", "lmms", "likelihood")
  splits = ("v1",)

  def requests(self) -> list[Request]:
    path = find_file(self.data, "SEED-Bench.json")
    self.sources.append(path)
    content = read_json(path)
    kinds = {v: k for k, v in field(content, "question_type", str(path)).items()}
    requests = []
    rows = by_id(field(content, "questions", str(path)), "question_id", str(path))
    for name, row in rows.items():
      where = f"{path}, question {name}"
      kind = field(row, "question_type_id", where)
      if kind not in kinds or field(row, "data_type", where) not in ("image", "video"):
        raise ValueError(f"{where}: question type {kind} and data type {row['data_type']!r}")
      truth = {"answer": field(row, "answer", where), "type": kinds[kind], **_choices(row, where),
               "data_type": row["data_type"]}  # fmt: skip
      text = likelihood_prompt(row) if self.protocol == "likelihood" else prompt(row)
      requests.append(Request(name, [self._picture(row, name), text], truth))
    return numbered(requests, str(path))

  def _picture(self, row, name: str) -> Image:
    if row["data_type"] == "image":
      file = find_media(self.data, name, f"SEED-Bench-image/{row['data_id']}", row["data_id"])
      return self.image(file)
    frame = self.data / "SEED-Bench-video-image" / f"{name}.png"
    if frame.is_file() or row.get("segment"):
      return self.image(find_media(self.data, name, f"SEED-Bench-video-image/{name}.png"))
    video = find_media(self.data, name, f"SEED-Bench-video/{row['data_id']}")
    return Image(media.read_video(video, 3)[1])

  def predict(self, model, requests, directory):
    if self.protocol != "likelihood":
      return super().predict(model, requests, directory)
    contents = [r.content for r in requests for _ in LETTERS]
    choices = [choice for r in requests for choice in r.truth["choices"]]
    tokens = [len(model.tokenizer.encode(f" {c.strip()}</s>", prefix=False)) for c in choices]
    losses = (-model.score(contents, choices) / np.array(tokens)).reshape(-1, len(LETTERS))
    rows = [{"answer": best(row), "losses": [round(float(v), 6) for v in row]} for row in losses]
    return rows, {}

  def score(self, requests: Sequence[Request], found: Found) -> Scores:
    right = {}
    for r in requests:
      text = answer(found.rows, r.id)
      right[r.id] = text is not None and correct(text, r.truth["answer"], self.protocol)
    metrics = {"all": percent(right.values())}
    media_kinds = grouped((r.truth["data_type"], right[r.id]) for r in requests)
    metrics |= {kind: percent(values) for kind, values in media_kinds.items()}
    types = grouped((r.truth["type"], right[r.id]) for r in requests)
    self._submission(requests, found)
    categories = {"types": {name: percent(values) for name, values in types.items()}}
    return Scores(metrics, len(requests), categories=categories)

  def _submission(self, requests, found) -> None:
    rows = [{"question_id": r.id, "prediction": answer(found.rows, r.id) or ""} for r in requests]
    with replacing(found.directory / "submission.jsonl") as temporary:
      temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def prompt(row) -> str:
  options = [f"{letter}. {row[f'choice_{letter.lower()}']}" for letter in LETTERS]
  ending = "Answer with the option's letter from the given choices directly."
  return "\n".join([row["question"], *options, ending])


def likelihood_prompt(row) -> str:
  return f"{row['question']} Answer :"


def correct(text: str, gold: str, protocol: str) -> bool:
  if protocol == "lmms":
    return text[:1].lower() == gold.lower()
  return text == gold


def best(losses: Sequence[float]) -> str:
  """The letter of the smallest loss, the first one of equals."""
  return LETTERS[int(np.argmin(losses))]


def _choices(row, where: str) -> dict[str, list[str]]:
  if row["answer"] not in LETTERS:
    raise ValueError(f"{where}: answer must be one of A to D, got {row['answer']!r}")
  return {"choices": [str(field(row, f"choice_{letter.lower()}", where)) for letter in LETTERS]}
