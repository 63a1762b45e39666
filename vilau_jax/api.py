"""What users hold: `model = vilau_jax.load(path)`, and then text, pictures and video in and out.

Axis letters: n outputs, B rows, L columns, N visual slots, h and w sides of the code grid, R
residual depth, E codebook entries, V vocabulary, D embedding width, F frames, S image side.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from vilau_jax import checkpoint, convert
from vilau_jax.checkpoint import LoadedModel
from vilau_jax.generate import image, interleaved, sampling, score, slots, text
from vilau_jax.generate.cache import bucket
from vilau_jax.generate.contents import Contents, Image, Video
from vilau_jax.generate.engine import COMPONENTS
from vilau_jax.generate.image import Cancelled
from vilau_jax.generate.runtime import Runtime, positive
from vilau_jax.generate.seeing import Seeing
from vilau_jax.models.vilau import previous

__all__ = ["Cancelled", "Image", "Video", "VilaU", "load"]

Seed = int | Sequence[int]


def load(
  path: str | os.PathLike,
  mesh: jax.sharding.Mesh | None = None,
  quantize: str | None = None,
) -> "VilaU":
  """Loads a model directory, a training workdir at its newest checkpoint, or a VILA-U release (a
  folder with llm/ and vision_tower/, or "hf://owner/name").

  A directory may hold some components only; what needs a missing one says so when it is called.

  Args:
    path: see above.
    mesh: devices of this process that share the language model's work, see sharding.make_mesh:
      "data" shares the outputs, "tensor" and "fsdp" the weights. None takes one device.
    quantize: "int8" keeps the weights of language model and depth transformer in eight bits, for
      small devices; such a model cannot be saved again.

  Raises:
    FileNotFoundError: if there is no model at `path`.
    ValueError: if it was written by a newer release of vilau_jax, or is a VILA-U release that is
      incomplete or not what its config says.
  """
  if convert.is_release(path):
    return VilaU.from_loaded(convert.load_checkpoint("vila-u", path), mesh, quantize)
  return VilaU.from_loaded(checkpoint.load_model(path, on_disk=COMPONENTS), mesh, quantize)


class VilaU(Seeing):
  """A loaded model. Make one with `vilau_jax.load(path)`.

  Sampling settings that are not given come from the model (`model.config.sampling`). `seed` is one
  integer, output i then has seed + i (outputs of one prompt stand together), or a list with one an
  output; an output is the same whatever else is in its batch.

  Attributes:
    config: VilaUConfig, the architecture.
    path: where it came from.
    tokenizer: of the language model, or None.
    tower_tokenizer_path: of the tower's text encoder, or None.
  """

  def __init__(
    self,
    loaded: LoadedModel,
    mesh: jax.sharding.Mesh | None = None,
    quantize: str | None = None,
  ):
    self.runtime = Runtime(loaded, mesh, quantize)
    self.config, self.path = loaded.config, loaded.path
    self.tokenizer = self.runtime.tokenizer
    self.tower_tokenizer_path = loaded.tower_tokenizer_path

  @classmethod
  def from_loaded(
    cls,
    loaded: LoadedModel,
    mesh: jax.sharding.Mesh | None = None,
    quantize: str | None = None,
  ) -> "VilaU":
    """A model from variables in memory; see load for the mesh and for `quantize`."""
    return cls(loaded, mesh, quantize)

  # Drawing

  def generate_images(
    self,
    prompts: Contents,
    *,
    num_images: int = 1,
    cfg_scale: float | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: Seed = 0,
    batch_size: int = 16,
    speculative: int = 0,
    on_progress: Callable[[image.Progress], None] | None = None,
    cancel: Callable[[], bool] | None = None,
  ) -> np.ndarray:
    """Draws num_images pictures for every prompt.

    Args:
      prompts: what to draw; a single string counts as one prompt. A prompt may be a conversation as
        for generate_text, with pictures in it.
      num_images: pictures a prompt.
      cfg_scale: guidance; 1 draws without it, in half the time.
      temperature: 0 takes the most likely code at every step.
      top_k, top_p: filters, see generate/sampling.py; top_k is clipped to the codebook.
      seed: see the class.
      batch_size: pictures drawn at once; bounds the memory.
      speculative: above 0, so many positions are drafted a pass and those kept that the model would
        have drawn (generate/speculative.py): fewer, larger passes. The distribution is the same,
        the picture of a seed another. Not with `quantize` or a mesh.
      on_progress: called with a Progress after every row of the grid.
      cancel: asked there, for example the is_set of a threading.Event; True ends the call.

    Returns:
      uint8 [n, S, S, 3], n = len(prompts) * num_images, prompt-major.

    Raises:
      ValueError: for an empty prompt, one longer than the context, settings out of range, or a
        model that lacks a component.
      Cancelled: if `cancel` said so.
    """
    wish = self.runtime.visual_wish(cfg_scale, temperature, top_k, top_p)
    codes = self.runtime.draw_codes(
      prompts, num_images, "image", 1, wish, seed, batch_size, speculative=speculative,
      on_progress=on_progress, cancel=cancel,
    )  # fmt: skip
    return self.runtime.vision.decode(codes)

  def generate_videos(
    self,
    prompts: Contents,
    *,
    num_videos: int = 1,
    num_frames: int | None = None,
    first_frames: Sequence[Any] | np.ndarray | None = None,
    cfg_scale: float | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: Seed = 0,
    batch_size: int = 8,
    speculative: int = 0,
    on_progress: Callable[[image.Progress], None] | None = None,
    cancel: Callable[[], bool] | None = None,
  ) -> np.ndarray:
    """Draws videos; as generate_images.

    Args:
      num_frames: of a video; None: what the model was made for.
      first_frames: pictures as for encode_images, one a prompt, with which its videos begin; they
        come back as the tower draws them. Not with `speculative`.

    Returns:
      uint8 [n, F, S, S, 3].
    """
    wish = self.runtime.visual_wish(cfg_scale, temperature, top_k, top_p)
    frames = self.runtime.check_frames(num_frames)
    if first_frames is not None and frames < 2:
      raise ValueError("a video with a first frame needs num_frames of 2 at least")
    codes = self.runtime.draw_codes(
      prompts, num_videos, "video", frames, wish, seed, batch_size, first_frames,
      speculative=speculative, on_progress=on_progress, cancel=cancel,
    )  # fmt: skip
    return self.runtime.pictures(codes, codes.shape[1], frames, "video")

  # Writing

  def generate_text(
    self,
    contents: Contents,
    *,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: Seed = 0,
    batch_size: int = 32,
  ) -> list[str]:
    """Answers conversations, with or without pictures.

    Args:
      contents: list of conversations; a conversation is a string, a list of str / Image / Video, or
        a list of {"role": "user" | "assistant", "content": ..} turns that ends with the user's.
      max_new_tokens: where an answer is cut off at the latest; None: at 512, or where the context
        ends.
      temperature: 0 writes the most likely token.
      top_k, top_p: filters for temperatures above 0.
      seed: see the class.
      batch_size: conversations answered at once; where one is finished, the next one begins.

    Returns:
      One answer a conversation. Where the model begins to draw, its answer ends (see `generate`).

    Raises:
      ValueError: for broken contents or pictures, or a prompt that leaves no room in the context.
    """
    prompts = self.runtime.prompts(contents)
    wish = sampling.Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    seeds = sampling.output_seeds(seed, len(prompts))
    engine = self.runtime.engine
    limits = text.limits(prompts, max_new_tokens, engine.context)
    jobs = map(slots.Job, prompts, seeds, limits, range(len(prompts)))
    tokenizer = self.runtime.words
    answers = [""] * len(prompts)
    count = min(bucket(len(prompts), 1), positive("batch_size", batch_size))
    for job, ids in slots.write(engine, jobs, wish, slots=count, stop=text.ends(tokenizer)):
      answers[job.tag] = tokenizer.decode(ids).strip()
    return answers

  def stream_text(
    self,
    contents: Contents,
    *,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
    on_draw: Callable[[str], None] = lambda kind: None,
  ) -> Iterator[str]:
    """Answers one conversation piece by piece; the pieces joined are generate_text's answer, spaces
    at its ends apart. Arguments as there; on_draw is called with "image" or "video" if the answer
    ends because the model begins to draw."""
    prompts = self.runtime.prompts(contents)
    if len(prompts) != 1:
      raise ValueError(f"stream_text answers one conversation at a time, got {len(prompts)}")
    wish = sampling.Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    steps = text.stream(
      self.runtime.engine, prompts, wish, sampling.output_seeds(seed, 1),
      max_new_tokens=max_new_tokens, stop=text.ends(self.runtime.words),
    )  # fmt: skip
    return text.pieces(self.runtime.words, (int(step[0]) for step in steps), on_draw)

  def generate(
    self,
    contents: Contents,
    *,
    answer: str = "text",
    max_new_tokens: int = 512,
    max_visuals: int = 4,
    temperature: float = 0.0,
    top_p: float = 1.0,
    visual: dict[str, Any] | None = None,
    seed: Seed = 0,
    batch_size: int = 16,
    cancel: Callable[[], bool] | None = None,
  ) -> list[list[str | np.ndarray]]:
    """Text and pictures interleaved, as the model decides: it draws where it writes <im_start> or
    <vi_start>.

    Args:
      contents: as for generate_text.
      answer: "image" and "video" tell it to begin with one; "text" lets it decide.
      max_new_tokens: written tokens of a conversation, over all its texts.
      max_visuals: a row that wants to draw more ends there; it also ends where the context is full.
      temperature, top_p: of the text.
      visual: settings of the pictures (cfg_scale, temperature, top_k, top_p).
      seed: see the class.
      batch_size: rows that draw or write at once.
      cancel: asked after every token and row of the grid; True ends the call.

    Returns:
      For every conversation its parts in order: str, image uint8 [S, S, 3] or video
      uint8 [F, S, S, 3].

    Raises:
      ValueError: as generate_text, or if a picture that is asked for has no room in the context.
      Cancelled: if `cancel` said so.
    """
    wanted = self.runtime.interleaving(
      contents, answer, seed, max_new_tokens=max_new_tokens, max_visuals=max_visuals,
      text_wish=sampling.Sampling(temperature=temperature, top_p=top_p),
      visual_wish=self.runtime.visual_wish(**(visual or {})), batch_size=batch_size,
    )  # fmt: skip
    rows: list[list[str | np.ndarray]] = [[] for _ in wanted["prompts"]]
    for event in interleaved.stream(**wanted):
      if event.finished:
        part = self.runtime.shown(event.segment)
        rows[event.row] += [part] if len(part) else []  # a text of spaces is none
      elif cancel is not None and cancel():
        raise image.Cancelled("between two steps")
    return rows

  def stream(
    self,
    contents: Contents,
    *,
    answer: str = "text",
    max_new_tokens: int = 512,
    max_visuals: int = 4,
    temperature: float = 0.0,
    top_p: float = 1.0,
    visual: dict[str, Any] | None = None,
    seed: int = 0,
  ) -> Iterator[str | image.Progress | np.ndarray]:
    """One conversation as `generate` answers it, while it does: yields new text as it is written, a
    Progress for every row of a picture that is being drawn, and finished pictures. Arguments as
    there; closing the iterator ends the work."""
    wanted = self.runtime.interleaving(
      contents, answer, seed, max_new_tokens=max_new_tokens, max_visuals=max_visuals,
      text_wish=sampling.Sampling(temperature=temperature, top_p=top_p),
      visual_wish=self.runtime.visual_wish(**(visual or {})), batch_size=1,
    )  # fmt: skip
    if len(wanted["prompts"]) != 1:
      raise ValueError(f"stream answers one conversation at a time, got {len(wanted['prompts'])}")
    return self.runtime.watched(interleaved.stream(**wanted))

  def score(self, contents: Contents, answers: Sequence[str]) -> np.ndarray:
    """Log-likelihood of each answer (with its end) behind its conversation: float32 [n].

    Raises:
      ValueError: for another number of answers, or an empty one.
    """
    return score.score(*self.runtime.questions(contents, answers))[0]

  def exact(self, contents: Contents, answers: Sequence[str]) -> np.ndarray:
    """Whether greedy generate_text would write exactly this answer: bool [n].

    One pass over all answers instead of decoding; use it to mark thousands of short answers.
    """
    return score.score(*self.runtime.questions(contents, answers))[1]

  # Logits

  def text_logits(
    self,
    tokens: np.ndarray,
    codes: np.ndarray | None = None,
    visual_position: np.ndarray | None = None,
    segment_ids: np.ndarray | None = None,
    positions: np.ndarray | None = None,
  ) -> jax.Array:
    """Logits of the token that follows every position, float32 [B, L, V].

    Args:
      tokens: int [B, L]; ignored at visual places.
      codes: int [B, N, R] of the visual slots.
      visual_position: int [B, N], their places, -1 = empty.
      segment_ids: int [B, L], 0 = padding; None takes every row as one sequence.
      positions: int [B, L]; None counts up from 0 in every segment.
    """
    self.runtime.need("llm")
    batch = self.runtime.rows(tokens, codes, visual_position, segment_ids, positions)
    return self.runtime.engine.text_logits(self.runtime.engine.hidden(batch))

  def visual_logits(
    self,
    tokens: np.ndarray,
    codes: np.ndarray,
    visual_position: np.ndarray,
    segment_ids: np.ndarray | None = None,
    positions: np.ndarray | None = None,
  ) -> jax.Array:
    """Teacher-forced logits of the codes of every visual slot, float32 [B, N, R, E]; no guidance.

    Arguments as for text_logits; empty slots give meaningless rows.
    """
    self.runtime.need("llm", "tower", "projector", "depth")
    batch = self.runtime.rows(tokens, codes, visual_position, segment_ids, positions)
    hidden = previous(self.runtime.engine.hidden(batch), batch["visual_position"])
    b, n, r = batch["codes"].shape
    flat = hidden.reshape(b * n, -1), batch["codes"].reshape(b * n, r)
    return self.runtime.engine.code_logits(*flat).reshape(b, n, r, -1)

  # Keeping

  def save(self, path: str | os.PathLike) -> None:
    """Writes a model directory that `load` reads.

    Raises:
      FileExistsError: if there is a model already.
    """
    tokenizer = self.tokenizer.path if self.tokenizer else None
    variables = self.runtime.variables()
    checkpoint.save_model(path, self.config, variables, tokenizer, self.tower_tokenizer_path)

  def tower_id(self) -> str:
    """16 hex digits of what makes codes; records carry them beside their codes."""
    return self.runtime.tower_id()

  def identity(self) -> str:
    """16 hex digits that tell this model from others: architecture and a sample of all weights."""
    return self.runtime.identity()
