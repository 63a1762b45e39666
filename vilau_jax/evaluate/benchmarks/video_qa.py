"""MSVD-QA, MSRVTT-QA, TGIF-QA, ActivityNet-QA, table 3: open questions about videos, judged as
Video-ChatGPT does (Maaz et al. 2023)."""

import ast
import json
from collections.abc import Sequence
from typing import Any

from vilau_jax.data import media
from vilau_jax.evaluate import judge_prompts
from vilau_jax.evaluate.answering import SHORT, Answering, answer
from vilau_jax.evaluate.judge import Judge
from vilau_jax.evaluate.parts import replacing
from vilau_jax.evaluate.task import (
  Found,
  Request,
  Scores,
  by_id,
  field,
  find_file,
  find_media,
  numbered,
  pick,
  read_lines,
)
from vilau_jax.generate.contents import Video

SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif", "")  # "" is a folder of frames
TRIES = 5  # replies without a verdict before a question is given up


class VideoQa(Answering):
  """Data: test_q.json, test_a.json and the videos in videos/ (or beside them), as files or as
  folders of frames. --unparsed says what becomes of questions whose verdicts can't be read: "drop"
  leaves them out, as VILA's scripts do, "no" counts them as wrong. Protocol "vila" takes frames as
  VILA-U's code does, "vila_opencv" as VILA's older scripts, "lmms" asks in lmms-eval's words."""

  protocols = ("vila", "vila_opencv", "lmms")
  splits = ("test",)
  max_new_tokens = 1024
  uses = ("max_new_tokens", "judge", "judge_prompt", "unparsed")

  def __init__(self, data, options):
    super().__init__(data, options)
    self.unparsed = pick("unparsed", options.unparsed, ("drop", "no"))

  def requests(self) -> list[Request]:
    paths = [find_file(self.data, name) for name in ("test_q.json", "test_a.json")]
    self.sources += paths
    answers = by_id(read_lines(paths[1]), "question_id", str(paths[1]))
    questions = by_id(read_lines(paths[0]), "question_id", str(paths[0]))
    unknown = sorted(set(answers) - set(questions))
    if unknown:
      raise ValueError(f"{paths[1]}: answer to an unknown question {unknown[0]}")
    videos: dict[str, Video] = {}
    opencv = self.protocol == "vila_opencv"
    choose = media.frame_indices_opencv if opencv else media.frame_indices
    requests = []
    for name, row in questions.items():
      if name not in answers:
        raise ValueError(f"{paths[1]} has no answer to question {name}")
      file = self._video(row, name)
      asked = field(row, "question", f"{paths[0]}, question {name}")
      text = prompt(asked, self.protocol)
      truth = {"question": asked, "answer": str(field(answers[name], "answer", str(paths[1])))}
      requests.append(Request(name, [videos.setdefault(file, Video(file, choose)), text], truth))
    return numbered(requests, str(paths[0]))

  def _video(self, row, name: str) -> str:
    stems = [str(field(row, "video_name", f"question {name}"))]
    if self.name == "activitynet-qa":
      stems += [name.rpartition("_")[0], f"v_{stems[0]}"]
    places = [f"{folder}{stem}{suffix}" for stem in stems if stem for folder in ("videos/", "")
              for suffix in SUFFIXES]  # fmt: skip
    return find_media(self.data, f"question {name}", *places)

  def adopt(self, rows, requests):
    """In VILA's files, and in submission.jsonl, "pred" is the answer and "answer" the truth."""
    return [{**row, "answer": row["pred"]} if "pred" in row else row for row in rows]

  def score(self, requests: Sequence[Request], found: Found) -> Scores:
    given = {r.id: answer(found.rows, r.id) or "" for r in requests}
    rows = [{"id": r.id, **r.truth, "pred": given[r.id]} for r in requests]
    with replacing(found.directory / "submission.jsonl") as temporary:
      text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
      temporary.write_text(text, encoding="utf-8")
    if self.options.judge is None:
      note = (
        "no judge: give --judge_url and --judge_model; submission.jsonl holds what it would see"
      )
      return Scores({}, len(requests), partial=note)
    texts, is_official = judge_prompts.video_qa(self.options.judge_prompt)
    judge = Judge(self.options.judge, found.directory / "verdicts.jsonl")
    verdicts = judge.map(lambda row: verdict(judge, texts, row, self.protocol), rows)
    facts = judge.facts() | {"official_prompt": is_official, "unparsed_counts_as": self.unparsed}
    return self._collect(verdicts, facts)

  def _collect(self, verdicts: Sequence[dict | None], facts: dict[str, Any]) -> Scores:
    n = len(verdicts)
    known = [v for v in verdicts if v is not None]
    unread = sum(not v for v in known)
    counted = [v or {"pred": "no", "score": 0} for v in known if v or self.unparsed == "no"]
    details = {"judge": facts, "judged": len(known), "unparsed": unread}
    partial = None
    if len(known) < n:
      partial = f"the judge gave no verdict on {n - len(known)} of {n}"
    notes = [f"{unread} verdicts could not be read: {self.unparsed}"] if unread else []
    if not any(_side(v["pred"]) for v in counted):
      partial = partial or "no verdict could be read"
      return Scores({}, n, details=details, notes=notes, partial=partial)
    return Scores(summary(counted), n, details=details, notes=notes, partial=partial)


class MsvdQa(VideoQa):
  name = "msvd-qa"


class MsrvttQa(VideoQa):
  name = "msrvtt-qa"


class TgifQa(VideoQa):
  name = "tgif-qa"


class ActivitynetQa(VideoQa):
  name = "activitynet-qa"


def prompt(question: str, protocol: str) -> str:
  """The bare question, or lmms-eval's form."""
  return question.capitalize() + "? " + SHORT.strip() if protocol == "lmms" else question


def verdict(judge: Judge, texts, row, protocol: str) -> dict[str, Any]:
  """{"pred", "score"} of one answer, or {} if no reply can be read. VILA's protocols leave the
  sampling to the server, "lmms" wants temperature 0 and at most 64 tokens.

  Raises:
    Unjudged: if the judge does not reply at all.
  """
  user = judge_prompts.render(texts["user"], row["question"], row["answer"], row["pred"])
  messages = [
    {"role": "system", "content": texts["system"]},
    {"role": "user", "content": user},
  ]
  vila = protocol != "lmms"
  reader = parse_official if vila else parse_lmms
  parameters = {} if vila else {"temperature": 0.0, "max_tokens": 64}
  for attempt in range(TRIES):
    found = reader(judge.ask(messages, attempt=attempt, **parameters))
    if found is not None:
      return found
  return {}


def parse_official(reply: str) -> dict[str, Any] | None:
  """A reply that is a Python dict with pred and score as a whole, as Video-ChatGPT wants it."""
  try:
    found = ast.literal_eval(reply.strip())
    return {"pred": str(found["pred"]), "score": int(found["score"])}
  except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError):
    return None


def parse_lmms(reply: str) -> dict[str, Any] | None:
  """What stands in the first braces of a reply, as lmms-eval wants it."""
  try:
    found = ast.literal_eval("{" + reply.split("{")[1].split("}")[0] + "}")
    pred = found["pred"].lower()
    pred = next((word for word in ("yes", "no") if word in pred), found["pred"])
    return {"pred": pred, "score": int(found["score"])}
  except (ValueError, SyntaxError, KeyError, IndexError, TypeError, AttributeError):
    return None


def summary(verdicts: Sequence[dict[str, Any]]) -> dict[str, float]:
  """Accuracy = yes / (yes + no) in percent; the mean score is over all verdicts. "yes" is looked
  for first; scores are truncated to integers.

  Raises:
    ValueError: if no verdict says yes or no.
  """
  sides = [_side(v["pred"]) for v in verdicts]
  yes, no = sides.count("yes"), sides.count("no")
  if not yes + no:
    raise ValueError("no verdict says yes or no")
  score = sum(int(v["score"]) for v in verdicts) / len(verdicts)
  return {"accuracy": 100 * yes / (yes + no), "mean_score": score, "yes": yes, "no": no}


def _side(pred: str) -> str | None:
  return next((word for word in ("yes", "no") if word in pred.lower()), None)
