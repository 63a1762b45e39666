"""The half of the public class that needs the vision tower only: pictures, codes and embeddings.

Axis letters: n outputs, h and w sides of the code grid, T visual positions, R residual depth, D
embedding width, S image side.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vilau_jax.config import VilaUConfig
from vilau_jax.data.tokenizer import TowerTokenizer
from vilau_jax.generate.runtime import Runtime


class Seeing:
  """What `vilau_jax.VilaU` inherits; see there for the attributes."""

  config: VilaUConfig
  path: str
  runtime: Runtime
  tower_tokenizer_path: str | None

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
    c = self.runtime.tower
    squares = self.runtime.squares(images, geometry)
    parts = [np.zeros((0, c.image_tokens, c.quantizer.depth), np.int32)]
    parts += [self.runtime.vision.encode(s) for s in squares]
    return np.concatenate(parts).reshape(-1, c.grid, c.grid, c.quantizer.depth)

  def decode_codes(self, codes: np.ndarray, floats: bool = False) -> np.ndarray:
    """Codes [n, h, w, R'] (or [n, T, R']) -> uint8 [n, S, S, 3]; R' < R gives a coarser picture.
    With `floats` float32 clamped to [-1, 1] instead, for metrics that must not see rounding.

    Raises:
      ValueError: for another shape or codes outside of the codebook.
    """
    c = self.runtime.tower
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
    return self.runtime.vision.decode(codes, floats=floats)

  def embed_images(
    self, images: Sequence[Any] | np.ndarray, geometry: str = "resize"
  ) -> np.ndarray:
    """Pictures -> L2-normalised float32 [n, D], in the space of embed_texts: the contrastive route
    of the tower, from quantised features; an imported SigLIP has no quantiser, and needs none."""
    siglip = self.runtime.config.tower is not None and self.runtime.config.tower.encoder == "siglip"
    self.runtime.need_contrastive("vision" if siglip else "pooling")
    squares = self.runtime.squares(images, geometry)
    parts = [np.zeros((0, self.runtime.vision.width), np.float32)]
    return np.concatenate(parts + [self.runtime.vision.embed_images(s) for s in squares])

  def embed_texts(self, texts: Sequence[str], canon: str = "lower") -> np.ndarray:
    """Texts -> L2-normalised float32 [n, D].

    Args:
      texts: captions or class prompts.
      canon: "lower" as in training here; "hf" also drops punctuation, for zero-shot prompts of
        imported SigLIP weights.
    """
    words = self.runtime.need_contrastive("text").text
    assert words is not None
    if self.tower_tokenizer_path is None:
      raise ValueError(
        f"{self.path} has no tower_tokenizer.model, so texts cannot be embedded; import it "
        "with --tower_tokenizer=FILE (SigLIP's sentencepiece model), or train it with "
        "--config.data.tower_tokenizer=FILE"
      )
    texts = [texts] if isinstance(texts, str) else list(texts)
    tokenizer = TowerTokenizer(self.tower_tokenizer_path, words.length, canon)
    ids = [tokenizer.encode(text) for text in texts]
    return self.runtime.vision.embed_texts(np.array(ids, np.int32).reshape(-1, tokenizer.length))
