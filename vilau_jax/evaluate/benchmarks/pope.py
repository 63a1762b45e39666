"""POPE (Li et al. 2023), table 2: is an object in the picture?"""

from collections.abc import Sequence

from vilau_jax.evaluate.answering import SHORT, Answering, answer
from vilau_jax.evaluate.task import (
  Found,
  Request,
  Scores,
  by_id,
  field,
  find_file,
  find_media,
  mean,
  numbered,
  read_lines,
)

PARTS = ("random", "popular", "adversarial")


class Pope(Answering):
  """Data: coco_pope_{random,popular,adversarial}.json and val2014/COCO_val2014_...jpg. Ids are
  "random/1". The paper's column: LLaVA's rule is the mean F1 of the three, lmms-eval's pools."""

  name = "pope"
  protocols = ("official", "lmms")
  splits = ("coco",)

  def requests(self) -> list[Request]:
    requests = []
    for part in PARTS:
      path = find_file(self.data, f"coco_pope_{part}.json")
      self.sources.append(path)
      for number, row in by_id(read_lines(path), "question_id", str(path)).items():
        name, where = f"{part}/{number}", f"{path}, question {number}"
        file = field(row, "image", where)
        image = find_media(self.data, name, f"val2014/{file}", file, f"images/{file}")
        label = field(row, "label", where)
        if label not in ("yes", "no"):
          raise ValueError(f"{where}: label must be yes or no, got {label!r}")
        requests.append(
          Request(name, [self.image(image), field(row, "text", where) + SHORT], label)
        )
    return numbered(requests, str(self.data))

  def score(self, requests: Sequence[Request], found: Found) -> Scores:
    pairs: dict[str, list[tuple[str, str]]] = {part: [] for part in PARTS}
    for r in requests:
      text = answer(found.rows, r.id)
      said = "missing" if text is None else parse(text, self.protocol)
      pairs[r.id.split("/")[0]].append((said, r.truth))
    parts = {part: rates(found_pairs) for part, found_pairs in pairs.items() if found_pairs}
    pooled = rates([pair for found_pairs in pairs.values() for pair in found_pairs])
    averages = {f"mean_{key}": mean(p[key] for p in parts.values()) for key in ("f1", "accuracy")}
    metrics = {"f1": averages["mean_f1"] if self.protocol == "official" else pooled["f1"],
               **averages, **{f"pooled_{k}": v for k, v in pooled.items()}}  # fmt: skip
    metrics = {name: 100 * value for name, value in metrics.items()}
    return Scores(metrics, len(requests), categories=parts)


def parse(text: str, protocol: str) -> str:
  """What an answer says. Protocol "official": "no" if a word before the first full stop is No, no
  or not, else "yes". Protocol "lmms": the whole text in lower case."""
  if protocol == "lmms":
    return text.lower().strip()
  words = text.split(".")[0].replace(",", "").split(" ")
  return "no" if {"No", "no", "not"} & set(words) else "yes"


def rates(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
  """Accuracy, precision, recall, F1 and the share of yes, of (said, label); what is neither yes nor
  no is wrong and counts nowhere else. 0 where the official script divides by zero."""
  count = lambda said, label: sum(p == (said, label) for p in pairs)  # noqa: E731
  tp, fp, fn, tn = count("yes", "yes"), count("yes", "no"), count("no", "yes"), count("no", "no")
  precision = tp / (tp + fp) if tp + fp else 0.0
  recall = tp / (tp + fn) if tp + fn else 0.0
  f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
  yes = sum(said == "yes" for said, _ in pairs) / len(pairs)
  return {"accuracy": (tp + tn) / len(pairs), "precision": precision, "recall": recall, "f1": f1,
          "yes_ratio": yes}  # fmt: skip
