"""VQAv2 (Goyal et al. 2017), table 2. The test splits are scored by a server: for them the
submission is written."""

import json
from collections.abc import Sequence

from vilau_jax.evaluate.answering import SHORT, Answering, answer
from vilau_jax.evaluate.benchmarks.vqa_answers import evalai, vqa_accuracy
from vilau_jax.evaluate.parts import replacing
from vilau_jax.evaluate.task import (
  Found,
  Request,
  Scores,
  by_id,
  field,
  find_file,
  find_media,
  find_optional,
  grouped,
  numbered,
  percent,
  read_json,
)


class Vqav2(Answering):
  """Data: v2_OpenEnded_mscoco_SPLIT_questions.json, v2_mscoco_val2014_annotations.json, and
  val2014/COCO_val2014_000000000042.jpg (or test2015/)."""

  name = "vqav2"
  protocols = ("llava", "official", "lmms")
  splits = ("val2014", "test-dev2015", "test2015")

  def requests(self) -> list[Request]:
    path = find_file(self.data, f"v2_OpenEnded_mscoco_{self.split}_questions.json")
    self.sources.append(path)
    truth = self._annotations() if self.split == "val2014" else {}
    folder = "val2014" if self.split == "val2014" else "test2015"
    requests = []
    asked = by_id(field(read_json(path), "questions", str(path)), "question_id", str(path))
    for name, row in asked.items():
      if truth and name not in truth:
        raise ValueError(f"{self.sources[1]} has no annotation of question {name}")
      file = f"COCO_{folder}_{int(field(row, 'image_id', str(path))):012d}.jpg"
      image = find_media(self.data, f"question {name}", f"{folder}/{file}", file)
      content = [self.image(image), field(row, "question", str(path)) + SHORT]
      requests.append(Request(name, content, truth.get(name)))
    return numbered(requests, str(path))

  def _annotations(self) -> dict[str, dict]:
    path = find_file(self.data, f"v2_mscoco_{self.split}_annotations.json")
    self.sources.append(path)
    return by_id(field(read_json(path), "annotations", str(path)), "question_id", str(path))

  def score(self, requests: Sequence[Request], found: Found) -> Scores:
    given = {r.id: answer(found.rows, r.id) for r in requests}
    if self.split != "val2014":
      return self._submit(requests, given, found)
    marks = {
      r.id: 0.0 if given[r.id] is None else vqa_accuracy(
        given[r.id], [a["answer"] for a in r.truth["answers"]], self.protocol
      )
      for r in requests
    }  # fmt: skip
    kinds = {}
    for kind, key in (("question_type", "question_type"), ("answer_type", "answer_type")):
      groups = grouped((r.truth[key], marks[r.id]) for r in requests)
      kinds[kind] = {name: round(percent(values), 2) for name, values in groups.items()}
    return Scores({"accuracy": round(percent(marks.values()), 2)}, len(requests), categories=kinds)

  def _submit(self, requests, given, found) -> Scores:
    """The server wants every question of test2015, also where only test-dev was asked."""
    whole = find_optional(self.data, "v2_OpenEnded_mscoco_test2015_questions.json")
    ids = [row["question_id"] for row in read_json(whole)["questions"]] if whole else [
      int(r.id) for r in requests
    ]  # fmt: skip
    rows = [{"question_id": int(i), "answer": evalai(given.get(str(i)) or "")} for i in ids]
    with replacing(found.directory / "submission.json") as temporary:
      temporary.write_text(json.dumps(rows), encoding="utf-8")
    note = f"the server scores {self.split}: upload {found.directory / 'submission.json'}"
    if not whole:
      note += " (it wants every id of test2015; put the question file beside the others)"
    return Scores({}, len(requests), notes=[note])
