import json
import pathlib

import numpy as np
import pytest

from vilau_jax.data import conversation as C
from vilau_jax.data import forms
from vilau_jax.data import sequence as S
from vilau_jax.data.tokenizer import Tokenizer

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "a"
CASES = json.loads((GOLDEN / "12_conversation.json").read_text())
META = json.loads((GOLDEN / "meta.json").read_text())
POOL = np.load(GOLDEN / "02_vision_tower.npz")["pool_codes"].reshape(12, 16, 4)
TOKENIZER = Tokenizer(GOLDEN / "checkpoint" / "llm" / "tokenizer.model")
IMAGE = -200


def turns_of(messages, visuals=()):
  visuals, turns = list(visuals), []
  for message in messages:
    parts, visuals = C.from_values(message["value"], visuals)
    turns.append(C.turn(message["from"], *parts))
  return turns


def flat(sequence):
  """Ids with one -200 a visual run of 16 positions, as the reference writes them."""
  ids = sequence.tokens.astype(int)
  ids[sequence.visual_position] = IMAGE
  out, run = [], 0
  for i in ids:
    run = run + 1 if i == IMAGE else 0
    if run % 16 in (0, 1) and not (i == IMAGE and run % 16 == 0):
      out.append(int(i))
  return out


def images(count):
  return [C.Visual("image", POOL[i : i + 1]) for i in range(count)]


@pytest.mark.parametrize("case", CASES["generation"], ids=lambda c: c["kind"])
def test_prompts_equal_the_reference(case):
  kind = case["kwargs"]
  answer = "image" if "image_generation" in kind else "text"
  answer = "video" if "video_generation" in kind else answer
  settings = forms.SequenceSettings(markers="release")
  if kind.get("no_system_prompt"):
    settings = forms.SequenceSettings(system_prompt="")
  # In the released code a prompt's newlines belong to its text; here they come with the visual.
  messages = [{**m, "value": m["value"].replace("<image>\n", "<image>")} for m in case["messages"]]
  turns = turns_of(messages, images(9))
  got = S.prompt(turns, TOKENIZER, settings, answer)
  assert flat(got) == case["input_ids"]
  assert (got.text_target == -1).all() and not got.visual_target.any()


def test_prompt_with_text_between_images_equals_the_reference():
  case = META["text_generation_two_images"]
  a, b = images(2)
  parts = (a, "and then ", b, "Which one is brighter?")
  settings = forms.SequenceSettings(markers="release")
  got = S.prompt([C.turn("user", *parts)], TOKENIZER, settings)
  assert flat(got) == case["input_ids"]
  video = C.Visual("video", POOL[:3])
  got = S.prompt([C.turn("user", video, "What happens in the video?")], TOKENIZER, settings)
  assert flat(got) == META["text_generation_video"]["input_ids"]


def training_case(case):
  """The case as a record and the form that reads it."""
  messages = case["messages"]
  placeholders = sum(m["value"].count("<image>") for m in messages)
  count = max(placeholders, int(case["has_image"]))
  video = case["kind"].startswith("video")
  record = record_of(
    [m["from"] for m in messages],
    [m["value"] for m in messages],
    POOL[:count],
    video=video,
  )
  if case["kwargs"].get("no_system_prompt"):
    record["no_system_prompt"] = 1
  if "generation" in case["kind"]:
    record["caption"] = messages[0]["value"]
    return record, "t2v" if video else "t2i"
  return record, "sft"


def record_of(roles, values, codes, video=False):
  record = {"id": "x", "conversations_from": roles, "conversations_value": values}
  if len(codes):
    record.update(codes=codes.astype("<u2").tobytes(), codes_shape=list(codes.shape))
  if video:
    record["n_frames"] = len(codes)
  return record


@pytest.mark.parametrize("case", CASES["training"], ids=lambda c: c["kind"])
def test_training_ids_and_labels_equal_the_reference(case):
  record, form = training_case(case)
  settings = forms.SequenceSettings(markers="release", frames=0)
  got = S.from_record(record, form, TOKENIZER, settings)
  assert S.measure(record, form, TOKENIZER, settings) == got.size
  assert flat(got) == case["input_ids"]
  if case["kind"] == "mismatch_role_text_in_message":
    # There the reference's arithmetic fails and it drops all labels; the mask here is built.
    assert (got.text_target != -1).sum() == 7
    return
  want = [x for x, y in zip(case["input_ids"], case["labels"]) if y not in (-100, IMAGE)]
  assert list(got.text_target[got.text_target != -1]) == want
  supervised = any(y == IMAGE for y in case["labels"])
  assert got.visual_target.all() if supervised else not got.visual_target.any()


def sequences_of(name):
  """The batch's conversations as our sequences, in order."""
  out = []
  for sample in META["batches"][name]:
    codes = POOL[sample["images"]]
    talk = sample["conversation"]
    if isinstance(talk, str):
      pieces = talk.removesuffix("</s>").split("<image>")
      visuals = [C.Visual("image", c[None]) for c in codes]
      parts = [p for pair in zip(visuals, pieces[1:]) for p in pair]
      out.append(S.build(C.render_document(parts, markers="release"), tokenizer=TOKENIZER))
      continue
    values = [m["value"] for m in talk]
    for marker in ("<im_start>", "<im_end>", "<vi_start>", "<vi_end>"):
      values = [v.replace(marker, "") for v in values]
    video = "<vi_start>" in talk[-1]["value"]
    record = record_of([m["from"] for m in talk], values, codes, video)
    record["caption"] = values[0]
    form = "t2v" if video else "t2i" if "<im_start>" in talk[-1]["value"] else "sft"
    settings = forms.SequenceSettings(markers="release", frames=0)
    out.append(S.from_record(record, form, TOKENIZER, settings))
  return out


BATCHES = [
  "und", "gen", "vid8", "interleaved", "multiturn", "twoimg", "mixed", "mixed_small",
  "vid3_patched", "mixed_vid2_patched",
]  # fmt: skip


@pytest.mark.parametrize("name", BATCHES)
def test_expanded_labels_equal_the_reference(name):
  golden = np.load(GOLDEN / f"06_batch_{name}.npz")
  for row, got in enumerate(sequences_of(name)):
    mask = golden["exp_attention_mask"][row]
    labels = golden["exp_labels"][row][mask]
    length = len(got.tokens)
    assert length == mask.sum()
    drawn = np.zeros(length, bool)
    drawn[got.visual_position[got.visual_target]] = True
    if drawn.any():
      np.testing.assert_array_equal(labels[drawn], got.codes[got.visual_target] + 516)
    want = np.where(drawn, -100, labels[:, 0])
    np.testing.assert_array_equal(got.text_target[:-1], np.where(want == -100, -1, want)[1:])
    # The released code leaves the label of <s> unmasked in running text; nothing predicts it here.
    assert want[0] in (-100, 1)


def test_codes_of_a_picture_are_predicted_from_the_start_marker_and_the_end_marker_from_its_last():
  record = {"id": "a", "caption": "a red car", **_codes(POOL[:1])}
  got = S.from_record(record, "t2i", TOKENIZER, forms.SequenceSettings())
  assert got.tokens[got.visual_position[0] - 1] == TOKENIZER.im_start
  assert got.text_target[got.visual_position[-1]] == TOKENIZER.im_end
  assert (got.text_target[got.visual_position[:-1]] == -1).all()
  assert got.tokens.dtype == np.int32 and got.codes.dtype == np.int32
  np.testing.assert_array_equal(got.codes, POOL[0])


def _codes(codes):
  return {"codes": codes.astype("<u2").tobytes(), "codes_shape": list(codes.shape)}


def test_dropped_caption_is_the_unconditional_prompt():
  for form, kind, extra in (("t2i", "image", {}), ("t2v", "video", {"n_frames": 2})):
    record = {"caption": "a red car", **_codes(POOL[: 1 + bool(extra)]), **extra}
    settings = forms.SequenceSettings(cfg_dropout=1.0, frames=2, system_prompt="")
    got = S.from_record(record, form, TOKENIZER, settings, np.random.default_rng(0))
    null = S.unconditional_prompt(TOKENIZER, settings, kind)
    start = got.visual_position[0]
    np.testing.assert_array_equal(got.tokens[:start], null.tokens)
    kept = S.from_record(record, form, TOKENIZER, settings)
    asked = S.drawing_prompt("a red car", TOKENIZER, settings, kind)
    np.testing.assert_array_equal(kept.tokens[: kept.visual_position[0]], asked.tokens)


QA = record_of(
  ["human", "gpt"] * 3, ["What?", "A cat.", "How many?", "One.", "Is it red?", "No."], POOL[:1]
)
QA["caption"] = "one cat"


@pytest.mark.parametrize("markers", ["always", "release"])
def test_training_prefix_equals_the_prompt(markers):
  settings = forms.SequenceSettings(markers=markers, max_turns=1)
  got = S.from_record(QA, "i2t", TOKENIZER, settings)
  prompt = S.prompt([C.turn("user", C.Visual("image", POOL[:1]), "What?")], TOKENIZER, settings)
  if markers == "always":
    np.testing.assert_array_equal(got.tokens[: len(prompt.tokens)], prompt.tokens)
  else:  # the released training has markers that its inference lacks
    assert TOKENIZER.im_start in got.tokens and TOKENIZER.im_start not in prompt.tokens


def test_video_question_has_video_markers_or_a_newline_a_frame():
  record = {**QA, **_codes(POOL[:2]), "n_frames": 2}
  always = S.from_record(record, "v2t", TOKENIZER, forms.SequenceSettings(frames=2, max_turns=1))
  assert list(always.tokens).count(TOKENIZER.vi_start) == 1
  assert np.diff(always.visual_position).max() == 1  # frames touch
  release = S.from_record(
    record, "v2t", TOKENIZER, forms.SequenceSettings(frames=2, max_turns=1, markers="release")
  )
  assert TOKENIZER.vi_start not in release.tokens
  assert np.diff(release.visual_position).max() == 3  # a space and a newline between them


@pytest.mark.parametrize("independent", (False, True))
def test_turns_are_drawn_from_the_generator_and_measured_alike(independent):
  settings = forms.SequenceSettings(
    max_turns=2, shuffle_turns=True, caption_turn=True, independent_turns=independent
  )
  most = S.largest(QA, "i2t", TOKENIZER, settings)
  seen = set()
  for seed in range(200):
    got = S.from_record(QA, "i2t", TOKENIZER, settings, np.random.default_rng(seed))
    size = S.measure(QA, "i2t", TOKENIZER, settings, np.random.default_rng(seed))
    assert size == got.size and size <= most
    seen.add(tuple(got.text_target[got.text_target != -1]))
  assert len(seen) == 4 * 3
  assert settings.is_random("i2t") and not settings.is_random("t2i")


def test_independent_turns_are_each_question_alone():
  together = forms.SequenceSettings(caption_turn=True, independent_turns=True)
  got = S.from_record(QA, "i2t", TOKENIZER, together)
  pairs = list(zip(QA["conversations_value"][::2], QA["conversations_value"][1::2]))
  assert got.branches.max() == len(pairs) + 1
  for number in range(1, len(pairs) + 1):
    said = {"conversations_from": ["human", "gpt"], "conversations_value": pairs[number - 1]}
    record = QA | said
    alone = S.from_record(record, "i2t", TOKENIZER, forms.SequenceSettings())
    seen = (got.branches == 0) | (got.branches == number)
    np.testing.assert_array_equal(got.tokens[seen], alone.tokens)
    np.testing.assert_array_equal(got.positions[seen], np.arange(len(alone.tokens)))
    np.testing.assert_array_equal(got.text_target[seen], alone.text_target)
    np.testing.assert_array_equal(got.visual_position, alone.visual_position)


def test_interleaved_markers_and_places():
  record = {"sentences": ["One.", "Two.", "Three."], "image_sentence_index": [0, 2]}
  record.update(_codes(POOL[:2]))
  got = S.from_record(record, "interleaved", TOKENIZER, forms.SequenceSettings())
  assert list(got.tokens).count(TOKENIZER.im_start) == 2
  assert not got.visual_target.any()
  assert got.text_target[-2] == TOKENIZER.eos
  text = TOKENIZER.decode(np.delete(got.tokens, got.visual_position))
  assert text == "One. Two.Three."


@pytest.mark.parametrize(
  ("record", "form", "problem"),
  [
    ({"caption": "x"}, "t2i", "vilau tokenize"),
    ({"caption": " ", **_codes(POOL[:1])}, "t2i", "caption, and it is empty"),
    ({"caption": "x", **_codes(POOL[:2])}, "t2i", "exactly one image"),
    ({**_codes(POOL[:1])}, "i2t", "needs conversations"),
    ({**QA, "conversations_from": ["human"] * 6}, "i2t", "must alternate"),
    ({**QA, "conversations_value": ["a", " "] * 3}, "i2t", "its answer is empty"),
    ({"caption": "x", **_codes(POOL[:3]), "n_frames": 3}, "t2v", "has 3 frames"),
    (record_of(["human", "gpt"], ["<image><image>?", "x"], POOL[:1]), "sft", "asks for"),
    (record_of(["human", "gpt"], ["<image>?", "x"], POOL[:2]), "sft", "not asked for"),
    ({"caption": "x", **_codes(POOL[:1])}, "i2v", "unknown form"),
    (record_of(["human", "gpt"], ["?", " "], []), "text", "answer is empty"),
  ],
)
def test_bad_records_are_refused(record, form, problem):
  with pytest.raises(ValueError, match=problem):
    S.from_record(record, form, TOKENIZER, forms.SequenceSettings(frames=2))


def test_codes_of_another_size_are_refused():
  with pytest.raises(ValueError, match="16 positions"):
    S.from_record(QA, "i2t", TOKENIZER, forms.SequenceSettings(tokens_per_image=25))


@pytest.mark.parametrize("markers", ["always", "release"])
def test_vflan_has_no_markers_around_images_in_the_released_form(markers):
  value = "<image><image>Which is brighter?"
  record = {**record_of(["human", "gpt"], [value, "This."], POOL[:2]), "no_system_prompt": 1}
  settings = forms.SequenceSettings(markers=markers)
  got = S.from_record(record, "sft", TOKENIZER, settings)
  assert S.measure(record, "sft", TOKENIZER, settings) == got.size
  if markers == "always":
    assert (got.tokens == TOKENIZER.im_start).sum() == 2
    return
  # The frames of a video stand the same way: a picture, a newline, a picture, a newline.
  video = {**record, "n_frames": 2, "conversations_value": ["Which is brighter?", "This."]}
  want = S.from_record(video, "sft", TOKENIZER, forms.SequenceSettings(markers=markers, frames=2))
  np.testing.assert_array_equal(got.tokens, want.tokens)
  np.testing.assert_array_equal(got.text_target, want.text_target)
  assert not got.visual_target.any()


def test_captions_are_dropped_anew_in_every_epoch():
  """By sample and epoch, at the rate that was asked for, to exactly the unconditional prompt."""
  settings = forms.SequenceSettings(cfg_dropout=0.25)
  record = {**record_of([], [], POOL[:1]), "caption": "a fox"}
  empty = S.unconditional_prompt(TOKENIZER, settings).tokens
  dropped = np.zeros((2, 200), bool)
  for epoch in range(2):
    for sample in range(200):
      rng = np.random.default_rng((0, 0, epoch * 200 + sample))  # as pipeline.PackedRows draws
      got = S.from_record(record, "t2i", TOKENIZER, settings, rng).tokens
      dropped[epoch, sample] = len(got) == len(empty) + 16 + 2
      if dropped[epoch, sample]:
        np.testing.assert_array_equal(got[: len(empty)], empty)
  assert 0.17 < dropped.mean() < 0.33 and (dropped[0] != dropped[1]).any()
