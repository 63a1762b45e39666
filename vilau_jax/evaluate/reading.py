"""Figures of what the model reads: questions, captions, and the floor that text alone reaches.

An answer counts when greedy decoding would write exactly it; `exact` finds that out in one
teacher-forced pass over all answers.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from vilau_jax.data.conversation import CAPTION_QUESTION
from vilau_jax.data.formats.emoji import Question
from vilau_jax.evaluate.sets import TestSet
from vilau_jax.generate.contents import Image, Video

Found = tuple[dict[str, Any], dict[str, np.ndarray]]
Asked = tuple[int, Question]  # index of the picture, and what is asked about it
LONGEST = 32  # tokens of an answer that is written out


def easy_vqa(model, test: TestSet, *, shown: int = 6) -> Found:
  """The published test questions."""
  values = _marked(model, test, _all(test))
  values["examples"] = _examples(model, test, shown, questions=3)
  return values, {"pictures": test.images[:shown]}


def scenes(model, test: TestSet, *, shown: int = 9) -> Found:
  """Questions about held-out scenes by kind, and their captions word for word."""
  values = _marked(model, test, _all(test))
  captions = [(i, _caption(test, i, test.scenes[i].kind)) for i in range(len(test))]
  values["captions"] = _marked(model, test, captions)["kinds"]
  values["examples"] = _examples(model, test, shown, questions=2, caption=True)
  values["ask"] = test.questions[0][0].text
  return values, {"pictures": test.images[:shown]}


def videos(model, test: TestSet, *, shown: int = 8) -> Found:
  """Held-out videos: captions word for word, whether the caption that the model writes names the
  right direction and object, and questions."""
  captions = [(i, _caption(test, i, "caption")) for i in range(len(test))]
  contents = [[_part(test, i), question.text] for i, question in captions]
  written = model.generate_text(contents, max_new_tokens=LONGEST)
  share = lambda values: float(np.mean(values))  # noqa: E731
  values = {
    "exact": share([text == test.captions[i] for i, text in enumerate(written)]),
    "direction": share([s.direction in words(t) for t, s in zip(written, test.scenes)]),
    "object": share([s.objects[0].name in words(t) for t, s in zip(written, test.scenes)]),
    "n": len(written),
    "written": written,
    "captions": test.captions,
    **_marked(model, test, _all(test)),
  }
  return values, {"films": test.images[:shown]}


def words(text: str) -> list[str]:
  return text.lower().replace(".", " ").replace(",", " ").split()


def text_only(asked: Sequence[Asked]) -> np.ndarray:
  """Which questions are answered by the most frequent answer to the same question, bool [n]: the
  floor that a model reaches without looking, measured on the same questions."""
  answers: dict[str, Counter] = defaultdict(Counter)
  for _, question in asked:
    answers[question.text][question.answer] += 1
  best = {text: counts.most_common(1)[0][0] for text, counts in answers.items()}
  return np.array([best[q.text] == q.answer for _, q in asked])


def _marked(model, test: TestSet, asked: Sequence[Asked]) -> dict[str, Any]:
  """Share of right answers, of all and by kind, each with its floor."""
  parts = [_part(test, i) for i in range(len(test))]  # shared, so each is encoded once
  contents = [[parts[i], question.text] for i, question in asked]
  right = np.asarray(model.exact(contents, [q.answer for _, q in asked]))
  blind, kinds = text_only(asked), np.array([q.kind for _, q in asked])
  values = {}
  for name in ("all", *sorted(set(kinds.tolist()))):
    here = np.full(len(asked), True) if name == "all" else kinds == name
    values[name] = {
      "value": float(right[here].mean()),
      "text_only": float(blind[here].mean()),
      "n": int(here.sum()),
    }
  return {"kinds": values}


def _all(test: TestSet) -> list[Asked]:
  return [(i, question) for i, asked in enumerate(test.questions) for question in asked]


def _caption(test: TestSet, i: int, kind: str) -> Question:
  medium = "video" if test.images.ndim == 5 else "image"
  return Question(kind, CAPTION_QUESTION[medium], test.captions[i])


def _part(test: TestSet, i: int) -> Image | Video:
  return Video(list(test.images[i])) if test.images.ndim == 5 else Image(test.images[i])


def _examples(model, test: TestSet, shown: int, *, questions: int, caption: bool = False):
  """What the model writes about the first pictures, a list of lines a picture."""
  asked: list[Asked] = []
  for i in range(min(shown, len(test))):
    asked += [(i, question) for question in test.questions[i][:questions]]
    asked += [(i, _caption(test, i, "caption"))] if caption else []
  contents = [[_part(test, i), question.text] for i, question in asked]
  given = model.generate_text(contents, max_new_tokens=LONGEST)
  lines: list[list[dict[str, str]]] = [[] for _ in range(min(shown, len(test)))]
  for (i, question), said in zip(asked, given):
    lines[i].append({"question": question.text, "answer": question.answer, "given": said})
  return lines
