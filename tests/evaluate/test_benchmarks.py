"""Every understanding benchmark on small data in its official format: the model's own answers, the
scores of given answers, files for the official tools, and what is refused."""

import functools
import json
import pathlib
import shutil
import tempfile

import benchmark_files
import golden_model
import numpy as np
import pytest

import vilau_jax
from vilau_jax.evaluate import runner
from vilau_jax.evaluate.task import Options

SHORT = Options(max_new_tokens=3, batch_size=4)  # few shapes to compile
ANSWERED = [name for name in benchmark_files.WRITERS if name not in ("mmvet",)]


@functools.cache
def model() -> vilau_jax.VilaU:
  return vilau_jax.VilaU.from_loaded(golden_model.tiny())


@functools.cache
def data(name: str) -> pathlib.Path:
  root = pathlib.Path(tempfile.mkdtemp(prefix="vilau_benchmark_")) / name
  benchmark_files.WRITERS[name](root)
  return root


def changed(name: str, tmp_path: pathlib.Path) -> pathlib.Path:
  """A copy that a test may break."""
  return pathlib.Path(shutil.copytree(data(name), tmp_path / "data"))


def given(name: str, tmp_path, answers, **options):
  path = tmp_path / "answers.jsonl"
  path.write_text("".join(json.dumps({"id": i, "answer": a}) + "\n" for i, a in answers.items()))
  return runner.run(name, data=data(name), output=tmp_path / "out", predictions=path,
                    options=Options(**options))  # fmt: skip


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", benchmark_files.WRITERS)
def test_a_run(name, tmp_path):
  result = runner.run(name, data=data(name), output=tmp_path, model=model(), options=SHORT)
  stored = json.loads((tmp_path / "scores.json").read_text())
  rows = lines(tmp_path / "predictions.jsonl")
  assert stored == json.loads(json.dumps(result))
  assert len(rows) == result["n"] == len({row["id"] for row in rows}) and result["missing"] == 0
  assert all(isinstance(row["answer"], str) for row in rows)
  assert result["model"]["id"] == model().identity() and len(result["data"]["sha256"]) == 64
  assert result["settings"]["max_new_tokens"] == 3 and result["versions"]["jax"]
  needs_judge = name == "mmvet" or name.endswith("-qa")
  assert bool(result["partial"]) == needs_judge and bool(result["metrics"]) != needs_judge


@pytest.mark.parametrize("name", [*benchmark_files.WRITERS, "seedbench by likelihood"])
def test_batch_size_does_not_change_predictions(name, tmp_path):
  name, _, protocol = name.partition(" by ")
  found = []
  for size in (1, 3):
    options = Options(batch_size=size, **(
      {"protocol": protocol} if protocol else {"max_new_tokens": 8}
    ))  # fmt: skip
    runner.run(name, data=data(name), output=tmp_path / str(size), model=model(), options=options)
    found.append(lines(tmp_path / str(size) / "predictions.jsonl"))
  losses = [[row.pop("losses", None) for row in rows] for rows in found]
  assert found[0] == found[1]
  if protocol:
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_vqav2_scores_and_submission(tmp_path):
  result = given("vqav2", tmp_path, {"100": "Yes.", "101": "two", "102": "blue"})
  assert result["metrics"] == {"accuracy": 66.67}
  assert result["categories"]["answer_type"] == {"yes/no": 100, "number": 100, "other": 0}
  result = given("vqav2", tmp_path, {"100": "A dog.", "101": "2"}, split="test-dev2015")
  assert result["metrics"] == {} and result["partial"] is None
  rows = json.loads((tmp_path / "out" / "submission.json").read_text())
  assert rows == [{"question_id": 100, "answer": "dog"}, {"question_id": 101, "answer": "2"},
                  {"question_id": 102, "answer": ""}]  # fmt: skip


def test_gqa_scores(tmp_path):
  result = given("gqa", tmp_path, {"q0": "Yes", "q1": "cat"})
  metrics = result["metrics"]
  assert metrics["accuracy"] == pytest.approx(100 / 3) and result["missing"] == 1
  assert metrics["binary"] == 100 and metrics["open"] == 0
  assert metrics["distribution"] == pytest.approx(0.01)  # yes as often as it should be, dog never
  assert result["categories"]["steps"] == {"1": 100, "2": 0, "3": 0}
  with pytest.raises(ValueError, match="no prediction for question q2"):
    given("gqa", tmp_path, {"q0": "Yes", "q1": "cat"}, strict=True)


def test_textvqa_scores(tmp_path):
  result = given("textvqa", tmp_path, {"34602": "Nokia.", "34603": "nokia phone", "34604": "x"})
  assert result["metrics"]["accuracy"] == pytest.approx(100 * 1.6 / 3)


def test_textvqa_answers_in_llavas_form(tmp_path):
  ending = "\nAnswer the question using a single word or phrase."
  rows = [{"question_id": f"im{i}", "text": "nokia", "prompt": f"what is the brand {i}?" + ending}
          for i in range(2)]  # fmt: skip
  path = tmp_path / "merge.jsonl"
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  result = runner.run("textvqa", data=data("textvqa"), output=tmp_path / "o", predictions=path)
  assert result["metrics"]["accuracy"] == pytest.approx(200 / 3) and result["missing"] == 1


def test_textvqa_prompts_with_ocr():
  from vilau_jax.evaluate.benchmarks.textvqa import Textvqa

  asked = Textvqa(data("textvqa"), Options(protocol="llava")).requests()
  assert asked[1].content[1] == (
    "what is the BRAND 1?\nReference OCR token: NOKIA, N70\n"
    "Answer the question using a single word or phrase."
  )


def test_pope_scores(tmp_path):
  answers = {f"{part}/{i}": text for part in ("random", "popular", "adversarial")
             for i, text in ((1, "Yes"), (2, "No" if part == "random" else "Yes"))}  # fmt: skip
  result = given("pope", tmp_path, answers)
  assert result["categories"]["random"]["f1"] == 1
  assert result["metrics"]["f1"] == pytest.approx(100 * (1 + 2 / 3 + 2 / 3) / 3)
  assert result["metrics"]["pooled_accuracy"] == pytest.approx(100 * 4 / 6)
  pooled = given("pope", tmp_path, answers, protocol="lmms")["metrics"]
  assert pooled["f1"] == pooled["pooled_f1"] == pytest.approx(100 * 6 / 8)


def test_mme_scores_and_files(tmp_path):
  from vilau_jax.evaluate.benchmarks import mme

  tasks = mme.PERCEPTION + mme.COGNITION
  answers = {f"{task}/a/{i}": ("Yes\tit\nis", "No")[i] for task in tasks for i in range(2)}
  answers["count/a/1"] = "yes"
  result = given("mme", tmp_path, answers)
  assert result["metrics"] == {"perception": 1850, "cognition": 800}
  text = (tmp_path / "out" / "results" / "count.txt").read_text()
  assert text == (
    "a.png\tIs it count? Please answer yes or no.\tYes\tYes it is\n"
    "a.png\tIs it nothing? Please answer yes or no.\tNo\tyes\n"
  )


def test_seedbench_scores(tmp_path):
  result = given("seedbench", tmp_path, {"0": "A", "1": "A", "2": "C."})
  assert result["metrics"]["all"] == pytest.approx(100 / 3)
  assert result["metrics"]["image"] == 100 and result["metrics"]["video"] == 0
  assert given("seedbench", tmp_path, {"2": "C."}, protocol="lmms")["metrics"]["video"] == 50


def test_seedbench_by_likelihood(tmp_path):
  options = Options(protocol="likelihood")
  runner.run("seedbench", data=data("seedbench"), output=tmp_path, model=model(), options=options)
  for row in lines(tmp_path / "predictions.jsonl"):
    losses = row["losses"]
    assert row["answer"] == "ABCD"[losses.index(min(losses))] and min(losses) > 0


def test_questions_reach_the_model_in_the_official_words():
  from vilau_jax.evaluate import catalogue

  ending = "\nAnswer the question using a single word or phrase."
  asked = {name: catalogue.create(name, data(name), Options()).requests()[0].content[1]
           for name in benchmark_files.WRITERS}  # fmt: skip
  assert asked["vqav2"] == "is the number 0?" + ending
  assert asked["textvqa"] == "What is the brand 0?" + ending
  assert asked["pope"] == "Is there a dog in the image?" + ending
  assert asked["mme"] == "Is it existence?" + ending
  assert asked["mmvet"] == "What is x in 0?" and asked["msvd-qa"] == "what happens in 0?"


@pytest.mark.parametrize(
  ("name", "answers", "words"),
  [
    ("vqav2", {"100": "a", "999": "b"}, "unknown ids, the first: 999"),
    ("gqa", {"q9": "b"}, "unknown ids, the first: q9"),
  ],
)
def test_predictions_for_unknown_ids_are_refused(name, answers, words, tmp_path):
  with pytest.raises(ValueError, match=words):
    given(name, tmp_path, answers)


def test_predictions_that_cannot_be_read_are_refused(tmp_path):
  def score(text):
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    runner.run("gqa", data=data("gqa"), output=tmp_path / "out", predictions=path)

  with pytest.raises(ValueError, match="record 2: id q0 appears twice"):
    score('{"id": "q0", "answer": "a"}\n{"question_id": "q0", "text": "b"}\n')
  with pytest.raises(ValueError, match="has none of answer, text"):
    score('{"id": "q0"}\n')
  with pytest.raises(ValueError, match="line 2: no JSON object"):
    score('{"id": "q0", "answer": "a"}\n{"id"')
  with pytest.raises(ValueError, match="no predictions at"):
    runner.run("gqa", data=data("gqa"), output=tmp_path / "o", predictions=tmp_path / "none.jsonl")


def rewrite(path, change):
  content = json.loads(path.read_text())
  change(content)
  path.write_text(json.dumps(content))


@pytest.mark.parametrize(
  ("name", "file", "change", "words"),
  [
    ("vqav2", "v2_mscoco_val2014_annotations.json", lambda c: c["annotations"].pop(),
     "no annotation of question 102"),
    ("vqav2", "v2_OpenEnded_mscoco_val2014_questions.json",
     lambda c: c["questions"].append(c["questions"][0]), "question_id 100 appears twice"),
    ("gqa", "testdev_balanced_questions.json", lambda c: c.clear(), "holds nothing to evaluate"),
    ("gqa", "testdev_balanced_questions.json", lambda c: c["q0"].update(imageId="gone"),
     "question q0: none of images/gone.jpg"),
    ("textvqa", "TextVQA_0.5.1_val.json", lambda c: c["data"][1]["answers"].pop(),
     "question 34603: 9 answers, not ten"),
    ("seedbench", "SEED-Bench.json", lambda c: c["questions"][0].pop("choice_c"),
     "question 0: a record has no 'choice_c'"),
    ("mmvet", "mm-vet.json", lambda c: c["v1_1"].update(capability=["magic"]), "v1_1: capability"),
    ("msvd-qa", "test_a.json", lambda c: c.pop(), "no answer to question v_0"),
    ("msvd-qa", "test_a.json", lambda c: c.append({"answer": "x", "question_id": "v_9"}),
     "unknown question v_9"),
  ],
)  # fmt: skip
def test_contradictory_annotations_are_refused(name, file, change, words, tmp_path):
  root = changed(name, tmp_path)
  rewrite(root / file, change)
  with pytest.raises(ValueError, match=words):
    runner.run(name, data=root, output=tmp_path / "out", model=model(), options=SHORT)
  assert not (tmp_path / "out" / "predictions.jsonl").exists()


@pytest.mark.parametrize(
  ("name", "file"), [("gqa", "testdev_balanced_questions.json"), ("mmvet", "mm-vet.json")]
)
def test_ids_that_are_keys_may_not_stand_twice(name, file, tmp_path):
  path = changed(name, tmp_path) / file
  content = json.loads(path.read_text())
  first = next(iter(content))
  path.write_text(path.read_text().rstrip()[:-1] + f', "{first}": {json.dumps(content[first])}}}')
  with pytest.raises(ValueError, match=f"{file}: {first} appears twice"):
    runner.run(name, data=path.parent, output=tmp_path / "out", model=model(), options=SHORT)


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("mjhq-30k", r"lacks the annotations: meta_data\.json"),
    ("cfg-sweep", r"lacks the annotations: meta_data\.json"),
    ("genai-bench", r"lacks the annotations: genai_image\.json"),
    ("vbench", r"lacks the annotations: VBench_full_info\.json"),
    ("reconstruction", "no pictures below"),
  ],
)
def test_missing_annotations_of_drawings_are_named(name, words, tmp_path):
  with pytest.raises(ValueError, match=words):
    runner.run(name, data=tmp_path, output=tmp_path / "out", model=model())


@pytest.mark.parametrize("name", benchmark_files.WRITERS)
def test_missing_annotations_are_named(name, tmp_path):
  with pytest.raises(ValueError, match="lacks"):
    runner.run(name, data=tmp_path, output=tmp_path / "out", model=model())


def test_options_that_a_task_does_not_use_are_refused(tmp_path):
  for options, words in (
    (Options(inception="x"), "pope has no use for --inception"),
    (Options(protocol="llava"), "must be one of official, lmms"),
    (Options(split="val"), "--split must be one of coco"),
  ):
    with pytest.raises(ValueError, match=words):
      runner.run("pope", data=data("pope"), output=tmp_path, model=model(), options=options)
  with pytest.raises(ValueError, match="did you mean 'pope'"):
    runner.run("poppe", data=data("pope"), output=tmp_path, model=model())
  with pytest.raises(ValueError, match="give --model=DIR, or --predictions"):
    runner.run("pope", data=data("pope"), output=tmp_path)
