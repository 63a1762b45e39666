"""The lmms-eval adapter: its contract on stand-ins for requests. Tasks of the harness itself run in
test_lmms_live.py."""

import functools
import json
import pathlib
import types

import benchmark_files
import golden_model
import numpy as np
import PIL.Image
import pytest

import vilau_jax
from vilau_jax.evaluate import lmms_eval
from vilau_jax.evaluate.replicas import Replicas

pytestmark = pytest.mark.slow  # compiles text and picture prompts of every length it meets

CONTRACT = json.loads(
  (pathlib.Path(__file__).parent.parent / "golden" / "eval" / "lmms_eval_contract.json").read_text()
)
GREEDY = {"max_new_tokens": 4, "temperature": 0.0, "do_sample": False, "until": ["\n\n"]}


@functools.cache
def model() -> vilau_jax.VilaU:
  return vilau_jax.VilaU.from_loaded(golden_model.tiny())


@functools.cache
def pictures() -> list[PIL.Image.Image]:
  rng = np.random.default_rng(0)
  return [PIL.Image.fromarray(rng.integers(0, 255, (30, 30, 3), np.uint8)) for _ in range(3)]


def request(*args):
  return types.SimpleNamespace(args=args)


def harness(docs, **options):
  return lmms_eval.Harness(Replicas([model()]), lambda task, split, name: docs[name], **options)


def visual(doc):
  return [doc["image"]] if doc.get("image") is not None else []


def test_answers_come_in_the_order_of_the_requests(tmp_path):
  benchmark_files.film(tmp_path / "a.mp4")
  docs = [{"image": pictures()[0]}, {"image": None}, {"image": str(tmp_path / "a.mp4")},
          {"image": pictures()[1]}]  # fmt: skip
  asked = ["what is it? <image>", "hello", "what happens?", "and this, at more length?"]
  requests = [request(text, GREEDY | {"max_new_tokens": 4 - i % 2}, visual, i, "t", "test")
              for i, text in enumerate(asked)]  # fmt: skip
  got = harness(docs, batch_size=2).generate(requests)
  say = lambda parts, n: model().generate_text([parts], max_new_tokens=n)[0]  # noqa: E731
  assert got == [
    say([vilau_jax.Image(pictures()[0]), "what is it?"], 4), say("hello", 3),
    say([vilau_jax.Video(str(tmp_path / "a.mp4")), "what happens?"], 4),
    say([vilau_jax.Image(pictures()[1]), "and this, at more length?"], 3),
  ]  # fmt: skip


def test_settings_of_the_harness_tasks_are_greedy():
  for name, given in CONTRACT["generation_kwargs_examples"].items():
    tokens, temperature, top_p = lmms_eval._settings(given, name)
    assert temperature == 0 and top_p == 1 and tokens == given.get("max_new_tokens", 512)
  sampled = lmms_eval._settings({"do_sample": True, "top_p": 0.9}, "t")
  assert sampled == (512, 1.0, 0.9)
  assert lmms_eval._settings({"do_sample": True, "temperature": 0.0}, "t")[1] == 0
  with pytest.raises(ValueError, match="t asks for num_beams=5"):
    lmms_eval._settings({"num_beams": 5}, "t")


def test_prompts_are_vila_us():
  for case in CONTRACT["vila_u_prompts"]:
    content = lmms_eval.conversation(case["text"], [pictures()[0]] * case["n_images"])
    loaded = vilau_jax.VilaU.from_loaded(golden_model.golden())
    sequence = loaded.runtime.prompts([content])[0]
    slots = set(sequence.visual_position.tolist())
    assert len(slots) == case["n_images"] * loaded.config.tower.image_tokens
    text = loaded.tokenizer.decode([t for i, t in enumerate(sequence.tokens) if i not in slots])
    # Text behind a picture is tokenized on its own, with the tokenizer's space in front.
    assert text == case["rendered"].replace("<image>", " ")


def test_stop_words_are_ignored_unless_asked_for():
  def cut(until, stop):
    return harness([], until=until)._cut("a b\n\nc", {"until": stop})

  assert cut("ignore", ["\n\n"]) == "a b\n\nc"
  assert cut("respect", ["\n\n"]) == "a b" and cut("respect", "b") == "a "


def test_losses_are_mean_losses_of_tokens():
  docs = [{"image": pictures()[0], "answer": "a dog"}]
  requests = [request("what is it?", continuation, visual, 0, "t", "test")
              for continuation in (" a cat", lambda doc: doc["answer"])]  # fmt: skip
  got = harness(docs).losses(requests)
  content = [vilau_jax.Image(pictures()[0]), "what is it?"]
  for (loss, greedy), text in zip(got, ("a cat", "a dog")):
    size = len(model().tokenizer.encode(f" {text}</s>", prefix=False))
    assert loss == pytest.approx(-float(model().score([content], [text])[0]) / size, rel=1e-5)
    assert greedy is False or greedy is True


def test_vbench_tasks_get_videos(tmp_path):
  docs = [{"sample_index": 2, "seed": 7}]
  run = harness(docs, output_dir=str(tmp_path))
  got = run.generate([request("a red road", {}, visual, 0, "vbench_color", "test")])
  assert got == [str(tmp_path / "vbench" / model().identity() / "a red road-2.mp4")]
  assert pathlib.Path(got[0]).stat().st_size > 0


def test_rounds_go_on_until_the_task_has_enough():
  docs = [{"image": pictures()[0], "rounds": 3}, {"image": None, "rounds": 1}]
  seen = []

  def to_text(doc, previous_output, round_idx, previous_round_info):
    seen.append((doc["rounds"], len(previous_output), round_idx, previous_round_info))
    if round_idx == doc["rounds"]:
      return None, None, True, [*previous_output, "end"], None
    picture = [pictures()[round_idx]]
    return picture, f"round {round_idx}: {previous_output[-1]}", False, previous_output, round_idx

  requests = [request("hello", GREEDY, visual, to_text, i, "t", "test") for i in range(2)]
  got = harness(docs, batch_size=2).rounds(requests)
  say = lambda parts: model().generate_text([parts], max_new_tokens=4)[0]  # noqa: E731
  want = [say([vilau_jax.Image(pictures()[0]), "hello"])]
  for i in (1, 2):
    want.append(say([vilau_jax.Image(pictures()[i]), f"round {i}: {want[-1]}"]))
  assert got == [[*want, "end"], [say(["hello"]), "end"]]
  assert seen == [(3, 1, 1, None), (1, 1, 1, None), (3, 2, 2, 1), (3, 3, 3, 2)]


def test_sketches_are_seen_when_the_question_is_answered(tmp_path):
  docs = [{"image": pictures()[0]}]
  context = "[GEN_PROMPT]draw {question}[/GEN_PROMPT][QUESTION]a dog?[/QUESTION]"
  run = harness(docs, output_dir=str(tmp_path))
  got = run.sketched([request(context, GREEDY, visual, 0, "t", "test")])
  drawn = tmp_path / "drawings" / "t_0.png"
  np.testing.assert_array_equal(
    np.asarray(PIL.Image.open(drawn)), model().generate_images(["draw a dog?"])[0]
  )
  parts = [vilau_jax.Image(pictures()[0]), vilau_jax.Image(str(drawn)), "a dog?"]
  assert got == model().generate_text([parts], max_new_tokens=4)
  assert lmms_eval.sketch_and_question("a dog?") == ("a dog?", "a dog?")


def test_answers_may_be_drawings(tmp_path):
  run = harness([{}], answer="image", output_dir=str(tmp_path))
  [got] = run.generate([request("a red road", GREEDY, visual, 0, "WISE", "test")])
  path = str(tmp_path / "drawings" / "WISE_0.png")
  assert json.loads(got) == {"text": "", "images": [path]}
  want = model().generate_images(["a red road"])[0]
  np.testing.assert_array_equal(np.asarray(PIL.Image.open(path)), want)


def test_bad_requests_are_refused():
  with pytest.raises(ValueError, match="reads 2 frames of a video, not 8"):
    harness([], num_video_frames=8)
  with pytest.raises(ValueError, match="until must be"):
    harness([], until="yes")
  with pytest.raises(ValueError, match="answer must be"):
    harness([], answer="song")
  with pytest.raises(ValueError, match="hands over a int"):
    lmms_eval.conversation("a", [3])
