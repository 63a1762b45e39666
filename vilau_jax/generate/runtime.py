"""A loaded model's parts behind the public class: what is there, prompts from contents, pictures
from codes.

Axis letters: n outputs, T visual positions, R residual depth, S image side, F frames.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vilau_jax import checkpoint
from vilau_jax.checkpoint import LoadedModel
from vilau_jax.config import TowerConfig
from vilau_jax.data import forms, media
from vilau_jax.data import sequence as sequences
from vilau_jax.data.conversation import Visual
from vilau_jax.data.tokenizer import Tokenizer
from vilau_jax.generate import image, interleaved, sampling
from vilau_jax.generate import speculative as speculation
from vilau_jax.generate.cache import check_context
from vilau_jax.generate.contents import Contents, Image, as_list, to_turns
from vilau_jax.generate.engine import Engine
from vilau_jax.generate.vision import Vision
from vilau_jax.layers.product import natural

_CHUNK = 512  # pictures or conversations that are in memory as pixels at once
_PARTS = {
  "tower": "vision tower",
  "llm": "language model",
  "projector": "projector",
  "depth": "depth transformer",
}


class Runtime:
  """Prepared parts of a model.

  Attributes:
    config, path: as loaded.
    tokenizer: of the language model, or None.
    vision: the tower, if there is one.
    engine: language model and depth transformer, if there is a language model.
    settings: how conversations become sequences.
  """

  def __init__(
    self,
    loaded: LoadedModel,
    mesh: jax.sharding.Mesh | None = None,
    quantize: str | None = None,
  ):
    self.config, self.path = loaded.config, loaded.path
    self.tokenizer = Tokenizer(loaded.tokenizer_path) if loaded.tokenizer_path else None
    params = loaded.variables["params"]
    self._parts = {k for k in _PARTS if k in params and getattr(self.config, k) is not None}
    if self.config.projector == "identity":  # has no weights
      self._parts.add("projector")
    self._tower: dict[str, Any] = {}
    self._identity = ""
    if "tower" in self._parts:
      self._tower = {
        "params": params["tower"], "quantizer": loaded.variables.get("quantizer", {}),
      }  # fmt: skip
      self.vision = Vision(self.config.tower, self._tower, self.config.dtype)
      if not self._tower["quantizer"]:  # an imported SigLIP: encoders, and no codes
        self._parts.remove("tower")
    if "llm" in self._parts:
      self.engine = Engine(self.config, loaded.variables, mesh, quantize)
      self.settings = forms.SequenceSettings.from_model(self.config)
      if self.tokenizer is not None:
        self.engine.prefix = sequences.shared_beginning(self.tokenizer, self.settings)

  def variables(self) -> dict[str, Any]:
    """All variables in the layout and dtypes they are saved in.

    Raises:
      ValueError: if weights were quantised, which loses what they were.
    """
    if "llm" in self._parts and self.engine.quantized:
      raise ValueError(
        f"this model was loaded with quantize={self.engine.quantized!r}; what is saved or exported "
        "are the weights themselves: load it without"
      )
    variables: dict[str, Any] = {"params": {}}
    if self._tower:
      variables["params"]["tower"] = self._tower["params"]
      if self._tower["quantizer"]:
        variables["quantizer"] = self._tower["quantizer"]
    if "llm" in self._parts:
      variables["params"] |= self.engine.variables()
    return variables

  def tower_id(self) -> str:
    """See checkpoint.tower_id."""
    self.need("tower")
    params = {"tower": self._tower["params"]}
    return checkpoint.tower_id({"params": params, "quantizer": self._tower["quantizer"]})

  def identity(self) -> str:
    """16 hex digits of the architecture and a sample of all weights, as they were loaded."""
    if self._identity:
      return self._identity
    digest = hashlib.sha256(repr(self.config).encode())
    trees = [self._tower, natural(self.engine.params) if "llm" in self._parts else None]
    for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
      # Taken where the leaf is: jax would keep a copy of the whole on the host for good.
      sample = np.asarray(leaf.reshape(-1)[:: max(1, leaf.size // 4096)])
      # Of decoding weights as all machines compute with them, see placing.py.
      if path[0].idx and np.issubdtype(sample.dtype, np.floating):
        sample = sample.astype(self.config.dtype)
      sample = sample.astype(np.float32)
      digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape}\n".encode() + sample.tobytes())
    self._identity = digest.hexdigest()[:16]
    return self._identity

  def need(self, *parts: str, tokenizer: bool = False) -> None:
    missing = [name for part, name in _PARTS.items() if part in parts and part not in self._parts]
    if tokenizer and not missing and self.tokenizer is None:
      missing = ["tokenizer.model"]
    if missing:
      held = [name for part, name in _PARTS.items() if part in self._parts]
      raise ValueError(
        f"{self.path} has no {' and no '.join(missing)}, which this needs; it holds: "
        f"{', '.join(held) or 'nothing that runs'}"
      )

  @property
  def tower(self) -> TowerConfig:
    """Config of the tower; a model without one that makes codes is refused."""
    self.need("tower")
    assert self.config.tower is not None
    return self.config.tower

  @property
  def words(self) -> Tokenizer:
    """The tokenizer; a model without one is refused."""
    self.need("llm", tokenizer=True)
    assert self.tokenizer is not None
    return self.tokenizer

  def need_contrastive(self, *parts: str) -> TowerConfig:
    """Refuses towers without the contrastive route, or without these parts of it."""
    if not self._tower:
      self.need("tower")
    tower, held = self.config.tower, self._tower.get("params", {})
    if any(p not in held for p in parts) or tower is None:
      raise ValueError(f"the tower of {self.path} has no contrastive route for this")
    return tower

  def visual_wish(self, cfg_scale=None, temperature=None, top_k=None, top_p=None):
    """Sampling settings of pictures; None takes the model's."""
    given = dict(cfg_scale=cfg_scale, temperature=temperature, top_k=top_k, top_p=top_p)
    given = {k: v for k, v in given.items() if v is not None}
    return sampling.Sampling(**dataclasses.asdict(self.config.sampling) | given)

  def check_frames(self, frames: int | None) -> int:
    """Frames of a video to draw; None takes what the model was made for."""
    frames = self.config.video_frames if frames is None else frames
    positive("num_frames", frames)
    if self.config.visual_positions == "next_cell" and frames > self.config.video_frames:
      raise ValueError(
        f"this model has embeddings for {self.config.video_frames} frames, not for {frames}"
      )
    return frames

  def drawing(
    self, prompts, count: int, kind: str, seed, given=None, frames: int = 1
  ) -> dict[str, Any]:
    """What image.stream_codes needs for `count` outputs a prompt, prompt-major.

    Args:
      prompts: texts or conversations.
      count: outputs a prompt.
      kind: "image" or "video".
      seed: see VilaU.
      given: pictures, one a prompt, with which its videos begin, or None.
      frames: of each output.
    """
    self.need("tower", "llm", "projector", "depth", tokenizer=True)
    positive(f"num_{kind}s", count)
    prompts = as_list(prompts)
    for i, prompt in enumerate(prompts):
      if isinstance(prompt, str) and not prompt.strip():
        raise ValueError(f"prompt {i} is empty: write what to draw (got {prompt!r})")
    if given is not None:
      given = self._first_frames(given, len(prompts)).repeat(count, axis=0)
    built = self.prompts(prompts, answer=kind)
    room = frames * self.config.tower.image_tokens - 1
    check_context([len(p.tokens) for p in built], room, self.engine.context)
    return dict(
      prompts=[sequence for sequence in built for _ in range(count)],
      unconditional=self.unconditional(kind),
      seeds=sampling.output_seeds(seed, len(prompts) * count),
      given=given,
    )

  def draw_codes(
    self, prompts, count, kind, frames, wish, seed, batch_size, given=None, speculative=0,
    on_progress=None, cancel=None,
  ):  # fmt: skip
    """Codes int32 [prompts * count, frames * T, R], prompt-major; see VilaU.generate_images."""
    if sampling.whole("speculative", speculative) < 0:
      raise ValueError(
        f"speculative must be at least 1 (positions a pass) or 0 (off), got {speculative}"
      )
    wanted = self.drawing(prompts, count, kind, seed, given, frames) | dict(
      wish=wish,
      frames=frames,
      batch_size=positive("batch_size", batch_size),
      paint=lambda codes, total: self.pictures(codes, total, frames, kind),
    )
    if speculative:
      steps = speculation.stream_codes(self.engine, window=speculative, **wanted)
    else:
      steps = image.stream_codes(self.engine, **wanted)
    return image.finished(steps, on_progress, cancel)

  def _first_frames(self, pictures, count: int) -> np.ndarray:
    squares = list(self.squares(pictures, "crop"))
    if sum(map(len, squares)) != count:
      raise ValueError(
        f"{count} prompts need as many first frames, got {sum(map(len, squares))} pictures"
      )
    return np.concatenate([self.vision.encode(s) for s in squares])

  def pictures(self, codes: np.ndarray, total: int, frames: int, kind: str) -> np.ndarray:
    """Codes [n, done, R] of `total` positions -> uint8 [n, S, S, 3] or [n, F, S, S, 3]; what is not
    drawn yet is drawn from zeros."""
    n, done, r = codes.shape
    codes = np.pad(codes, ((0, 0), (0, total - done), (0, 0)))
    known = (np.arange(total) < done).reshape(1, frames, -1).repeat(n, axis=0)
    pictures = self.vision.decode(codes.reshape(n * frames, -1, r), known.reshape(n * frames, -1))
    return pictures if kind == "image" else pictures.reshape(n, frames, *pictures.shape[1:])

  def unconditional(self, kind: str) -> sequences.Sequence:
    """The prompt of the unconditional half."""
    return sequences.unconditional_prompt(self.tokenizer, self.settings, kind)

  def prompts(self, contents: Contents, answer: str = "text") -> list[sequences.Sequence]:
    """Conversations -> sequences that end with "ASSISTANT:" and, for answers "image" and "video",
    the start marker."""
    self.need("llm", tokenizer=True)
    side = self.config.tower.image_size if "tower" in self._parts else 0
    frames = self.config.video_frames
    talks, prompts = as_list(contents), []
    for start in range(0, len(talks), _CHUNK):
      here = talks[start : start + _CHUNK]
      turns = to_turns(here, side, frames, self.vision.encode if side else None, first=start)
      if any(isinstance(p, Visual) for talk in turns for turn in talk for p in turn.parts):
        self.need("projector")
      prompts += [sequences.prompt(talk, self.tokenizer, self.settings, answer) for talk in turns]
    return prompts

  def interleaving(self, contents: Contents, answer: str, seed, **rules) -> dict[str, Any]:
    """What interleaved.stream needs; see VilaU.generate."""
    self.need("llm", "tower", "projector", "depth")
    if answer not in ("text", "image", "video"):
      raise ValueError(f'answer must be "text", "image" or "video", got {answer!r}')
    for name in ("max_new_tokens", "max_visuals", "batch_size"):
      if name != "max_visuals" or answer != "text":
        positive(name, rules[name])
    if rules["max_visuals"] < 0:
      raise ValueError(f"max_visuals must be at least 0, got {rules['max_visuals']}")
    prompts, frames = self.prompts(contents, answer), self.config.video_frames
    count = {"text": 0, "image": 1, "video": frames}[answer]
    room = count * self.config.tower.image_tokens + 1
    check_context([len(p.tokens) for p in prompts], room, self.engine.context)
    unconditional = {kind: self.unconditional(kind) for kind in ("image", "video")}
    return dict(
      engine=self.engine,
      tokenizer=self.tokenizer,
      prompts=prompts,
      rules=interleaved.Rules(unconditional=unconditional, video_frames=frames, **rules),
      seeds=sampling.output_seeds(seed, len(prompts)),
    )

  def questions(self, contents: Contents, answers: Sequence[str]):
    """Conversations and answers -> what score.score takes."""
    prompts = self.prompts(contents)
    if isinstance(answers, str) or len(answers) != len(prompts):
      raise ValueError(f"{len(prompts)} conversations need as many answers, got {len(answers)}")
    for i, answer in enumerate(answers):
      if not answer.strip():
        raise ValueError(f"answer {i} is empty")
    ids = [self.tokenizer.encode(f" {a.strip()}</s>", prefix=False) for a in answers]
    return self.engine, prompts, ids

  def squares(self, images, geometry: str) -> Iterator[np.ndarray]:
    """Pictures of any kind -> uint8 [some, S, S, 3], a manageable number at a time."""
    if hasattr(images, "__array__"):
      images = np.asarray(images)
    if isinstance(images, np.ndarray) and images.ndim != 4:
      raise ValueError(f"an array of images must be [n, height, width, 3], got {images.shape}")
    if isinstance(images, str | bytes | os.PathLike | Image) or hasattr(images, "convert"):
      images = [images]
    side = self.config.tower.image_size
    if isinstance(images, np.ndarray) and images.dtype == np.uint8:
      if images.shape[1:] == (side, side, 3):  # nothing to do
        yield images
        return
    for start in range(0, len(images), _CHUNK):
      squares = []
      for i, picture in enumerate(images[start : start + _CHUNK], start):
        source = picture.source if isinstance(picture, Image) else picture
        try:
          squares.append(media.to_square(source, side, geometry))
        except ValueError as error:
          raise ValueError(f"image {i}: {error}") from error
      yield np.stack(squares)

  def rows(self, tokens, codes, visual_position, segment_ids, positions) -> dict[str, jax.Array]:
    """Arrays of VilaU.text_logits -> a batch of engine.hidden_states."""
    tokens = jnp.asarray(tokens, jnp.int32)
    outside = (tokens < 0) | (tokens >= self.config.llm.vocab_size)
    if outside.any():
      raise ValueError(
        f"tokens holds {int(tokens[outside][0])}; the model's ids are 0 to "
        f"{self.config.llm.vocab_size - 1}"
      )
    if (codes is None) != (visual_position is None):
      raise ValueError("codes and visual_position, their places in the rows, go together")
    if segment_ids is None:
      segment_ids = jnp.ones_like(tokens)
    segment_ids = jnp.asarray(segment_ids, jnp.int32)
    if positions is None:
      starts = jnp.diff(segment_ids, axis=1, prepend=-1) != 0
      columns = jnp.arange(tokens.shape[1], dtype=jnp.int32)
      positions = columns - jax.lax.cummax(jnp.where(starts, columns, 0), axis=1)
    batch = dict(tokens=tokens, segment_ids=segment_ids, positions=jnp.asarray(positions))
    if codes is not None:
      self.need("tower", "projector")
      batch["codes"] = jnp.asarray(codes, jnp.int32)
      batch["visual_position"] = jnp.asarray(visual_position, jnp.int32)
    return batch

  def shown(self, segment: interleaved.Segment) -> str | np.ndarray:
    """A segment as users see it."""
    if segment.kind == "text":
      return self.tokenizer.decode(segment.ids).strip()
    frames = len(segment.codes) // self.config.tower.image_tokens
    return self.pictures(segment.codes[None], len(segment.codes), frames, segment.kind)[0]

  def watched(
    self, events: Iterator[interleaved.Event]
  ) -> Iterator[str | image.Progress | np.ndarray]:
    """Events of one row as users see them: new text, pictures under way, finished pictures."""
    written = ""
    for _, segment, finished in events:
      if segment.kind == "text":
        whole = self.tokenizer.decode(segment.ids)
        if finished or not whole.endswith("\ufffd"):  # bytes of an unfinished character
          if whole[len(written) :]:
            yield whole[len(written) :]
          written = "" if finished else whole
      elif finished:
        yield self.shown(segment)
      else:
        yield self._progress(segment)

  def _progress(self, segment: interleaved.Segment) -> image.Progress:
    frames = 1 if segment.kind == "image" else self.config.video_frames
    return image.Progress(
      range(1), len(segment.codes), frames * self.config.tower.image_tokens, segment.codes[None],
      lambda codes, total: self.pictures(codes, total, frames, segment.kind),
    )  # fmt: skip


def positive(name: str, value: int) -> int:
  """The value, if it is an integer of at least 1."""
  if sampling.whole(name, value) < 1:
    raise ValueError(f"{name} must be at least 1, got {value}")
  return value
