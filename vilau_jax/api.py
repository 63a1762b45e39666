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
from vilau_jax.data.tokenizer import TowerTokenizer
from vilau_jax.generate import image, interleaved, sampling, score, text
from vilau_jax.generate.contents import Contents, Image, Video
from vilau_jax.generate.runtime import Runtime, positive
from vilau_jax.models.vilau import previous

__all__ = ["Image", "Video", "VilaU", "load"]

Seed = int | Sequence[int]


def load(path: str | os.PathLike, quantize: str | None = None) -> "VilaU":
  """Loads a model directory, a training workdir at its newest checkpoint, or a VILA-U release (a
  folder with llm/ and vision_tower/, or "hf://owner/name").

  A directory may hold some components only; what needs a missing one says so when it is called.

  Args:
    path: see above.
    quantize: "int8" keeps the weights of language model and depth transformer in eight bits, for
      small devices; such a model cannot be saved again.

  Raises:
    FileNotFoundError: if there is no model at `path`.
    ValueError: if it was written by a newer release of vilau_jax, or is a VILA-U release that is
      incomplete or not what its config says.
  """
  if convert.is_release(path):
    return VilaU.from_loaded(convert.load_checkpoint("vila-u", path), quantize)
  return VilaU.from_loaded(checkpoint.load_model(path), quantize)


class VilaU:
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

  def __init__(self, loaded: LoadedModel, quantize: str | None = None):
    self._runtime = Runtime(loaded, quantize)
    self.config, self.path = loaded.config, loaded.path
    self.tokenizer = self._runtime.tokenizer
    self.tower_tokenizer_path = loaded.tower_tokenizer_path

  @classmethod
  def from_loaded(cls, loaded: LoadedModel, quantize: str | None = None) -> "VilaU":
    """A model from variables in memory; see load for `quantize`."""
    return cls(loaded, quantize)

  # Drawing

  def generate_images(
    self,
    prompts: Sequence[str] | str,
    *,
    num_images: int = 1,
    cfg_scale: float | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: Seed = 0,
    batch_size: int = 16,
    on_progress: Callable[[image.Progress], None] | None = None,
  ) -> np.ndarray:
    """Draws num_images pictures for every prompt.

    Args:
      prompts: what to draw; a single string counts as one prompt.
      num_images: pictures a prompt.
      cfg_scale: guidance; 1 draws without it, in half the time.
      temperature: 0 takes the most likely code at every step.
      top_k, top_p: filters, see generate/sampling.py; top_k is clipped to the codebook.
      seed: see the class.
      batch_size: pictures drawn at once; bounds the memory.
      on_progress: called with a Progress after every row of the grid.

    Returns:
      uint8 [n, S, S, 3], n = len(prompts) * num_images, prompt-major.

    Raises:
      ValueError: for an empty prompt, one longer than the context, settings out of range, or a
        model that lacks a component.
    """
    wish = self._runtime.visual_wish(cfg_scale, temperature, top_k, top_p)
    codes = self._runtime.draw_codes(
      prompts, num_images, "image", 1, wish, seed, batch_size, on_progress
    )
    return self._runtime.vision.decode(codes)

  def generate_videos(
    self,
    prompts: Sequence[str] | str,
    *,
    num_videos: int = 1,
    num_frames: int | None = None,
    cfg_scale: float | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: Seed = 0,
    batch_size: int = 8,
    on_progress: Callable[[image.Progress], None] | None = None,
  ) -> np.ndarray:
    """Draws videos; as generate_images, with num_frames frames (None: what the model was made for).

    Returns:
      uint8 [n, F, S, S, 3].
    """
    wish = self._runtime.visual_wish(cfg_scale, temperature, top_k, top_p)
    frames = self.config.video_frames if num_frames is None else num_frames
    if frames < 1:
      raise ValueError(f"num_frames must be at least 1, got {frames}")
    if self.config.visual_positions == "next_cell" and frames > self.config.video_frames:
      raise ValueError(
        f"this model has embeddings for {self.config.video_frames} frames, not for {frames}"
      )
    codes = self._runtime.draw_codes(
      prompts, num_videos, "video", frames, wish, seed, batch_size, on_progress
    )
    return self._runtime.pictures(codes, codes.shape[1], frames, "video")

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
      batch_size: conversations answered at once.

    Returns:
      One answer a conversation.

    Raises:
      ValueError: for broken contents or pictures, or a prompt that leaves no room in the context.
    """
    prompts = self._runtime.prompts(contents)
    wish = sampling.Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    seeds = sampling.output_seeds(seed, len(prompts))
    answers: list[str] = []
    for start in range(0, len(prompts), positive("batch_size", batch_size)):
      at = slice(start, start + batch_size)
      stop = [self.tokenizer.eos]
      new = text.complete(
        self._runtime.engine, prompts[at], wish, seeds[at], max_new_tokens=max_new_tokens, stop=stop
      )
      answers += [self.tokenizer.decode(ids).strip() for ids in new]
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
  ) -> Iterator[str]:
    """Answers one conversation piece by piece; the pieces joined are generate_text's answer, spaces
    at its ends apart. Arguments as there."""
    prompts = self._runtime.prompts(contents)
    if len(prompts) != 1:
      raise ValueError(f"stream_text answers one conversation at a time, got {len(prompts)}")
    wish = sampling.Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    steps = text.stream(
      self._runtime.engine, prompts, wish, sampling.output_seeds(seed, 1),
      max_new_tokens=max_new_tokens, stop=[self.tokenizer.eos],
    )  # fmt: skip
    return text.pieces(self.tokenizer, (int(step[0]) for step in steps))

  def generate(
    self,
    contents: Contents,
    *,
    max_new_tokens: int = 512,
    max_visuals: int = 4,
    temperature: float = 0.0,
    top_p: float = 1.0,
    visual: dict[str, Any] | None = None,
    seed: Seed = 0,
    batch_size: int = 16,
  ) -> list[list[str | np.ndarray]]:
    """Text and pictures interleaved, as the model decides: it draws where it writes <im_start> or
    <vi_start>.

    Args:
      contents: as for generate_text.
      max_new_tokens: written tokens of a conversation, over all its texts.
      max_visuals: a row that wants to draw more ends there; it also ends where the context is full.
      temperature, top_p: of the text.
      visual: settings of the pictures (cfg_scale, temperature, top_k, top_p).
      seed: see the class.
      batch_size: pictures drawn at once.

    Returns:
      For every conversation its parts in order: str, image uint8 [S, S, 3] or video
      uint8 [F, S, S, 3].
    """
    self._runtime.need("llm", "tower", "projector", "depth")
    prompts = self._runtime.prompts(contents)
    rows = interleaved.generate(
      self._runtime.engine,
      self.tokenizer,
      prompts,
      {kind: self._runtime.unconditional(kind) for kind in ("image", "video")},
      text_wish=sampling.Sampling(temperature=temperature, top_p=top_p),
      visual_wish=self._runtime.visual_wish(**(visual or {})),
      seeds=sampling.output_seeds(seed, len(prompts)),
      max_new_tokens=positive("max_new_tokens", max_new_tokens),
      max_visuals=max_visuals,
      video_frames=self.config.video_frames,
      batch_size=positive("batch_size", batch_size),
    )
    return [[self._runtime.shown(segment) for segment in row] for row in rows]

  def score(self, contents: Contents, answers: Sequence[str]) -> np.ndarray:
    """Log-likelihood of each answer (with its end) behind its conversation: float32 [n].

    Raises:
      ValueError: for another number of answers, or an empty one.
    """
    return score.score(*self._runtime.questions(contents, answers))[0]

  def exact(self, contents: Contents, answers: Sequence[str]) -> np.ndarray:
    """Whether greedy generate_text would write exactly this answer: bool [n].

    One pass over all answers instead of decoding; use it to mark thousands of short answers.
    """
    return score.score(*self._runtime.questions(contents, answers))[1]

  # Pictures, codes and embeddings

  def encode_images(
    self, images: Sequence[Any] | np.ndarray, geometry: str = "resize"
  ) -> np.ndarray:
    """Pictures -> codes int32 [n, h, w, R].

    Args:
      images: paths, bytes, PIL images, uint8 arrays or Image, of any size and mode.
      geometry: "resize" (understanding), "crop" (generation) or "pad"; see media.to_square.

    Raises:
      ValueError: naming the picture that cannot be read.
    """
    self._runtime.need("tower")
    c = self.config.tower
    squares = self._runtime.squares(images, geometry)
    parts = [np.zeros((0, c.image_tokens, c.quantizer.depth), np.int32)]
    parts += [self._runtime.vision.encode(s) for s in squares]
    return np.concatenate(parts).reshape(-1, c.grid, c.grid, c.quantizer.depth)

  def decode_codes(self, codes: np.ndarray, floats: bool = False) -> np.ndarray:
    """Codes [n, h, w, R'] (or [n, T, R']) -> uint8 [n, S, S, 3]; R' < R gives a coarser picture.
    With `floats` float32 clamped to [-1, 1] instead, for metrics that must not see rounding.

    Raises:
      ValueError: for another shape or codes outside of the codebook.
    """
    self._runtime.need("tower")
    c = self.config.tower
    codes = np.asarray(codes)
    if codes.ndim == 4 and codes.shape[1:3] == (c.grid, c.grid):
      codes = codes.reshape(len(codes), -1, codes.shape[-1])
    depths = codes.shape[-1] if codes.ndim == 3 else 0
    if codes.ndim != 3 or codes.shape[1] != c.image_tokens or not 1 <= depths <= c.quantizer.depth:
      raise ValueError(
        f"codes must be [n, {c.grid}, {c.grid}, 1..{c.quantizer.depth}], got {codes.shape}"
      )
    if codes.size and not 0 <= codes.min() <= codes.max() < c.quantizer.entries:
      raise ValueError(
        f"codes must lie in 0..{c.quantizer.entries - 1}, got {codes.min()}..{codes.max()}"
      )
    return self._runtime.vision.decode(codes, floats=floats)

  def embed_images(
    self, images: Sequence[Any] | np.ndarray, geometry: str = "resize"
  ) -> np.ndarray:
    """Pictures -> L2-normalised float32 [n, D], in the space of embed_texts: the contrastive route
    of the tower, from quantised features; an imported SigLIP has no quantiser, and needs none."""
    self._runtime.need_contrastive("vision")
    squares = self._runtime.squares(images, geometry)
    parts = [np.zeros((0, self.config.tower.vision.width), np.float32)]
    return np.concatenate(parts + [self._runtime.vision.embed_images(s) for s in squares])

  def embed_texts(self, texts: Sequence[str], canon: str = "lower") -> np.ndarray:
    """Texts -> L2-normalised float32 [n, D].

    Args:
      texts: captions or class prompts.
      canon: "lower" as in training here; "hf" also drops punctuation, for zero-shot prompts of
        imported SigLIP weights.
    """
    self._runtime.need_contrastive("text")
    if self.tower_tokenizer_path is None:
      raise ValueError(
        f"{self.path} has no tower_tokenizer.model, so texts cannot be embedded; import or train "
        "it with --tower_tokenizer=FILE (SigLIP's sentencepiece model)"
      )
    texts = [texts] if isinstance(texts, str) else list(texts)
    tokenizer = TowerTokenizer(self.tower_tokenizer_path, self.config.tower.text.length, canon)
    ids = [tokenizer.encode(text) for text in texts]
    return self._runtime.vision.embed_texts(np.array(ids, np.int32).reshape(-1, tokenizer.length))

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
    self._runtime.need("llm")
    batch = self._runtime.rows(tokens, codes, visual_position, segment_ids, positions)
    return self._runtime.engine.text_logits(self._runtime.engine.hidden(batch))

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
    self._runtime.need("llm", "tower", "projector", "depth")
    batch = self._runtime.rows(tokens, codes, visual_position, segment_ids, positions)
    hidden = previous(self._runtime.engine.hidden(batch), batch["visual_position"])
    b, n, r = batch["codes"].shape
    flat = hidden.reshape(b * n, -1), batch["codes"].reshape(b * n, r)
    return self._runtime.engine.code_logits(*flat).reshape(b, n, r, -1)

  # Keeping

  def save(self, path: str | os.PathLike) -> None:
    """Writes a model directory that `load` reads.

    Raises:
      FileExistsError: if there is a model already.
    """
    tokenizer = self.tokenizer.path if self.tokenizer else None
    variables = self._runtime.variables()
    checkpoint.save_model(path, self.config, variables, tokenizer, self.tower_tokenizer_path)

  def tower_id(self) -> str:
    """16 hex digits of what makes codes; records carry them beside their codes."""
    return self._runtime.tower_id()

  def identity(self) -> str:
    """16 hex digits that tell this model from others: architecture and a sample of all weights."""
    return self._runtime.identity()
