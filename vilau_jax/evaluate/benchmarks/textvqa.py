"""TextVQA (Singh et al. 2019), table 2, validation set."""

from collections.abc import Sequence

from vilau_jax.evaluate.answering import SHORT, Answering, answer
from vilau_jax.evaluate.benchmarks.vqa_answers import textvqa_accuracy
from vilau_jax.evaluate.task import (
  Found,
  Request,
  Scores,
  by_id,
  field,
  find_file,
  find_media,
  numbered,
  percent,
  read_json,
)

HINT = "Reference OCR token: "


class Textvqa(Answering):
  """Data: TextVQA_0.5.1_val.json and train_images/ID.jpg. Protocol "lmms" asks without OCR; "llava"
  adds the tokens of TextVQA_Rosetta_OCR_v0.2_val.json to the question."""

  name = "textvqa"
  protocols = ("lmms", "llava")
  splits = ("val",)

  def requests(self) -> list[Request]:
    path = find_file(self.data, "TextVQA_0.5.1_val.json")
    self.sources.append(path)
    tokens = self._ocr() if self.protocol == "llava" else {}
    requests = []
    rows = by_id(field(read_json(path), "data", str(path)), "question_id", str(path))
    for name, row in rows.items():
      image = str(field(row, "image_id", f"{path}, question {name}"))
      file = find_media(
        self.data, f"question {name}", f"train_images/{image}.jpg", f"{image}.jpg"
      )  # fmt: skip
      if len(field(row, "answers", f"{path}, question {name}")) != 10:
        raise ValueError(f"{path}, question {name}: {len(row['answers'])} answers, not ten")
      if self.protocol == "llava" and image not in tokens:
        raise ValueError(f"{self.sources[1]} has no OCR tokens of image {image}")
      text = prompt(row["question"], self.protocol, tokens.get(image))
      requests.append(Request(name, [self.image(file), text], row))
    return numbered(requests, str(path))

  def _ocr(self) -> dict[str, list[str]]:
    path = find_file(self.data, "TextVQA_Rosetta_OCR_v0.2_val.json")
    self.sources.append(path)
    rows = by_id(field(read_json(path), "data", str(path)), "image_id", str(path))
    return {name: field(row, "ocr_tokens", str(path)) for name, row in rows.items()}

  def adopt(self, rows, requests):
    """LLaVA's answers have the picture's id and the prompt instead of the question's id."""
    return from_llava(rows, requests) if rows and all("prompt" in r for r in rows) else rows

  def score(self, requests: Sequence[Request], found: Found) -> Scores:
    marks = []
    for r in requests:
      text = answer(found.rows, r.id)
      marks.append(0.0 if text is None else textvqa_accuracy(text, r.truth["answers"]))
    return Scores({"accuracy": percent(marks)}, len(requests))


def prompt(question: str, protocol: str, tokens: Sequence[str] | None) -> str:
  """The question as it is asked; with `tokens` (also an empty list) they stand below it."""
  asked = question.capitalize() if protocol == "lmms" else question
  return asked + (f"\n{HINT}{', '.join(tokens)}" if tokens is not None else "") + SHORT


def question_of(text: str) -> str:
  """The question inside a prompt of LLaVA's file, lower-cased: how its answers find annotations.

  Raises:
    ValueError: for a prompt of another form.
  """
  lines = text.split("\n")
  if text.startswith("OCR tokens: "):
    body = text.partition("Question: ")[2]
    return body.partition("Short answer:")[0].strip().lower()
  if text.startswith(HINT) and len(lines) == 3:
    return lines[1].lower()
  if len(lines) == 2 or (len(lines) == 3 and lines[1].startswith(HINT)):
    return lines[0].lower()
  raise ValueError(f"no prompt of LLaVA's TextVQA file: {text!r}")


def from_llava(rows: Sequence[dict], requests: Sequence[Request]) -> list[dict]:
  """Rows of LLaVA's answer file (their question_id is the image's) under the ids of the questions.

  Raises:
    ValueError: if a row belongs to no question.
  """
  ids = {(str(r.truth["image_id"]), r.truth["question"].lower()): r.id for r in requests}
  found = []
  for row in rows:
    key = (str(row["question_id"]), question_of(row["prompt"]))
    if key not in ids:
      raise ValueError(f"no question {key[1]!r} about image {key[0]} in the annotations")
    found.append({"id": ids[key], "answer": row["text"]})
  return found
