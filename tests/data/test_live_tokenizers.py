"""SigLIP's text preprocessing against transformers.SiglipTokenizer."""

import numpy as np
import pytest
import sentencepiece

from vilau_jax.data.tokenizer import TowerTokenizer

pytest.importorskip("torch", reason="the extra [parity] is not installed")
transformers = pytest.importorskip("transformers", reason="the extra [parity] is not installed")

pytestmark = pytest.mark.parity
TEXTS = [
  "a photo of two foxes",
  "A Photo, of TWO foxes!",
  "  spaces   everywhere\tand\nlines  ",
  "punctuation-only: ...!?",
  "",
  "unknown \u00fcmlauts and \u6f22\u5b57",
  "a very long caption " * 10,
]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
  """A sentencepiece model with the special ids of SigLIP's: </s> is 1."""
  path = tmp_path_factory.mktemp("spiece") / "spiece.model"
  corpus = [text.lower() for text in TEXTS[:4]] * 20
  with open(path, "wb") as f:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(corpus), model_writer=f, model_type="unigram", vocab_size=60,
      hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=1,
      minloglevel=2,
    )  # fmt: skip
  return path


@pytest.mark.parametrize("length", [8, 64])
def test_ids_are_those_of_transformers(vocabulary, length):
  theirs = transformers.SiglipTokenizer(vocab_file=str(vocabulary), model_max_length=length)
  ours = TowerTokenizer(vocabulary, length, canon="hf")
  want = theirs(TEXTS, padding="max_length", truncation=True, max_length=length)["input_ids"]
  np.testing.assert_array_equal(ours.encode_batch(TEXTS), want)


def test_the_other_switch_only_lower_cases(vocabulary):
  lower, hf = (TowerTokenizer(vocabulary, 32, canon=canon) for canon in ("lower", "hf"))
  np.testing.assert_array_equal(lower.encode("A Photo"), hf.encode("a photo"))
  assert list(lower.encode("a, photo!")) != list(hf.encode("a, photo!"))
