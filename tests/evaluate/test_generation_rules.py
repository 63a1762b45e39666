"""Official scores of the tower's and the drawing benchmarks (tests/golden/eval), reproduced."""

import json
import pathlib

import numpy as np
import pytest

from vilau_jax.evaluate import paper
from vilau_jax.evaluate.benchmarks import genai_bench, imagenet, mjhq, vbench, vbench_rules
from vilau_jax.evaluate.benchmarks.reconstruction import usage
from vilau_jax.evaluate.task import Options

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "eval"


def golden(name):
  return json.loads((GOLDEN / f"{name}.json").read_text())


def test_canonical_texts_of_zero_shot():
  keys = {"templates_mode(keep '{}')": "{}", "classname_mode(keep ',')": ",", "plain": ""}
  for case in golden("imagenet_zeroshot")["canonicalize"]:
    for key, keep in keys.items():
      assert imagenet.canonical(case["raw"], keep) == case[key], (case, keep)
  assert imagenet.prompt("A bad photo of a {}.", "tench, Tinca tinca") == "a bad photo of a tench"


def test_zero_shot_ensemble():
  case = golden("imagenet_zeroshot")["ensemble"]
  classes = imagenet.ensemble(np.array(case["template_embeddings"]).reshape(3, 2, 3))
  np.testing.assert_allclose(classes, case["class_embeddings"], atol=5e-7)
  best = imagenet.ranked(np.array(case["images"]), classes)
  assert [row[0] for row in best] == case["pred"]
  assert np.mean(np.array(case["pred"]) == case["gold"]) == case["top1"]


def test_zero_shot_lists_of_clip_benchmark():
  pytest.importorskip("clip_benchmark")
  facts = golden("imagenet_zeroshot")["lists"]
  task = imagenet.Imagenet(pathlib.Path("nowhere"), Options())
  assert task.settings == {
    "classnames_sha256": facts["big_vision_classnames_sha256"],
    "templates_sha256": facts["big_vision_clip_paper_sha256"],
  }
  assert len(task.templates) == facts["n_big_vision_clip_paper"]
  assert task.classes[:10] == facts["first10"] and task.classes[-3:] == facts["last3"]
  task = imagenet.Imagenet(pathlib.Path("nowhere"), Options(protocol="open_clip"))
  wanted = facts["clip_80_templates_sha256_open_clip_order"]
  assert task.settings["templates_sha256"] == wanted
  assert len(task.templates) == facts["n_open_clip_templates"]


def test_mjhq_layout(tmp_path):
  case = golden("mjhq30k")
  (tmp_path / "meta_data.json").write_text(json.dumps(case["meta_data_json"]))
  requests = mjhq.Mjhq(tmp_path, Options()).requests()
  files = [r.content.file for r in requests]
  assert files == [name.replace("<out>", "images") for name in case["expected_export_layout"]]
  prompts = [row["prompt"] for row in case["meta_data_json"].values()]
  assert [r.content.prompt for r in requests] == prompts


def test_vqascore():
  for case in golden("genai_bench")["score_cases"]:
    logits = np.array([case["logits_step0"], case["logits_step1"]])
    got = genai_bench.geometric_mean(logits, case["labels"])
    assert got == pytest.approx(case["vqascore_official"], abs=5e-7), case["name"]


def test_genai_bench_by_skill():
  case = golden("genai_bench")["skill_aggregation"]
  scores = dict(enumerate(case["scores_by_prompt_index"]))
  lines = case["official_stdout"]
  for row, tags in ((2, genai_bench.BASIC), (5, genai_bench.ADVANCED)):
    found = [f"{genai_bench.by_skill(scores, case['skills'][tag]):.2f}" for tag in tags]
    assert lines[row - 1].split(maxsplit=1)[1].split() == " ".join(tags).split()
    assert lines[row].split()[1:] == found
  overall = [case["skills"]["basic"], case["skills"]["advanced"], range(6)]
  found = [f"{genai_bench.by_skill(scores, prompts):.2f}" for prompts in overall]
  assert lines[8].split()[1:] == found


def test_vbench_totals():
  content = golden("vbench")
  assert content["weights"] == vbench.WEIGHTS
  for name, limits in content["normalise_min_max"].items():
    assert (vbench.QUALITY | vbench.SEMANTIC)[name] == (limits["Min"], limits["Max"])
  assert list(vbench.QUALITY) == content["quality_dims"]
  assert list(vbench.SEMANTIC) == content["semantic_dims"]
  for case in content["cases"]:
    for name, want in case["normalised_times_weight"].items():
      got = vbench.normalised(name, case["raw"][name]) * vbench.WEIGHTS[name]
      assert got == pytest.approx(want, abs=5e-7)
    got = vbench.totals(case["raw"])
    for name in ("quality", "semantic", "total"):
      assert got[name] == pytest.approx(case[name], abs=5e-7), case["name"]
  for row in content["paper_table6_check"]:
    got = vbench.total(row["quality"], row["semantic"])
    assert got == pytest.approx(row["recomputed"], abs=5e-4)
    assert paper.tables()["vbench"]["rows"][row["name"]]["total"] == row["reported_total"]
  with pytest.raises(ValueError, match="missing: scene"):
    vbench.totals({k: v for k, v in content["cases"][0]["raw"].items() if k != "scene"})


def test_vbench_names():
  content = golden("vbench")
  for case in content["filename_to_prompt"]:
    assert vbench.prompt_of(case["file"]) == case["prompt"]
  for case in content["human_action_label"]:
    assert vbench.action_of(case["file"]) == case["label"]


def test_how_vbench_reads_clips():
  content = golden("vbench")
  for case in content["frame_index_cases"]:
    found = vbench_rules.frame_indices(case["num_frames"], case["video_len"])
    assert found == case["middle"], case
  for case in content["motion_thresholds"]:
    found = vbench_rules.motion_thresholds(*case["frame_wh"], case["num_frames"])
    assert found == {k: case[k] for k in ("dynamic_degree", "static_filter")}
  for case in content["color_check"]:
    counts = vbench_rules.color_frames(case["frames"], case["object"], case["color"])
    assert list(counts) == case["object_frames,color_frames"]
    assert counts[1] / counts[0] == case["video_score"]
  for case in content["scene_check"]:
    assert vbench_rules.scene_matches(case["scene"], case["captions"]) == case["matches"]
  for case in content["spatial_check"]:
    got = vbench_rules.spatial_score(case["relation"], case["box_a"], case["box_b"])
    assert got == pytest.approx(case["score"], rel=1e-12)
  toy = content["temporal_flickering_toy"]
  frames = np.ones((3, 4, 4, 3)) * np.array(toy["frames_all_constant"])[:, None, None, None]
  assert vbench_rules.flickering(frames) == pytest.approx(toy["score"], rel=1e-12)
  toy = content["subject_consistency_toy"]
  got = vbench_rules.subject_consistency(toy["cosine_prev"], toy["cosine_first"])
  assert got == pytest.approx(toy["video_score"], rel=1e-12)


def test_codebook_usage():
  counts = np.array([[2, 2, 0, 0], [4, 0, 0, 0]])
  assert usage(counts) == {"used": {"depth 1": 0.5, "depth 2": 0.25},
                           "perplexity": {"depth 1": pytest.approx(2), "depth 2": 1}}  # fmt: skip
