"""Text to ids: the Llama tokenizer with four added tokens, and the tower's SigLIP tokenizer."""

import os
import re
import string
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import sentencepiece
from etils import epath
from google.protobuf import message
from sentencepiece import sentencepiece_model_pb2

from vilau_jax.data import shards
from vilau_jax.data.conversation import CAPTION_QUESTION

ADDED = ("<im_start>", "<im_end>", "<vi_start>", "<vi_end>")
SPACE = "\u2581"  # how sentencepiece writes a space


class Tokenizer:
  """Llama's slow tokenizer (`legacy=False`) plus <im_start> <im_end> <vi_start> <vi_end>.

  The added tokens take the four ids after the model's pieces, in that order. Special strings are
  split off first; one U+2581 stands before a text, and is dropped when a special token follows it.

  Args:
    path: a sentencepiece model with Llama's layout (unk 0, bos 1, eos 2).

  Raises:
    ValueError: if the file is no sentencepiece model or has another layout.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = epath.Path(path)
    model = _read_model(self.path)
    # As the Hugging Face class does: the dummy prefix is written by hand, see encode().
    model.normalizer_spec.add_dummy_prefix = False
    self._model = _processor(model, self.path)
    if (self._model.unk_id(), self._model.bos_id(), self._model.eos_id()) != (0, 1, 2):
      raise ValueError(
        f"{self.path}: a Llama tokenizer has unk 0, bos 1, eos 2; this one has unk "
        f"{self._model.unk_id()}, bos {self._model.bos_id()}, eos {self._model.eos_id()}. "
        "A SigLIP tokenizer belongs into the tower's config."
      )
    pieces = self._model.vocab_size()
    self.unk, self.bos, self.eos, self.pad = 0, 1, 2, 0
    self.im_start, self.im_end, self.vi_start, self.vi_end = range(pieces, pieces + len(ADDED))
    self.vocab_size = pieces + len(ADDED)
    ids = (self.unk, self.bos, self.eos, *range(pieces, self.vocab_size))
    names = ("<unk>", "<s>", "</s>", *ADDED)
    self._special = dict(zip(names, ids))
    self._names = dict(zip(ids, names))
    self._split = re.compile("(" + "|".join(map(re.escape, names)) + ")")
    self._cache: dict[tuple[str, bool], list[int]] = {}

  def encode(self, text: str, bos: bool = False, *, prefix: bool = True) -> list[int]:
    """The ids of one piece of text.

    Args:
      text: may hold special strings such as "</s>" or "<im_start>"; "<image>" has no meaning here.
      bos: put <s> in front.
      prefix: False continues a text that was encoded before: no U+2581 is put in front. Pieces of
        the model do not cross a word's start, so a text cut before a space gives the same ids.
    """
    key = (text, prefix)
    ids = self._cache.get(key)
    if ids is None:
      ids = self._encode(text, prefix)
      if len(self._cache) < 65_536:  # templates, questions and answers come back all the time
        self._cache[key] = ids
    return [self.bos, *ids] if bos else list(ids)

  def _encode(self, text: str, prefix: bool) -> list[int]:
    if not text:
      return []
    try:
      text.encode()
    except UnicodeEncodeError as error:
      raise ValueError(
        f"{text!r:.200} is no text: half a surrogate pair at {error.start}"
      ) from error
    text = text.replace(SPACE, " ")
    ids: list[int] = []
    parts = [part for part in self._split.split(SPACE + text if prefix else text) if part]
    if prefix and len(parts) > 1 and parts[0] == SPACE and parts[1] in self._special:
      parts = parts[1:]
    for part in parts:
      ids += [self._special[part]] if part in self._special else self._model.encode(part)
    return ids

  def decode(self, ids: Iterable[int], *, special: bool = False) -> str:
    """The text of ids.

    Args:
      special: write special tokens as their strings (added ones between spaces) instead of
        leaving them out.

    Raises:
      ValueError: for an id outside of the vocabulary.
    """
    ids = [int(i) for i in ids]
    for i in ids:
      if not 0 <= i < self.vocab_size:
        raise ValueError(f"token id {i} is outside of the vocabulary of {self.vocab_size}")
    if not special:
      return self._decode([i for i in ids if i not in self._names])
    texts, run = [], []
    for i in ids:
      if i < self.im_start:
        run.append(i)
      else:
        texts += [self._decode(run)] * bool(run) + [self._names[i]]
        run = []
    return " ".join(texts + [self._decode(run)] * bool(run))

  def _decode(self, ids: list[int]) -> str:
    text, run = "", []
    for i in ids:
      if i in self._names:
        text += self._model.decode(run) + self._names[i]
        run = []
      else:
        run.append(i)
    text += self._model.decode(run)
    # The U+2581 that encode() put in front.
    starts_with_space = ids and ids[0] not in self._names and self._piece(ids[0])[:1] == SPACE
    return text[1:] if starts_with_space else text

  def _piece(self, i: int) -> str:
    return self._model.id_to_piece(i)


class TowerTokenizer:
  """SigLIP's text preprocessing: fixed length, sticky EOS, pads are EOS.

  Args:
    path: a sentencepiece model; its EOS id is EOS and pad (1 in SigLIP's, 2 in Llama's layout).
    length: ids a text.
    canon: "lower" lower-cases (captions); "hf" also drops ASCII punctuation and collapses
      whitespace, as the Hugging Face class does (zero-shot prompts).

  Raises:
    ValueError: for another canon, a length below 1, or a file that is no sentencepiece model.
  """

  def __init__(self, path: str | os.PathLike, length: int = 64, canon: str = "hf"):
    if canon not in ("hf", "lower"):
      raise ValueError(f"canon must be 'hf' or 'lower', got {canon!r}")
    if length < 1:
      raise ValueError(f"length must be at least 1, got {length}")
    self.path, self.length, self.canon = epath.Path(path), length, canon
    self._model = _processor(_read_model(self.path), self.path)
    self.vocab_size = self._model.vocab_size()
    self.eos = self._model.eos_id()

  def encode(self, text: str) -> np.ndarray:
    """int32 [length]; a text that is too long keeps its first length-1 ids and EOS."""
    text = text.lower()
    if self.canon == "hf":
      text = " ".join(text.translate(str.maketrans("", "", string.punctuation)).split())
    ids = self._model.encode(text)[: self.length - 1]
    return np.array(ids + [self.eos] * (self.length - len(ids)), np.int32)

  def encode_batch(self, texts: Iterable[str]) -> np.ndarray:
    """int32 [B,length]."""
    return np.stack([self.encode(text) for text in texts])


def train_tokenizer(
  texts: Iterable[str], path: str | os.PathLike, vocab_size: int = 2048
) -> epath.Path:
  """Trains a small tokenizer with Llama's layout, for models that don't start from a Llama.

  Byte-pair pieces with byte fallback, so that every text can be written. In a closed vocabulary
  every word becomes one piece. One thread and a sorted corpus: the same texts give the same file.

  Args:
    texts: what the model will read and write; the conversation template is added to them.
    path: the file to write, usually tokenizer.model.
    vocab_size: upper bound; a small corpus gives fewer pieces.

  Raises:
    ValueError: if there is no text.
  """
  corpus = sorted({text.strip() for text in texts} - {""})
  if not corpus:
    raise ValueError("a tokenizer needs texts to learn from, but all of them are empty")
  # The template's words, and all words as they stand behind a newline or </s>: without a space.
  corpus += ["USER: ASSISTANT:", *CAPTION_QUESTION.values()]
  corpus += [f"({word}" for word in sorted({text.split()[0] for text in corpus})]
  path = epath.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with shards.replacing(path) as temporary, open(temporary, "wb") as f:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(corpus),
      model_writer=f,
      model_type="bpe",
      vocab_size=vocab_size,
      hard_vocab_limit=False,
      character_coverage=1.0,
      byte_fallback=True,
      split_digits=True,
      allow_whitespace_only_pieces=True,
      normalization_rule_name="identity",
      add_dummy_prefix=True,
      remove_extra_whitespaces=False,
      unk_id=0,
      bos_id=1,
      eos_id=2,
      pad_id=-1,
      num_threads=1,
      shuffle_input_sentence=False,
      minloglevel=2,
    )
  return path


def record_texts(records: Iterable[Mapping[str, Any]]) -> Iterator[str]:
  """Everything a tokenizer should know of records: captions, questions, answers, sentences."""
  for record in records:
    yield from (record.get("caption") or "",)
    yield from record.get("conversations_value") or []
    yield from record.get("sentences") or []


def _processor(
  model: sentencepiece_model_pb2.ModelProto, path: epath.Path
) -> sentencepiece.SentencePieceProcessor:
  try:
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
  except (RuntimeError, ValueError, OSError, MemoryError) as error:
    raise ValueError(f"{path} is a damaged sentencepiece model: {error!s:.300}") from error


def _read_model(path: epath.Path) -> sentencepiece_model_pb2.ModelProto:
  model = sentencepiece_model_pb2.ModelProto()
  try:
    model.ParseFromString(path.read_bytes())
  except OSError as error:  # not there, or a folder
    raise ValueError(f"no tokenizer at {path}") from error
  except message.DecodeError as error:
    raise ValueError(f"{path} is not a sentencepiece model") from error
  if not model.pieces:
    raise ValueError(f"{path} is not a sentencepiece model")
  return model
