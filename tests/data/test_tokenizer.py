import hashlib
import json
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vilau_jax.data import tokenizer as T

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "a"
LLAMA = GOLDEN / "checkpoint" / "llm" / "tokenizer.model"
CASES = json.loads((GOLDEN / "12_conversation.json").read_text())
TOKENIZER = T.Tokenizer(LLAMA)


@pytest.mark.parametrize("text", CASES["raw_tokenization"])
def test_ids_equal_the_reference(text):
  assert TOKENIZER.encode(text, bos=True) == CASES["raw_tokenization"][text]


@pytest.mark.parametrize("case", CASES["decoding"], ids=lambda c: repr(c["text"]))
def test_decoding_equals_the_reference(case):
  assert TOKENIZER.decode(case["ids"]) == case["skip_special"]
  assert TOKENIZER.decode(case["ids"], special=True) == case["text"]


def test_special_ids():
  t = TOKENIZER
  assert (t.pad, t.bos, t.eos) == (0, 1, 2)
  assert (t.im_start, t.im_end, t.vi_start, t.vi_end) == (512, 513, 514, 515)
  assert t.vocab_size == 516


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60))
def test_round_trip_of_ascii(text):
  if not any(name in text for name in TOKENIZER._special):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.text(max_size=40), st.text(max_size=40))
def test_a_text_cut_at_a_word_gives_the_same_ids(left, right):
  left, right = left.strip(" \u2581"), " " + right.strip(" \u2581")
  if not left:
    return
  whole = TOKENIZER.encode(left + right)
  assert whole == TOKENIZER.encode(left) + TOKENIZER.encode(right, prefix=False)


CLOSED = [
  "two foxes on a blue background",
  "a fox to the left of a pig on a green background",
  "How many objects are there?",
  "yes",
  "no",
  "three",
]


def test_trained_words_are_single_pieces_and_training_is_deterministic(tmp_path):
  a = T.train_tokenizer(CLOSED, tmp_path / "a" / "tokenizer.model", 2048)
  b = T.train_tokenizer(reversed(CLOSED), tmp_path / "b.model", 2048)
  assert hashlib.sha256(a.read_bytes()).digest() == hashlib.sha256(b.read_bytes()).digest()
  t = T.Tokenizer(a)
  for text in CLOSED:
    for word in text.rstrip("?").split():
      assert len(t.encode(word)) == 1, word
    assert t.decode(t.encode(text)) == text
  assert len(t.encode("USER:")) <= 2 and len(t.encode(" ASSISTANT:", prefix=False)) <= 2
  assert t.vocab_size < 600
  assert t.im_start == t.vocab_size - 4
  assert t.decode(t.encode("Zebra 12 é")) == "Zebra 12 é"  # bytes stand in for what is not known


def test_tower_tokenizer_pads_with_eos_and_sticks_it_to_the_end(tmp_path):
  path = T.train_tokenizer(CLOSED, tmp_path / "t.model", 2048)
  t = T.TowerTokenizer(path, length=8, canon="lower")
  ids = t.encode("Two foxes")
  assert ids.dtype == np.int32 and ids.shape == (8,)
  assert list(ids[2:]) == [t.eos] * 6
  long = t.encode("a fox to the left of a pig on a green background")
  assert long[-1] == t.eos and t.eos not in long[:-1]
  hf = T.TowerTokenizer(path, length=8, canon="hf")
  np.testing.assert_array_equal(hf.encode("Two,  foxes!"), hf.encode("two foxes"))
  assert t.encode_batch(["yes", "no"]).shape == (2, 8)


def test_bad_files_are_named(tmp_path):
  with pytest.raises(ValueError, match="no tokenizer at"):
    T.Tokenizer(tmp_path / "missing.model")
  bad = tmp_path / "bad.model"
  bad.write_bytes(b"\xff\xfe not a model")
  with pytest.raises(ValueError, match="not a sentencepiece model"):
    T.Tokenizer(bad)
  with pytest.raises(ValueError, match="texts to learn from"):
    T.train_tokenizer(["", "  "], tmp_path / "x.model")
  with pytest.raises(ValueError, match="outside of the vocabulary"):
    TOKENIZER.decode([516])


def test_added_tokens_of_a_full_vocabulary_start_at_32000(tmp_path):
  """Llama-2's 32000 pieces and the four ids that the release gives them."""
  model = T.sentencepiece_model_pb2.ModelProto()
  model.ParseFromString(LLAMA.read_bytes())
  while len(model.pieces) < 32_000:
    model.pieces.add(piece=f"\u2581w{len(model.pieces)}", score=-1e6)
  (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
  t = T.Tokenizer(tmp_path / "tokenizer.model")
  assert t.encode("<im_start><im_end><vi_start><vi_end>") == [32_000, 32_001, 32_002, 32_003]
  assert t.vocab_size == 32_004
