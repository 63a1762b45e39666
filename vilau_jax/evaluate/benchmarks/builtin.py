"""Tasks that run anywhere: easy-VQA's published test questions, and the quickstart's scenes."""

import pathlib
from collections.abc import Sequence

from vilau_jax.data.formats import easy_vqa, emoji
from vilau_jax.data.records import Records
from vilau_jax.evaluate.answering import Answering, answer
from vilau_jax.evaluate.task import Found, Request, Scores, grouped, numbered, percent, read_json
from vilau_jax.generate.contents import Image


class _Exact(Answering):
  """Answers must be the expected words, whatever their case, without a full stop at the end."""

  protocols = ("exact",)
  max_new_tokens = 32

  def score(self, requests: Sequence[Request], found: Found) -> Scores:
    right = []
    for r in requests:
      text = answer(found.rows, r.id)
      kind, gold = r.truth
      right.append((kind, text is not None and plain(text) == plain(gold)))
    metrics = {"accuracy": percent(mark for _, mark in right)}
    kinds = {kind: percent(marks) for kind, marks in sorted(grouped(right).items())}
    return Scores(metrics, len(requests), categories={"kinds": kinds})


class EasyVqa(_Exact):
  """Data: easy-VQA's folder with test/questions.json; None takes the installed package."""

  name = "easy-vqa"
  splits = ("test",)

  def __init__(self, data, options):
    super().__init__(easy_vqa.find(data), options)

  def requests(self) -> list[Request]:
    path = self.data / "test" / "questions.json"
    self.sources.append(path)
    requests = []
    for i, (question, gold, picture) in enumerate(read_json(path)):
      file = self.data / "test" / "images" / f"{picture}.png"
      if not file.is_file():
        raise ValueError(f"{path}, question {i}: no picture {file}")
      kind = "yes_no" if gold in ("yes", "no") else "wh"
      requests.append(Request(str(i), [self.image(str(file)), question], (kind, gold)))
    return numbered(requests, str(path))


class Scenes(_Exact):
  """Data: records of `vilau data import emoji`, or the directory that holds emoji/test_scenes."""

  name = "scenes"
  splits = ("test_scenes",)

  def requests(self) -> list[Request]:
    places = (self.data, self.data / "test_scenes", self.data / "emoji" / "test_scenes")
    root = next((p for p in places if (p / "dataset_info.json").is_file()), None)
    if root is None:
      raise ValueError(f"{self.data} lacks emoji/test_scenes: make it with vilau data import emoji")
    self.sources.append(pathlib.Path(root) / "dataset_info.json")
    records, requests = Records(root), []
    for i in range(len(records)):
      record = records[i]
      if record["source"] != "emoji":
        raise ValueError(f"{root}, record {i}: no scene of the quickstart but {record['source']}")
      image = Image(record["images"][0])
      for k, asked in enumerate(emoji.questions(emoji.Scene.from_json(record["scene"]))):
        content = [image, asked.text]
        requests.append(Request(f"{record['id']}/{k}", content, (asked.kind, asked.answer)))
    return numbered(requests, str(root))


def plain(text: str) -> str:
  return text.strip().rstrip(".").lower()
