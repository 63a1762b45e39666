"""lmms-eval runs its whole catalogue on vilau_jax:

  lmms-eval --model vilau_jax --model_args checkpoint=DIR --tasks gqa,mme --output_path out

The harness (0.6 and later) finds `manifests` by the entry point of this package; the class it loads
is in lmms_eval_model.py. What a model of it has to do is here, without importing the harness.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from vilau_jax import api
from vilau_jax.data import media
from vilau_jax.evaluate.replicas import Replicas
from vilau_jax.generate.contents import Image, Video

MODEL = "vilau_jax"
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif")
_VBENCH_FPS = 8


def manifests() -> list[Any]:
  """What the entry point group "lmms_eval.models" wants. Only a simple class: with a chat class
  beside it, every task that compares likelihoods would refuse to run."""
  from lmms_eval.models.registry_v2 import ModelManifest

  path = "vilau_jax.evaluate.lmms_eval_model.VilaUJax"
  return [ModelManifest(model_id=MODEL, simple_class_path=path, aliases=("vila_u_jax",))]


@dataclasses.dataclass(frozen=True)
class Asked:
  """A conversation of one turn.

  Attributes:
    context: the harness's text.
    visuals: gives its pictures and videos, when its batch is due.
    settings: the task's generation_kwargs.
    task: its name.
    seed: of this one.
  """

  context: str
  visuals: Callable[[], Sequence[Any] | None]
  settings: dict[str, Any]
  task: str
  seed: int


class Harness:
  """Answers the harness's requests; batches are shared by the devices of this process.

  Args:
    replicas: the model.
    documents: (task, split, id) -> document.
    batch_size: conversations at once.
    num_video_frames: must be what the model takes; None takes that.
    until: "ignore", as the released adapter does, or "respect" to cut answers at the task's stop
      words (the harness adds a blank line to every task that names none).
    answer: "text", or "image" for tasks that judge drawings (WISE): every answer is then the JSON
      {"text": "", "images": [path]} that these tasks read. Drawn from the text alone.
    output_dir: where drawings go.
  """

  def __init__(
    self,
    replicas: Replicas,
    documents: Callable[[str, str, Any], Any],
    *,
    batch_size: int = 1,
    num_video_frames: int | None = None,
    until: str = "ignore",
    answer: str = "text",
    output_dir: str = ".",
  ):
    if until not in ("ignore", "respect"):
      raise ValueError(f'until must be "ignore" or "respect", got {until!r}')
    if answer not in ("text", "image"):
      raise ValueError(f'answer must be "text" or "image", got {answer!r}')
    config = replicas.models[0].config
    if num_video_frames not in (None, config.video_frames):
      raise ValueError(
        f"this model reads {config.video_frames} frames of a video, not {num_video_frames}"
      )
    self.replicas, self.documents = replicas, documents
    self.batch_size, self.until, self.answer = int(batch_size), until, answer
    self.output = pathlib.Path(output_dir)

  def generate(self, requests: Sequence[Any]) -> list[str]:
    """Answers in the order of the requests."""
    films = [i for i, r in enumerate(requests) if r.args[4].startswith("vbench")]
    answers = dict(zip(films, self.replicas.map(self._film, [requests[i].args for i in films])))
    rest = [i for i in range(len(requests)) if i not in answers]
    if self.answer == "image":
      drawn = self._draw([(requests[i].args[0], f"{requests[i].args[4]}_{requests[i].args[3]}", i)
                          for i in rest])  # fmt: skip
      said = [json.dumps({"text": "", "images": [path]}) for path in drawn]
    else:
      said = self._say([self._first(requests[i].args, i) for i in rest])
    answers |= zip(rest, said)
    return [answers[i] for i in range(len(requests))]

  def rounds(self, requests: Sequence[Any]) -> list[list[str]]:
    """Talks of several rounds, each of which sees the pictures and the text that the task makes of
    the answers so far; the answers of all its rounds for every request."""
    said: list[list[str]] = [[] for _ in requests]
    notes: list[Any] = [None] * len(requests)
    running = {i: self._first([*r.args[:3], *r.args[4:]], i) for i, r in enumerate(requests)}
    number = 0
    while running:
      number += 1
      new = self._say(list(running.values()))
      following = {}
      for (i, asked), text in zip(running.items(), new):
        *_, to_text, name, task, split = requests[i].args
        visuals, context, over, said[i], notes[i] = to_text(
          self.documents(task, split, name), previous_output=[*said[i], text], round_idx=number,
          previous_round_info=notes[i],
        )  # fmt: skip
        if not over:
          following[i] = dataclasses.replace(
            asked, context=context, visuals=functools.partial(list, visuals or ())
          )
      running = following
    return [list(texts) for texts in said]

  def sketched(self, requests: Sequence[Any]) -> list[str]:
    """Answers with a drawing of the model's own as a further picture: what the task wants drawn is
    between [GEN_PROMPT] marks, the question between [QUESTION] marks; without them the whole text
    is both."""
    parts = [sketch_and_question(r.args[0]) for r in requests]
    paths = self._draw([(wish, f"{r.args[4]}_{r.args[3]}", i)
                        for i, (r, (wish, _)) in enumerate(zip(requests, parts))])  # fmt: skip
    asked = []
    for i, (request, (_, question), path) in enumerate(zip(requests, parts, paths)):
      first = self._first(request.args, i)
      visuals = lambda given=first.visuals, path=path: [*(given() or ()), path]  # noqa: E731
      asked.append(dataclasses.replace(first, context=question, visuals=visuals))
    return self._say(asked)

  def _first(self, args: Sequence[Any], i: int) -> Asked:
    context, settings, to_visual, name, task, split = args
    visuals = lambda: to_visual(self.documents(task, split, name))  # noqa: E731
    return Asked(context, visuals, settings, task, i)

  def _say(self, asked: Sequence[Asked]) -> list[str]:
    """Answers; conversations of one kind and of similar length share batches."""
    groups: dict[tuple, list[int]] = {}
    for i, one in enumerate(asked):
      groups.setdefault(_settings(one.settings, one.task), []).append(i)
    batches = []
    for kind, members in groups.items():
      members.sort(key=lambda i: len(asked[i].context))
      batches += [(kind, here) for here in batched(members, self.batch_size)]

    def answer(model: api.VilaU, batch) -> list[str]:
      (tokens, temperature, top_p), members = batch
      here = [asked[i] for i in members]
      return model.generate_text(
        [conversation(one.context, one.visuals()) for one in here],
        max_new_tokens=tokens, temperature=temperature, top_p=top_p,
        seed=[one.seed for one in here], batch_size=self.batch_size,
      )  # fmt: skip

    answers = {}
    for (_, members), texts in zip(batches, self.replicas.map(answer, batches)):
      answers |= {i: self._cut(text, asked[i].settings) for i, text in zip(members, texts)}
    return [answers[i] for i in range(len(asked))]

  def _draw(self, wishes: Sequence[tuple[str, str, int]]) -> list[str]:
    """(what, name, seed) -> paths of pictures."""
    folder = self.output / "drawings"
    folder.mkdir(parents=True, exist_ok=True)

    def draw(model: api.VilaU, batch) -> list[str]:
      prompts, names, seeds = zip(*batch)
      prompts = [prompt.replace("<image>", "").strip() for prompt in prompts]
      paths = [folder / f"{name}.png" for name in names]
      pictures = model.generate_images(prompts, seed=list(seeds), batch_size=self.batch_size)
      for path, picture in zip(paths, pictures, strict=True):
        media.write_image(picture, path)
      return list(map(str, paths))

    parts = self.replicas.map(draw, batched(wishes, self.batch_size))
    return list(itertools.chain.from_iterable(parts))

  def losses(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
    """(mean loss of the tokens, whether greedy decoding writes them) of each continuation. The
    harness takes the smallest, so these are losses and not likelihoods, whatever it calls them."""

    def score(model: api.VilaU, here: Sequence[Any]) -> list[tuple[float, bool]]:
      contents, texts = [], []
      for request in here:
        context, continuation, to_visual, name, task, split = request.args
        doc = self.documents(task, split, name)
        text = continuation(doc) if callable(continuation) else continuation
        contents.append(conversation(context, to_visual(doc)))
        texts.append(text.strip())
      sizes = [len(model.tokenizer.encode(f" {text}</s>", prefix=False)) for text in texts]
      found = zip(model.score(contents, texts), sizes, model.exact(contents, texts))
      return [(float(-s / n), bool(g)) for s, n, g in found]

    parts = self.replicas.map(score, batched(requests, self.batch_size))
    return list(itertools.chain.from_iterable(parts))

  def _cut(self, text: str, settings: dict[str, Any]) -> str:
    if self.until == "ignore":
      return text
    stops = settings.get("until") or []
    for stop in [stops] if isinstance(stops, str) else stops:
      text = text.split(stop)[0]
    return text

  def _film(self, model: api.VilaU, args: Sequence[Any]) -> str:
    """A video for a vbench task; the answer is where it lies."""
    prompt, _, _, name, task, split = args
    doc = self.documents(task, split, name)
    folder = self.output / "vbench" / model.identity()  # clips of another model are not this one's
    path = folder / f"{prompt}-{doc['sample_index']}.mp4"
    if not path.exists():
      frames = model.generate_videos([prompt], seed=[int(doc["seed"])])[0]
      media.write_video(frames, path, _VBENCH_FPS)
    return str(path)


def batched(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
  """`size` at a time, the last perhaps fewer."""
  return [items[at : at + size] for at in range(0, len(items), size)]


def sketch_and_question(context: str) -> tuple[str, str]:
  """What to draw, and what to ask, of a task that wants a drawing on the way."""
  found = [re.search(rf"\[{mark}\](.*?)\[/{mark}\]", context, re.DOTALL)
           for mark in ("GEN_PROMPT", "QUESTION")]  # fmt: skip
  if not all(found):
    return context, context
  wish, question = (match.group(1).strip() for match in found)
  return wish.replace("{question}", question), question


def conversation(context: str, visuals: Sequence[Any] | None) -> list[Any]:
  """Pictures and videos first, then the text, as VILA-U's prompt has them.

  Args:
    context: the harness's text; its own <image> marks are dropped.
    visuals: PIL images, paths of pictures or videos, or lists of frames.

  Raises:
    ValueError: for something else.
  """
  parts: list[Any] = []
  for visual in visuals or ():
    if isinstance(visual, str | pathlib.Path):
      path = pathlib.Path(visual)
      is_video = path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES
      parts.append(Video(str(path)) if is_video else Image(str(path)))
    elif isinstance(visual, list | tuple):
      parts.append(Video(list(visual)))
    elif hasattr(visual, "convert"):
      parts.append(Image(visual))
    else:
      raise ValueError(f"the task hands over a {type(visual).__name__}; pictures are PIL images, "
                       "paths or lists of frames")  # fmt: skip
  return [*parts, context.replace("<image>", "").strip()]


def _settings(given: dict[str, Any], task: str) -> tuple[int, float, float]:
  """(max_new_tokens, temperature, top_p). Greedy unless the task wants to sample: VILA-U's own
  adapter samples where a task says nothing, which can't be repeated."""
  if int(given.get("num_beams") or 1) != 1:
    raise ValueError(f"{task} asks for num_beams={given['num_beams']}; there is no beam search")
  temperature = float(given.get("temperature") or 0.0)
  if not given.get("do_sample"):
    temperature = 0.0
  elif given.get("temperature") is None:
    temperature = 1.0
  top_p = given.get("top_p")
  tokens = int(given.get("max_new_tokens") or 512)
  return tokens, temperature, 1.0 if top_p is None or not temperature else float(top_p)
