"""The lmms-eval adapter: its contract on stand-ins for requests, and one of the harness's own tasks
with the real package (extra `lmms`) on a few local rows."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import types

import benchmark_files
import golden_model
import numpy as np
import PIL.Image
import pytest

import vilau_jax
from vilau_jax.evaluate import lmms_eval

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
  return lmms_eval.Harness(model(), lambda task, split, name: docs[name], **options)


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
  assert got == [str(tmp_path / "vbench" / "a red road-2.mp4")]
  assert pathlib.Path(got[0]).stat().st_size > 0


def test_bad_requests_are_refused():
  with pytest.raises(ValueError, match="reads 2 frames of a video, not 8"):
    harness([], num_video_frames=8)
  with pytest.raises(ValueError, match="until must be"):
    harness([], until="yes")
  with pytest.raises(ValueError, match="hands over a int"):
    lmms_eval.conversation("a", [3])


# With the real package

POPE = """
include: {pope}
task: vilau_pope_local
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {data}
generation_kwargs:
  max_new_tokens: 4
  do_sample: false
"""
CHOICE = """
task: vilau_choice_local
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: 1
doc_to_visual: !function functions.nothing
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


def test_one_of_the_harness_tasks_runs_on_the_real_package(tmp_path):
  package = pathlib.Path(pytest.importorskip("lmms_eval").__file__).parent
  import datasets

  rows = [{"id": str(i), "question_id": str(i), "question": f"Is there a {w} in the image?",
           "answer": "yes", "image_source": "x", "image": picture, "category": "random"}
          for i, (w, picture) in enumerate(zip(("dog", "cat", "road"), pictures()))]  # fmt: skip
  table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
  table.to_parquet(str(tmp_path / "pope.parquet"))
  tasks = tmp_path / "tasks"
  tasks.mkdir()
  text = POPE.format(pope=package / "tasks" / "pope" / "pope.yaml", data=tmp_path / "pope.parquet")
  (tasks / "pope.yaml").write_text(text)
  (tmp_path / "choice.json").write_text(
    json.dumps([{"question": "what?", "choices": ["a dog", "a cat"]}])
  )
  (tasks / "choice.yaml").write_text(CHOICE.format(data=tmp_path / "choice.json"))
  (tasks / "functions.py").write_text("def nothing(doc):\n  return []\n")
  model().save(tmp_path / "model")
  # The entry point as an installed vilau_jax has it.
  metadata = tmp_path / "site" / "vilau_jax_entry-0.dist-info"
  metadata.mkdir(parents=True)
  (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: vilau-jax-entry\nVersion: 0\n")
  entry = "[lmms_eval.models]\nvilau_jax = vilau_jax.evaluate.lmms_eval:manifests\n"
  (metadata / "entry_points.txt").write_text(entry)
  environment = dict(os.environ, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hf"),
                     WANDB_MODE="disabled",
                     PYTHONPATH=os.pathsep.join([os.getcwd(), str(tmp_path / "site")]))  # fmt: skip
  typed = [sys.executable, "-m", "lmms_eval", "--model", "vilau_jax", "--model_args",
           f"checkpoint={tmp_path / 'model'}", "--tasks", "vilau_pope_local,vilau_choice_local",
           "--include_path", str(tasks), "--output_path", str(tmp_path / "out"), "--log_samples",
           "--batch_size", "2"]  # fmt: skip
  done = subprocess.run(typed, env=environment, capture_output=True, text=True, timeout=500)
  found = list((tmp_path / "out").rglob("*_results.json"))  # it exits 0 after errors, too
  assert done.returncode == 0 and found, done.stdout[-3000:] + done.stderr[-3000:]
  results = json.loads(found[0].read_text())["results"]
  samples = next((tmp_path / "out").rglob("*samples_vilau_pope_local.jsonl")).read_text()
  said = [json.loads(line)["filtered_resps"] for line in samples.splitlines()]
  ending = "\nAnswer the question using a single word or phrase."
  want = model().generate_text(
    [[vilau_jax.Image(row["image"]), row["question"] + ending] for row in rows], max_new_tokens=4
  )
  assert said == want
  share = np.mean([text.lower().strip() == "yes" for text in want])
  assert results["vilau_pope_local"]["pope_accuracy,none"] == pytest.approx(share)
  losses = [-float(model().score(["what?"], [text])[0]) for text in ("a dog", "a cat")]
  sizes = [len(model().tokenizer.encode(f" {t}</s>", prefix=False)) for t in ("a dog", "a cat")]
  right = float(np.argmin(np.divide(losses, sizes)) == 1)
  assert results["vilau_choice_local"]["acc,none"] == right
