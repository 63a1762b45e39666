"""MME (Fu et al. 2023), table 2: two yes-or-no questions a picture; the paper's column is the
perception total."""

import pathlib
import re
from collections.abc import Sequence

from vilau_jax.evaluate.answering import SHORT, Answering, answer
from vilau_jax.evaluate.task import Found, Request, Scores, numbered

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene",
              "landmark", "artwork", "OCR")  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation",
             "code_reasoning")  # fmt: skip
ENDING = "Please answer yes or no."


class Mme(Answering):
  """Data: the release's folders, TASK/images/*.jpg with TASK/questions_answers_YN/*.txt, or both
  flat in TASK. Ids are "count/000000006723/0". Beside the scores, results/TASK.txt are written in
  the form that the official calculation reads."""

  name = "mme"
  protocols = ("official", "lmms")
  splits = ("test",)

  def requests(self) -> list[Request]:
    requests = []
    tasks = [task for task in PERCEPTION + COGNITION if (self.data / task).is_dir()]
    for task in tasks:
      folder = self.data / task
      texts = sorted((folder / "questions_answers_YN").glob("*.txt")) or sorted(
        folder.glob("*.txt")
      )
      if not texts:
        raise ValueError(f"{folder} holds no questions: neither questions_answers_YN/ nor *.txt")
      self.sources += texts
      for path in texts:
        image = _picture(folder, path.stem)
        for line, (question, truth) in enumerate(_questions(path)):
          text = question.removesuffix(ENDING).rstrip() + SHORT
          fact = (task, image.name, question, truth)
          requests.append(
            Request(f"{task}/{path.stem}/{line}", [self.image(str(image)), text], fact)
          )
    lacking = [task for task in PERCEPTION + COGNITION if task not in tasks]
    if lacking:
      raise ValueError(f"{self.data} lacks MME's folders {', '.join(lacking)}")
    return numbered(requests, str(self.data))

  def score(self, requests: Sequence[Request], found: Found) -> Scores:
    pictures: dict[str, dict[str, list[bool]]] = {}
    for r in requests:
      task, image, _, truth = r.truth
      text = answer(found.rows, r.id)
      right = text is not None and parse(text, self.protocol) == truth.lower()
      pictures.setdefault(task, {}).setdefault(image, []).append(right)
    tasks = {task: task_score(list(marks.values())) for task, marks in pictures.items()}
    metrics = {
      "perception": sum(s for task, s in tasks.items() if task in PERCEPTION),
      "cognition": sum(s for task, s in tasks.items() if task in COGNITION),
    }
    self._export(requests, found)
    return Scores(metrics, len(requests), categories={"tasks": tasks})

  def _export(self, requests, found) -> None:
    lines: dict[str, dict[tuple, str]] = {}
    for r in requests:
      task, image, question, truth = r.truth
      said = re.sub(r"[\t\r\n]+", " ", answer(found.rows, r.id) or "")
      asked = f"{question.removesuffix(ENDING).strip()} {ENDING}"
      lines.setdefault(task, {}).setdefault((image, asked, truth), said)
    (found.directory / "results").mkdir(exist_ok=True)
    for task, rows in lines.items():
      text = "".join("\t".join((*key, said)) + "\n" for key, said in rows.items())
      (found.directory / "results" / f"{task}.txt").write_text(text, encoding="utf-8")


def parse(text: str, protocol: str) -> str:
  """yes, no or other: the whole answer, else what its first four letters hold (yes before no).
  "lmms" also strips, drops full stops and knows y and n."""
  text = text.lower()
  if protocol == "lmms":
    text = text.strip().replace(".", "")
    if text in ("y", "n"):
      return {"y": "yes", "n": "no"}[text]
  if text in ("yes", "no"):
    return text
  return next((word for word in ("yes", "no") if word in text[:4]), "other")


def task_score(pictures: Sequence[Sequence[bool]]) -> float:
  """100 times the share of right answers plus 100 times the share of pictures with all right."""
  marks = [right for picture in pictures for right in picture]
  return 100 * sum(marks) / len(marks) + 100 * sum(map(all, pictures)) / len(pictures)


def _picture(folder: pathlib.Path, stem: str) -> pathlib.Path:
  for base in (folder / "images", folder):
    for suffix in (".jpg", ".png", ".jpeg"):
      if (base / f"{stem}{suffix}").is_file():
        return base / f"{stem}{suffix}"
  raise ValueError(f"{folder}: no picture {stem}.jpg or .png")


def _questions(path: pathlib.Path) -> list[tuple[str, str]]:
  found = []
  for line in path.read_text(encoding="utf-8").splitlines():
    if line.strip():
      question, tab, truth = line.rpartition("\t")
      if not tab or truth.strip() not in ("Yes", "No"):
        raise ValueError(f"{path}: a line must be QUESTION<tab>Yes or No, got {line!r}")
      found.append((question, truth.strip()))
  if len(found) != 2:
    raise ValueError(f"{path}: two questions a picture, got {len(found)}")
  return found
