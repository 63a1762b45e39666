"""lmms-eval runs its whole catalogue on vilau_jax:

  lmms-eval --model vilau_jax --model_args checkpoint=DIR --tasks gqa,mme --output_path out

The harness (0.6 and later) finds `manifests` by the entry point of this package; the class it loads
is in lmms_eval_model.py. What a model of it has to do is here, without importing the harness.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from vilau_jax import api
from vilau_jax.data import media
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


class Harness:
  """Answers the harness's requests.

  Args:
    model: a loaded model.
    batch_size: conversations at once.
    num_video_frames: must be what the model takes; None takes that.
    until: "ignore", as the released adapter does, or "respect" to cut answers at the task's stop
      words (the harness adds a blank line to every task that names none).
    output_dir: where videos for vbench tasks go.
    documents: (task, split, id) -> document.
  """

  def __init__(
    self,
    model: api.VilaU,
    documents: Callable[[str, str, Any], Any],
    *,
    batch_size: int = 1,
    num_video_frames: int | None = None,
    until: str = "ignore",
    output_dir: str = ".",
  ):
    if until not in ("ignore", "respect"):
      raise ValueError(f'until must be "ignore" or "respect", got {until!r}')
    if num_video_frames not in (None, model.config.video_frames):
      raise ValueError(
        f"this model reads {model.config.video_frames} frames of a video, not {num_video_frames}"
      )
    self.model, self.documents = model, documents
    self.batch_size, self.until = int(batch_size), until
    self.output = pathlib.Path(output_dir)

  def generate(self, requests: Sequence[Any]) -> list[str]:
    """Answers in the order of the requests; those of one kind share batches."""
    answers: dict[int, str] = {}
    groups: dict[tuple, list[tuple[int, list, dict]]] = {}
    for i, request in enumerate(requests):
      context, settings, to_visual, name, task, split = request.args
      doc = self.documents(task, split, name)
      if task.startswith("vbench"):
        answers[i] = self._film(context, doc)
        continue
      kind = _settings(settings, task)
      groups.setdefault(kind, []).append((i, conversation(context, to_visual(doc)), settings))
    for (tokens, temperature, top_p), members in groups.items():
      members = sorted(members, key=lambda m: (len(m[1]), len(m[1][-1])))
      said = self.model.generate_text(
        [content for _, content, _ in members],
        max_new_tokens=tokens, temperature=temperature, top_p=top_p,
        seed=[i for i, *_ in members], batch_size=self.batch_size,
      )  # fmt: skip
      for (i, _, settings), text in zip(members, said):
        answers[i] = self._cut(text, settings)
    return [answers[i] for i in range(len(requests))]

  def losses(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
    """(mean loss of the tokens, whether greedy decoding writes them) of each continuation. The
    harness takes the smallest, so these are losses and not likelihoods, whatever it calls them."""
    contents, texts = [], []
    for request in requests:
      context, continuation, to_visual, name, task, split = request.args
      doc = self.documents(task, split, name)
      text = continuation(doc) if callable(continuation) else continuation
      contents.append(conversation(context, to_visual(doc)))
      texts.append(text.strip())
    encode = self.model.tokenizer.encode
    sizes = [len(encode(f" {text}</s>", prefix=False)) for text in texts]
    likelihoods = self.model.score(contents, texts)
    greedy = self.model.exact(contents, texts)
    return [(float(-s / n), bool(g)) for s, n, g in zip(likelihoods, sizes, greedy)]

  def _cut(self, text: str, settings: dict[str, Any]) -> str:
    if self.until == "ignore":
      return text
    stops = settings.get("until") or []
    for stop in [stops] if isinstance(stops, str) else stops:
      text = text.split(stop)[0]
    return text

  def _film(self, prompt: str, doc: dict[str, Any]) -> str:
    """A video for a vbench task; the answer is where it lies."""
    path = self.output / "vbench" / f"{prompt}-{doc['sample_index']}.mp4"
    if not path.exists():
      frames = self.model.generate_videos([prompt], seed=[int(doc["seed"])])[0]
      media.write_video(frames, path, _VBENCH_FPS)
    return str(path)


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
