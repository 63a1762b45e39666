"""Official scores on small cases (tests/golden/eval), reproduced by every scorer of answers."""

import json
import pathlib

import pytest

from vilau_jax.data import media
from vilau_jax.evaluate import paper
from vilau_jax.evaluate.benchmarks import gqa, mme, mmvet, pope, seedbench, textvqa, video_qa
from vilau_jax.evaluate.benchmarks import vqa_answers as vqa
from vilau_jax.evaluate.task import Request

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "eval"


def golden(name):
  return json.loads((GOLDEN / f"{name}.json").read_text())


def test_vqav2_normalisation():
  for case in golden("vqav2")["normalize_cases"]:
    assert vqa.official(case["raw"]) == case["official_vqaeval"], case
    assert vqa.evalai(case["raw"]) == case["evalai_m4c"], case


def test_vqav2_scores_and_aggregate():
  content, scores = golden("vqav2"), []
  for case in content["score_cases"]:
    score = lambda protocol: vqa.vqa_accuracy(case["prediction"], case["answers"], protocol)  # noqa: B023, E731
    assert score("official") == pytest.approx(case["official_vqaeval"]), case
    assert score("llava") == pytest.approx(case["official_after_llava_evalai_normalisation"]), case
    assert score("lmms") == pytest.approx(case["lmms_eval_0_7_3"]), case
    scores.append(score("official"))
  want = content["aggregate_over_score_cases"]["official"]
  share = lambda values: round(100 * sum(values) / len(values), 2)  # noqa: E731
  assert share(scores) == want["overall"]
  for i, name in enumerate(("what", "how many")):
    assert share(scores[i::2]) == want["perQuestionType"][name]
  for i, name in enumerate(("yes/no", "number", "other")):
    assert share(scores[i::3]) == want["perAnswerType"][name]


def test_textvqa():
  content, marks = golden("textvqa"), []
  for case in content["cases"]:
    marks.append(vqa.textvqa_accuracy(case["prediction"], case["answers"]))
    assert marks[-1] == pytest.approx(case["score"]) == pytest.approx(case["lmms_eval_0_7_3"])
    assert vqa.evalai(case["prediction"]) == case["normalised_prediction"]
    unique = {vqa.evalai(a) for a in case["answers"]}
    answers = [vqa.evalai(a) for a in case["answers"]]
    assert {u: pytest.approx(vqa.agreement(u, answers)) for u in unique} == (
      case["unique_answer_scores"]
    )
  assert sum(marks) / len(marks) == pytest.approx(content["aggregate_mean"], abs=5e-7)
  for case in content["llava_prompt_to_question"]:
    assert textvqa.question_of(case["prompt"]) == case["question"]
  for case in content["lmms_prompts"]:
    tokens = case["ocr_tokens"] if case["ocr"] else None
    assert textvqa.prompt(case["question"], "lmms", tokens) == case["prompt"]
  with pytest.raises(ValueError, match="ten answers"):
    vqa.textvqa_accuracy("a", ["a"] * 9)
  with pytest.raises(ValueError, match="no prompt"):
    textvqa.question_of("one line")


def test_answers_of_llavas_textvqa_file_find_their_questions():
  asked = Request("34602", None, {"image_id": "003a8ae2ef43b901", "question": "What brand is it?"})
  row = {"question_id": "003a8ae2ef43b901", "text": "nokia"}
  for case in golden("textvqa")["llava_prompt_to_question"][:2]:
    found = textvqa.from_llava([row | {"prompt": case["prompt"]}], [asked])
    assert found == [{"id": "34602", "answer": "nokia"}]
  with pytest.raises(ValueError, match="no question"):
    textvqa.from_llava([row | {"prompt": "Another?\nAnswer."}], [asked])


def test_gqa():
  content = golden("gqa")
  for case in content["cases"]:
    assert gqa.llava_prediction(case["model_output"]) == case["llava_prediction"]
    for protocol, key in (("llava", "official_correct"), ("lmms", "lmms_exact_match")):
      assert gqa.correct(case["model_output"], case["gold"], protocol) == case[key], case
  right = {p: [gqa.correct(c["model_output"], c["gold"], p) for c in content["cases"]]
           for p in ("llava", "lmms")}  # fmt: skip
  share = {p: sum(r) / len(r) for p, r in right.items()}
  assert 100 * share["llava"] == pytest.approx(content["aggregate"]["official_accuracy_percent"])
  assert share["lmms"] == pytest.approx(content["aggregate"]["lmms_exact_match_mean"], abs=5e-7)
  example = content["distribution_example"]
  found = gqa.distribution(example["gold"], example["predicted"])
  assert found == pytest.approx(example["printed_value"], rel=1e-12)


def test_pope():
  content = golden("pope")
  for case in content["cases"]:
    assert pope.parse(case["answer"], "official") == case["official_parsed"], case
    assert pope.parse(case["answer"], "lmms") == case["lmms_prediction"], case
    assert (pope.parse(case["answer"], "lmms") == case["label"]) == case["lmms_score"]
  pairs = {p: [(pope.parse(c["answer"], p), c["label"]) for c in content["cases"]]
           for p in ("official", "lmms")}  # fmt: skip
  found, want = pope.rates(pairs["official"]), content["official_aggregate"]
  for ours, theirs in (("accuracy", "acc"), ("precision",) * 2, ("recall",) * 2, ("f1",) * 2,
                       ("yes_ratio",) * 2):  # fmt: skip
    assert found[ours] == pytest.approx(want[theirs], rel=1e-12)
  found, want = pope.rates(pairs["lmms"]), content["lmms_aggregate"]
  for name in ("accuracy", "precision", "recall", "f1"):
    assert found[name] == pytest.approx(want[name])
  nothing = pope.rates([("no", "yes"), ("no", "no")])
  assert nothing["precision"] == nothing["f1"] == 0


def test_mme():
  content = golden("mme")
  for case in content["parse_cases"]:
    for protocol in ("official", "lmms"):
      assert mme.parse(case["raw"], protocol) == case[protocol], case
  for protocol in ("official", "lmms"):
    tasks = {
      task: mme.task_score([
        [mme.parse(p, protocol) == g.lower() for p, g in zip(item["pred"], item["gt"])]
        for item in items
      ])
      for task, items in content["items"].items()
    }  # fmt: skip
    perception = sum(tasks[task] for task in mme.PERCEPTION)
    cognition = sum(tasks[task] for task in mme.COGNITION)
    if protocol == "official":
      want = content["official"]
      assert (perception, cognition) == (want["perception_total"], want["cognition_total"])
      assert tasks == pytest.approx(want["per_task"])
    else:
      assert {"perception": perception, "cognition": cognition} == pytest.approx(content["lmms"])


def test_seedbench():
  content = golden("seedbench")
  for case in content["cases"]:
    assert (
      seedbench.correct(case["output"], case["answer"], "llava")
      == (case["llava_exact_string_match"])
    )
    assert seedbench.correct(case["output"], case["answer"], "lmms") == case["lmms_correct"]
  for case in content["likelihood_variant"]["cases"]:
    assert seedbench.best(case["losses"]) == case["pred"]
  row = {"question": "How many towels are in the image?", "choice_a": "One", "choice_b": "Two",
         "choice_c": "Three", "choice_d": "Four"}  # fmt: skip
  assert seedbench.prompt(row) == content["prompt"]
  variant = content["likelihood_variant"]
  assert seedbench.likelihood_prompt(row) == variant["prompt_lmms_seedbench_ppl"]


@pytest.mark.parametrize("protocol", ["llava", "lmms"])
def test_seedbench_aggregate(protocol, tmp_path):
  content = golden("seedbench")["aggregate"]
  names = {v: k for k, v in content["annotations"]["question_type"].items()}
  requests = [
    Request(q["question_id"], None, {"answer": q["answer"], "data_type": q["data_type"],
                                     "type": names[q["question_type_id"]]})
    for q in content["annotations"]["questions"]
  ]  # fmt: skip

  class Found:
    directory = tmp_path
    rows = {r.id: {"answer": p} for r, p in zip(requests, content["predictions"])}  # noqa: RUF012

  task = seedbench.Seedbench.__new__(seedbench.Seedbench)
  task.protocol = protocol
  scores = task.score(requests, Found)
  if protocol == "lmms":
    for name in ("all", "image", "video"):
      assert scores.metrics[name] == pytest.approx(100 * content[f"lmms_seed_{name}"])
    return
  lines = [f"{name}: {value:.2f}%" for name, value in scores.categories["types"].items()]
  lines += [f"Total accuracy: {scores.metrics['all']:.2f}%"]
  lines += [f"{kind} accuracy: {scores.metrics[kind]:.2f}%" for kind in ("image", "video")]
  assert lines == content["llava_stdout"]


class Scripted:
  """A judge that says its lines, and remembers what it was asked."""

  def __init__(self, replies):
    self.replies, self.calls = list(replies), []

  def ask(self, messages, **parameters):
    self.calls.append((messages, parameters))
    return self.replies.pop(0)


def test_mmvet():
  content = golden("mmvet")
  wanted = iter(content["judge_calls"])
  marks = {}
  for name, truth in content["metadata"].items():
    judge = Scripted(content["judge_replies"][name])
    found = mmvet.grade(judge, "the table\n", truth, content["predictions"][name])
    grade = content["grades"][name]
    assert found == {"content": grade["content"][-1], "score": grade["score"][-1]}
    assert not judge.replies
    marks[name] = found["score"]
    for messages, parameters in judge.calls:
      call = next(wanted)
      assert call["id"] == name and parameters["max_tokens"] == call["max_tokens"]
      assert parameters["temperature"] == call["temperature"]
      assert messages[0]["content"].split("\n")[-2:] == call["last_lines"]
  capabilities = {name: truth["capability"] for name, truth in content["metadata"].items()}
  metrics, sets = mmvet.capability_scores(capabilities, marks)
  want = dict(content["capability_scores_percent"])
  assert want.pop("std") == 0  # one run
  assert metrics == want
  want = dict(content["capability_integration_scores_percent(keys sorted, joined by _)"])
  assert sets == {k: v for k, v in want.items() if k not in ("total", "std")}


def test_video_qa():
  content = golden("video_qa")
  for case in content["parse_cases"]:
    found, want = video_qa.parse_official(case["reply"]), case["video_chatgpt_literal_eval"]
    complete = "dict" in want and set(want["dict"]) == {"pred", "score"}
    assert (found is not None) == complete, case
    if complete:
      assert found == {"pred": want["dict"]["pred"], "score": int(want["dict"]["score"])}
    found = video_qa.parse_lmms(case["reply"])
    assert (list(found.values()) if found else None) == case["lmms_0_7_3"], case
  summary = video_qa.summary([video_qa.parse_official(r) for r in content["judge_replies"]])
  want = content["official"]
  assert summary == {"accuracy": 100 * want["accuracy"], "mean_score": want["average_score"],
                     "yes": want["yes"], "no": want["no"]}  # fmt: skip
  lmms = video_qa.summary([video_qa.parse_lmms(r) for r in content["judge_replies"]])
  assert lmms["accuracy"] == content["lmms_0_7_3"]["accuracy_percent"]
  assert lmms["mean_score"] == content["lmms_0_7_3"]["average_score"]
  case = content["lmms_prompt"]
  assert video_qa.prompt(case["question_field"], "lmms") == case["prompt"]
  assert video_qa.prompt(case["question_field"], "vila") == case["question_field"]


def test_frames_of_videos():
  for case in golden("video_frames")["cases"]:
    assert media.frame_indices(case["frame_count"], 8) == case["vila_u_8"]


def test_the_papers_numbers():
  content, tables = golden("paper_numbers"), paper.tables()
  value = lambda task, side, metric: tables[task]["rows"][f"VILA-U {side}"][metric]  # noqa: E731
  names = {"VQAv2": "vqav2", "GQA": "gqa", "TextVQA": "textvqa", "POPE": "pope", "MME": "mme",
           "SEED": "seedbench", "MM-Vet": "mmvet"}  # fmt: skip
  for side in ("256", "384"):
    assert value("reconstruction", side, "fid") == content["vision_tower"][side]["rFID"]
    assert value("imagenet", side, "top1") == content["vision_tower"][side]["top1"]
    assert value("mjhq-30k", side, "fid") == content["mjhq30k_fid"][side]
    for name, want in content["image_qa"][side].items():
      assert value(names[name], side, tables[names[name]]["main"]) == want
    for name, want in content["video_qa"][side].items():
      assert value(name.lower(), side, "accuracy") == want
    columns = (
      "attribute",
      "scene",
      "spatial relation",
      "action relation",
      "part relation",
      "basic",
    )
    found = [value("genai-bench", side, column) for column in columns]
    assert found == content["genai_bench_basic"][side]
    columns = ("counting", "differentiation", "comparison", "negation", "universal", "advanced")
    found = [value("genai-bench", side, column) for column in columns]
    assert found == content["genai_bench_advanced"][side]
  for name, want in content["vbench_256"].items():
    assert value("vbench", "256", name) == want
  for scale, want in golden("mjhq30k")["paper"]["cfg_sweep_256"].items():
    assert value("cfg-sweep", "256", f"fid_cfg_{float(scale):g}") == want
  ablations = content["ablation_contrastive_256"]
  small = "VILA-U 256, 25M pictures"
  methods = {"25M recon": f"{small}, no contrastive loss", "25M recon+contra": small,
             "700M": "VILA-U 256"}  # fmt: skip
  for key, method in methods.items():
    for name, want in ablations[key].items():
      task, metric = ("imagenet", "top1") if name == "top1" else (
        names[name], tables[names[name]]["main"]
      )  # fmt: skip
      assert tables[task]["rows"][method][metric] == want
  rows = tables["mjhq-30k"]["rows"]
  assert rows["VILA-U 256, 1.3B, RQ-VAE tower"]["fid"] == content["ablation_1_3b"]["rqvae"]["FID"]
  assert rows["VILA-U 256, 1.3B"]["fid"] == content["ablation_1_3b"]["unified"]["FID"]
  assert paper.peers("mjhq-30k", "fid") == ["Playground v2.5", "PixArt"]
