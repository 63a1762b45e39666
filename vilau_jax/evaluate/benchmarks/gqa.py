"""GQA (Hudson and Manning 2019), table 2, testdev-balanced."""

import json
import string
from collections.abc import Mapping, Sequence

from vilau_jax.evaluate.answering import SHORT, Answering, answer
from vilau_jax.evaluate.parts import replacing
from vilau_jax.evaluate.task import (
  Found,
  Request,
  Scores,
  field,
  find_file,
  find_media,
  grouped,
  numbered,
  percent,
  read_json,
)


class Gqa(Answering):
  """Data: SPLIT_questions.json and images/ID.jpg. --strict refuses missing predictions, as the
  official script does."""

  name = "gqa"
  protocols = ("llava", "lmms")
  splits = ("testdev_balanced", "val_balanced")
  uses = ("max_new_tokens", "strict")

  def requests(self) -> list[Request]:
    path = find_file(self.data, f"{self.split}_questions.json")
    self.sources.append(path)
    requests = []
    for name, row in read_json(path).items():
      where = f"{path}, question {name}"
      file = f"{field(row, 'imageId', where)}.jpg"
      image = find_media(self.data, f"question {name}", f"images/{file}", file)
      content = [self.image(image), field(row, "question", where) + SHORT]
      requests.append(Request(name, content, row | {"answer": field(row, "answer", where)}))
    return numbered(requests, str(path))

  def score(self, requests: Sequence[Request], found: Found) -> Scores:
    given = {r.id: answer(found.rows, r.id) for r in requests}
    lacking = [name for name, text in given.items() if text is None]
    if lacking and self.options.strict:
      raise ValueError(f"no prediction for question {lacking[0]} (and {len(lacking) - 1} others)")
    right = {r.id: given[r.id] is not None and correct(given[r.id], r.truth["answer"],
             self.protocol) for r in requests}  # fmt: skip
    binary, kinds = [], {"structural": [], "semantic": [], "steps": [], "words": []}
    for r in requests:
      types = r.truth.get("types", {})
      for kind in ("structural", "semantic"):
        if kind in types:
          kinds[kind].append((types[kind], right[r.id]))
      if "structural" in types:
        binary.append(("open" if types["structural"] == "query" else "binary", right[r.id]))
      kinds["steps"].append((str(len(r.truth.get("semantic", ()))), right[r.id]))
      kinds["words"].append((str(len(r.truth["question"].split())), right[r.id]))
    metrics = {"accuracy": percent(right.values())}
    metrics |= {name: percent(values) for name, values in grouped(binary).items()}
    metrics |= self._distribution(requests, given)
    self._submission(given, found)
    categories = {
      kind: {name: percent(v) for name, v in sorted(grouped(pairs).items())}
      for kind, pairs in kinds.items()
    }
    return Scores(metrics, len(requests), categories=categories)

  def _distribution(self, requests, given) -> dict[str, float]:
    gold: dict[str, dict[str, int]] = {}
    said: dict[str, dict[str, int]] = {}
    for r in requests:
      group = (r.truth.get("groups") or {}).get("global")
      if group is not None and given[r.id] is not None:
        for counts, text in ((gold, r.truth["answer"]), (said, llava_prediction(given[r.id]))):
          counts.setdefault(group, {})[text] = counts.get(group, {}).get(text, 0) + 1
    return {"distribution": distribution(gold, said)} if gold else {}

  def _submission(self, given, found) -> None:
    rows = [{"questionId": name, "prediction": llava_prediction(text)}
            for name, text in given.items() if text is not None]  # fmt: skip
    with replacing(found.directory / f"{self.split}_predictions.json") as temporary:
      temporary.write_text(json.dumps(rows), encoding="utf-8")


def llava_prediction(text: str) -> str:
  return text.strip().rstrip(".").lower()


def correct(text: str, gold: str, protocol: str) -> bool:
  """Protocol "llava": equal after lower-casing and without the last full stop. Protocol "lmms":
  equal without case and any ASCII punctuation."""
  if protocol == "llava":
    return llava_prediction(text) == gold
  bare = str.maketrans("", "", string.punctuation)
  return text.strip().lower().translate(bare) == gold.lower().translate(bare)


def distribution(
  gold: Mapping[str, Mapping[str, int]], said: Mapping[str, Mapping[str, int]]
) -> float:
  """Chi-square of the answers of each group, averaged by the groups' sizes, divided by 100; answers
  that no gold answer of the group is are ignored."""
  total = weight = 0.0
  for group, counts in gold.items():
    size = sum(counts.values())
    chi = sum((said.get(group, {}).get(a, 0) - n) ** 2 / n for a, n in counts.items())
    total, weight = total + chi * size, weight + size
  return total / weight / 100
