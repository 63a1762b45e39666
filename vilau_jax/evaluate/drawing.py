"""Figures of what the model draws: settings from training combinations, then held-out prompts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vilau_jax.data.formats import easy_vqa
from vilau_jax.evaluate import scenes
from vilau_jax.evaluate.scenes import Judge, Seen
from vilau_jax.evaluate.sets import TestSet

Found = tuple[dict[str, Any], dict[str, np.ndarray]]
SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)
VIDEO_SCALES = (1.0, 1.5, 2.0, 3.0)
TEMPERATURES = (0.5, 0.7, 1.0)
WORDS = {"background": "background", "object": "objects", "count": "number", "pairs": "order",
         "direction": "direction"}  # fmt: skip
BATCH = 64
SHAPES_SHOWN = 8
MOST_COUNTED = 4  # drawings with more objects share a column of the table


class Hand:
  """A model that draws with given settings, and the judge that looks at its drawings."""

  def __init__(self, model, judge: Judge, seed: int):
    self.model, self.judge, self.seed = model, judge, seed

  def images(self, prompts: Sequence[str], wish: dict[str, float], stream: int) -> np.ndarray:
    """One picture a prompt, uint8 [n,S,S,3]; `stream` separates the uses of a seed."""
    return self.model.generate_images(
      list(prompts), seed=self._seed(stream), batch_size=BATCH, **self._settings(wish)
    )

  def videos(self, prompts: Sequence[str], wish: dict[str, float], stream: int) -> np.ndarray:
    """One video a prompt, uint8 [n,F,S,S,3]."""
    frames = self.model.config.video_frames
    return self.model.generate_videos(
      list(prompts), num_frames=frames, seed=self._seed(stream), batch_size=BATCH,
      **self._settings(wish),
    )  # fmt: skip

  def _settings(self, wish: dict[str, float]) -> dict[str, Any]:
    sampling = self.model.config.sampling
    return dict(
      cfg_scale=wish["cfg_scale"], temperature=wish["temperature"],
      top_k=sampling.top_k, top_p=sampling.top_p,
    )  # fmt: skip

  def _seed(self, stream: int) -> int:
    # Output i of a call draws from seed + i: calls are kept apart.
    return (self.seed * 100 + stream) * 10_000 % 2**31


def image_settings(hand: Hand, validation: TestSet) -> Found:
  """Chooses temperature, then guidance scale, by the mean of objects, number and all."""
  rows: list[dict[str, Any]] = []

  def measure(scale: float, temperature: float) -> None:
    wish = {"cfg_scale": scale, "temperature": temperature}
    if not any(all(row[k] == v for k, v in wish.items()) for row in rows):
      seen = hand.judge.parse(hand.images(validation.captions, wish, stream=1))
      right = scenes.rates(list(map(scenes.score, seen, validation.scenes)))
      rows.append({**wish, **right, "score": right["object"] + right["count"] + right["all"]})

  start = hand.model.config.sampling.cfg_scale
  for temperature in TEMPERATURES:
    measure(start, temperature)
  best = max(rows, key=lambda row: row["score"])["temperature"]
  for scale in SCALES:
    measure(scale, best)
  chosen = max(rows, key=lambda row: row["score"])
  chosen = {key: chosen[key] for key in ("cfg_scale", "temperature")}
  return {"rows": rows, "chosen": chosen, "n": len(validation)}, {}


def video_settings(hand: Hand, validation: TestSet, temperature: float) -> Found:
  """Chooses the guidance scale of videos by the mean of object, direction and all."""
  rows: list[dict[str, Any]] = []
  for scale in VIDEO_SCALES:
    wish = {"cfg_scale": scale, "temperature": temperature}
    films = hand.videos(validation.captions, wish, stream=6)
    right = scenes.rates(_score_films(hand, films, validation))
    rows.append({**wish, **right, "score": right["object"] + right["direction"] + right["all"]})
  chosen = max(rows, key=lambda row: row["score"])
  chosen = {key: chosen[key] for key in ("cfg_scale", "temperature")}
  return {"rows": rows, "chosen": chosen, "n": len(validation)}, {}


def drawings(hand: Hand, test: TestSet, wish: dict[str, float], *, shown: int = 24) -> Found:
  """One drawing for every held-out prompt."""
  images = hand.images(test.captions, wish, stream=2)
  seen = hand.judge.parse(images)
  scores = list(map(scenes.score, seen, test.scenes))
  truth = hand.judge.parse(test.images)
  shuffled = [truth[i] for i in test.other()]
  values = {
    "rates": scenes.rates(scores),
    "chance": scenes.rates(list(map(scenes.score, shuffled, test.scenes))),
    "by_kind": _by_kind(scores, test),
    "distinct": len(set(test.captions)),
    "confusion": {
      "objects": _objects(hand.judge, seen, test),
      "counts": _counts(seen, test),
    },
    "examples": _examples(test, scores, shown),
  }
  return values, {"pictures": images[:shown]}


def sheet(hand: Hand, test: TestSet, temperature: float, *, prompts: int = 8) -> Found:
  """The same prompts and seeds at every guidance scale."""
  test = _mixed(test, prompts)
  images = [
    hand.images(test.captions, {"cfg_scale": scale, "temperature": temperature}, stream=3)
    for scale in SCALES
  ]
  return {"prompts": test.captions, "scales": list(SCALES)}, {"pictures": np.stack(images, axis=1)}


def shapes(hand: Hand, test: TestSet, wish: dict[str, float]) -> Found:
  """Drawings of easy-VQA's captions ("a red circle"), looked at by its pixel rule, which also looks
  at the test pictures themselves before and after a round trip through the codes."""
  wanted = [tuple(caption.split()[-2:]) for caption in test.captions]
  codes = hand.model.encode_images(test.images)

  def measure(images: np.ndarray, wanted: Sequence[tuple[str, str]]) -> dict[str, float]:
    seen = [easy_vqa.from_pixels(image) for image in images]
    same = np.array([[a == b for a, b in zip(s, w)] for s, w in zip(seen, wanted)])
    return {"color": same[:, 0].mean(), "shape": same[:, 1].mean(), "all": same.all(1).mean()}

  images = hand.images(test.captions, wish, stream=5)
  values = {
    "drawn": measure(images, wanted),
    "truth": measure(test.images, wanted),
    "ceiling": measure(hand.model.decode_codes(codes), wanted),
    "chance": {"color": 1 / len(easy_vqa.COLORS), "shape": 1 / len(easy_vqa.SHAPES),
               "all": 1 / len(easy_vqa.COLORS) / len(easy_vqa.SHAPES)},
    "n": len(test), "prompts": test.captions[:SHAPES_SHOWN],
    "right": [easy_vqa.from_pixels(i) == w for i, w in zip(images, wanted)][:SHAPES_SHOWN],
  }  # fmt: skip
  return values, {"pictures": images[:SHAPES_SHOWN]}


def videos(hand: Hand, test: TestSet, wish: dict[str, float], *, shown: int = 12) -> Found:
  """One video for every held-out prompt."""
  films = hand.videos(test.captions, wish, stream=4)
  scores = _score_films(hand, films, test)
  ends = test.images[:, [0, -1]]  # what the judge looks at
  codes = hand.model.encode_images(ends.reshape(-1, *ends.shape[2:]))
  mended = hand.model.decode_codes(codes).reshape(ends.shape)
  values = {
    "rates": scenes.rates(scores),
    "truth": scenes.rates(_score_films(hand, ends, test)),
    "ceiling": scenes.rates(_score_films(hand, mended, test)),
    "chance": scenes.rates(_score_films(hand, ends[test.other()], test)),
    "examples": _examples(test, scores, shown),
  }
  return values, {"films": films[:shown]}


def _score_films(hand: Hand, films: np.ndarray, test: TestSet) -> list[dict[str, bool]]:
  first, last = hand.judge.parse(films[:, 0]), hand.judge.parse(films[:, -1])
  least = hand.judge.side / 2
  return [scenes.score_video(a, b, c, least=least) for a, b, c in zip(first, last, test.scenes)]


def _by_kind(scores, test: TestSet) -> dict[str, Any]:
  kinds: dict[str, list] = {}
  for right, scene in zip(scores, test.scenes):
    number = len(scene.objects)
    kinds.setdefault("pair" if scene.kind == "pair" else f"count_{number}", []).append(right)
  return {kind: scenes.rates(kinds[kind]) for kind in sorted(kinds)}


def _examples(test: TestSet, scores, shown: int) -> list[dict[str, Any]]:
  return [
    {"prompt": caption, "wrong": [WORDS[k] for k, ok in right.items() if k != "all" and not ok]}
    for caption, right in list(zip(test.captions, scores))[:shown]
  ]


def _mixed(test: TestSet, count: int) -> TestSet:
  """Some prompts with one kind and some with two."""
  singles = [i for i, asked in enumerate(test.scenes) if asked.kind == "count"]
  pairs = [i for i, asked in enumerate(test.scenes) if asked.kind == "pair"]
  half = min(count // 2, len(pairs))
  return test.at(singles[: count - half] + pairs[:half])


def _objects(judge: Judge, seen: Sequence[Seen], test: TestSet) -> dict[str, Any]:
  names = judge.names
  kinds = {asked.objects[0].name for asked in test.scenes if asked.kind == "count"}
  rows = [name for name in names if name in kinds] or names
  table = np.zeros((len(rows), len(names) + 1), int)
  for saw, asked in zip(seen, test.scenes):
    if asked.kind == "count":
      row = rows.index(asked.objects[0].name)
      for found in saw.objects:
        table[row, names.index(found.name)] += 1
      table[row, -1] += not saw.objects
  return {"table": table.tolist(), "rows": rows, "columns": (*names, "nothing")}


def _counts(seen: Sequence[Seen], test: TestSet) -> dict[str, Any]:
  most = max((len(a.objects) for a in test.scenes if a.kind == "count"), default=1)
  table = np.zeros((most, MOST_COUNTED + 1), int)
  for saw, asked in zip(seen, test.scenes):
    if asked.kind == "count":
      table[len(asked.objects) - 1, min(len(saw.objects), MOST_COUNTED)] += 1
  columns = [*map(str, range(MOST_COUNTED)), f"{MOST_COUNTED}+"]
  return {"table": table.tolist(), "rows": [str(i + 1) for i in range(most)], "columns": columns}
