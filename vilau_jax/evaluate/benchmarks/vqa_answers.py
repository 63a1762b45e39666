"""How VQA answers are normalised and scored against ten annotators.

Two processors exist: that of VQAv2's own evaluation, and EvalAI's (MMF, LLaVA, lmms-eval), which
also splits off 's and deletes commas and question marks first. Both share what looks like slips and
is part of every published number: full stops vanish unless a digit follows, hyphens become spaces
unless a space is near, and capitals in the table of contractions never match.
"""

import re
from collections.abc import Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_ARTICLES = ("a", "an", "the")
_DIGITS = {word: str(i) for i, word in enumerate(
  "zero one two three four five six seven eight nine ten".split()
)} | {"none": "0"}  # fmt: skip

# Words whose apostrophes people leave out; every spelling without one of them is corrected.
_CONTRACTIONS = """ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't
  he'd he's how'd how'll how's isn't it'd it'll ma'am mightn't might've mustn't must've needn't
  not've o'clock oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll
  someone's something'd something'll that's there'd there're there's they'd they'll they're they've
  'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd
  who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
  couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've
  something'd've there'd've they'd've we'd've who'd've wouldn't've you'd've y'all'll""".split()
_IRREGULAR = {
  "somebody'd": "somebodyd",
  "ow's'at": "'ow's'at",
  "'ows'at": "'ow's'at",
  "'ow'sat": "'ow's'at",
  "yall'd've": "y'all'd've",
  "y'alld've": "y'all'd've",
  "y'all'dve": "y'all'd've",
}


def _without_one(word: str) -> list[str]:
  return [word[:i] + word[i + 1 :] for i, letter in enumerate(word) if letter == "'"]


CONTRACTIONS = {
  short: word for word in _CONTRACTIONS for short in _without_one(word)
} | _IRREGULAR  # fmt: skip


def official(text: str) -> str:
  """Normalised as VQAv2's evaluation does."""
  text = text.replace("\n", " ").replace("\t", " ").strip()
  return _digits_and_articles(_punctuation(text, r"\d,\d"))


def evalai(text: str) -> str:
  """Normalised as EvalAI's processor does."""
  text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
  text = text.replace("\n", " ").replace("\t", " ").strip()
  return _digits_and_articles(_punctuation(text, r"\d,+\d"))


def _punctuation(text: str, number: str) -> str:
  in_number = re.search(number, text) is not None
  out = text
  for mark in _PUNCTUATION:
    near_space = f"{mark} " in text or f" {mark}" in text
    out = out.replace(mark, "" if near_space or in_number else " ")
  # re.UNICODE stands where the count belongs in the original, so at most 32 stops go.
  return re.sub(r"\.(?!\d)", "", out, count=int(re.UNICODE))


def _digits_and_articles(text: str) -> str:
  words = [_DIGITS.get(word, word) for word in text.lower().split()]
  return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def agreement(prediction: str, answers: Sequence[str]) -> float:
  """Mean over annotators of min(1, matches among the others / 3); both sides as they are."""
  scores = []
  for left_out in range(len(answers)):
    others = [a for i, a in enumerate(answers) if i != left_out]
    scores.append(min(1.0, sum(a == prediction for a in others) / 3))
  return sum(scores) / len(scores)


def vqa_accuracy(prediction: str, answers: Sequence[str], protocol: str) -> float:
  """Score of one VQAv2 answer.

  Args:
    prediction: as the model wrote it.
    answers: of the annotators.
    protocol: "official" normalises only where the annotators differ; "llava" hands over predictions
      that EvalAI's processor has normalised; "lmms" normalises both sides always.
  """
  if protocol == "lmms":
    return agreement(evalai(prediction), [evalai(a) for a in answers])
  if protocol == "llava":
    prediction = evalai(prediction)
  clean = lambda text: text.replace("\n", " ").replace("\t", " ").strip()  # noqa: E731
  prediction, answers = clean(prediction), [clean(a) for a in answers]
  if len(set(answers)) > 1:
    prediction, answers = official(prediction), [official(a) for a in answers]
  return agreement(prediction, answers)


def textvqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
  """Score of one TextVQA answer: EvalAI's processor on both sides.

  Raises:
    ValueError: for another number of answers than ten.
  """
  if len(answers) != 10:
    raise ValueError(f"TextVQA needs ten answers a question, got {len(answers)}")
  return agreement(evalai(prediction), [evalai(a) for a in answers])
