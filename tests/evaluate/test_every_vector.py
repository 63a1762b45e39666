"""Every column of tests/golden/eval (official scores on small cases) and the test that asserts it,
and the columns that no other test looks at."""

import json
import pathlib

import numpy as np
import PIL.Image
import pytest

from vilau_jax.data import media
from vilau_jax.data import sequence as sequences
from vilau_jax.data.forms import SequenceSettings
from vilau_jax.data.tokenizer import Tokenizer
from vilau_jax.evaluate import fid, judge_prompts, paper, vqascore
from vilau_jax.evaluate.benchmarks import (
  genai_bench,
  gqa,
  imagenet,
  mjhq,
  mmvet,
  pope,
  seedbench,
  vbench,
  vqa_answers,
)
from vilau_jax.evaluate.task import Options, mean
from vilau_jax.presets import PRESETS

ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = ROOT / "golden" / "eval"
WORDS = "words about the file"  # where it comes from; nothing to compute

# file -> column -> the test that asserts it. A column of records is "list.key".
COLUMNS = {
  "fid": {
    "benchmark": WORDS, "versions": WORDS, "features_formula": WORDS,
    "frechet_from_statistics": "test_every_package_gives_our_distance",
    "frechet_from_features": "test_distance_of_features",
    "kid_full_subset": "test_kernel_distance",
    "resize_to_299": "test_resizing",
    "eval_crop_400x512": "test_crops_of_the_protocols",
    "normalisation": "test_scaling_for_the_network",
  },
  "genai_bench": {
    "benchmark": WORDS, "source": WORDS, "score_rule": WORDS,
    "question_template": "test_words_of_vqascore", "answer_template": "test_words_of_vqascore",
    "clip_flant5_conversation": "test_words_of_vqascore",
    "rendered_example": "test_words_of_vqascore",
    "score_cases": "test_parts_of_vqascore",
    "skill_aggregation": "test_genai_bench_by_skill",
  },
  "gqa": {
    "benchmark": WORDS, "source": WORDS,
    "cases": "test_gqa", "aggregate": "test_gqa", "distribution_example": "test_gqa",
    "binary_open_rule": "test_gqa_scores",
  },
  "imagenet_zeroshot": {
    "benchmark": WORDS, "source": WORDS,
    "canonicalize": "test_canonical_texts_of_zero_shot", "ensemble": "test_zero_shot_ensemble",
    "lists": "test_lists_of_imagenet",
  },
  "lmms_eval_contract": {
    "source": WORDS, "doc_lookup": WORDS, "legacy_plugin_versions": WORDS, "until_injection": WORDS,
    "entry_point_group": "test_the_entry_point", "entry_point_payload": "test_the_entry_point",
    "manifest_fields": "test_the_model_is_found_by_its_entry_point",
    "instance_args": "test_answers_come_in_the_order_of_the_requests",
    "constructor_kwargs_always_passed_by_cli":
      "test_one_of_the_harness_tasks_runs_on_the_real_package",
    "generation_kwargs_examples": "test_settings_of_the_harness_tasks_are_greedy",
    "loglikelihood_contract": "test_losses_are_mean_losses_of_tokens",
    "observed_failures": WORDS,
    "vila_u_prompts": "test_prompts_are_vila_us",
    "image_generation_prompt": "test_prompts_of_drawings",
  },
  "mjhq30k": {
    "benchmark": WORDS, "clean_fid_call": WORDS, "metrics": "test_mjhq",
    "meta_data_json": "test_mjhq_layout", "expected_export_layout": "test_mjhq_layout",
    "reference_layout": "test_references_of_mjhq",
    "categories": "test_references_of_mjhq", "images_per_category": "test_references_of_mjhq",
    "paper": "test_numbers_of_the_paper_that_stand_twice",
  },
  "mme": {
    "benchmark": WORDS, "source": WORDS,
    "parse_cases": "test_mme", "items": "test_mme", "official": "test_mme", "lmms": "test_mme",
    "line_format": "test_mme_scores_and_files",
  },
  "mmvet": {
    "benchmark": WORDS, "source": WORDS,
    **dict.fromkeys(
      ("metadata", "predictions", "judge_replies", "judge_calls", "grades",
       "capability_scores_percent",
       "capability_integration_scores_percent(keys sorted, joined by _)"), "test_mmvet"),
    "prompt_facts": "test_words_to_the_judge_of_mmvet",
  },
  "paper_numbers": {
    "source": WORDS, "vision_tower": "test_the_papers_numbers",
    "ablation_1_3b": "test_numbers_of_the_paper_that_stand_twice",
    **dict.fromkeys(
      ("image_qa", "video_qa", "mjhq30k_fid", "genai_bench_basic", "genai_bench_advanced",
       "vbench_256", "ablation_contrastive_256"), "test_the_papers_numbers"),
  },
  "pope": {
    "benchmark": WORDS, "source": WORDS, "cases": "test_pope",
    "official_aggregate": "test_counts_of_pope", "lmms_aggregate": "test_counts_of_pope",
    "edge_cases": "test_counts_of_pope",
    "mean_over_three_splits_example": "test_counts_of_pope",
  },
  "seedbench": {
    "benchmark": WORDS, "source": WORDS, "edge_case": "test_seedbench_aggregate",
    "prompt": "test_seedbench", "cases": "test_first_letters_and_choices_of_seedbench",
    "aggregate": "test_seedbench_aggregate",
    "likelihood_variant": "test_first_letters_and_choices_of_seedbench",
  },
  "textvqa": {
    "benchmark": WORDS, "source": WORDS,
    "cases": "test_answers_that_are_sent_in", "aggregate_mean": "test_textvqa",
    "llava_prompt_to_question": "test_textvqa", "lmms_prompts": "test_textvqa",
  },
  "vbench": {
    "benchmark": WORDS, "source": WORDS, "total_formula": "test_vbench_totals",
    **dict.fromkeys(("weights", "normalise_min_max", "quality_dims", "semantic_dims", "cases"),
                    "test_vbench_totals"),
    "paper_table6_check": "test_numbers_of_the_paper_that_stand_twice",
    "filename_to_prompt": "test_vbench_names", "human_action_label": "test_vbench_names",
    **dict.fromkeys(
      ("frame_index_cases", "color_check", "scene_check", "spatial_check", "motion_thresholds",
       "temporal_flickering_toy", "subject_consistency_toy"), "test_how_vbench_reads_clips"),
  },
  "video_frames": {
    "source": WORDS, "note": WORDS, "half_rounding": "test_frames_of_videos",
    "cases": "test_frames_of_vilas_older_scripts",
  },
  "video_qa": {
    "benchmark": WORDS, "source": WORDS, "notes": WORDS, "judge_prompt_source": WORDS,
    "records": "test_words_to_the_judge_of_videos", "judge_replies": "test_video_qa",
    "official": "test_video_qa", "lmms_0_7_3": "test_video_qa", "parse_cases": "test_video_qa",
    "lmms_prompt": "test_video_qa",
    "judge_prompt_sha256": "test_words_to_the_judge_of_videos",
  },
  "vqav2": {
    "benchmark": WORDS, "source": WORDS,
    "normalize_cases": "test_answers_that_are_sent_in",
    "score_cases": "test_scores_of_an_older_lmms_eval",
    "aggregate_over_score_cases": "test_vqav2_scores_and_aggregate",
  },
}  # fmt: skip


def golden(name):
  return json.loads((GOLDEN / f"{name}.json").read_text())


def test_every_column_has_a_test():
  assert set(COLUMNS) == {path.stem for path in GOLDEN.glob("*.json")}
  tests = "".join(path.read_text() for path in pathlib.Path(__file__).parent.glob("test_*.py"))
  for name, columns in COLUMNS.items():
    assert set(columns) == set(golden(name)), name
    for test in columns.values():
      assert test == WORDS or f"def {test}(" in tests, test


def test_every_package_gives_our_distance():
  for case in golden("fid")["frechet_from_statistics"]:
    got = fid.frechet_distance(*(np.array(case[k]) for k in ("mu1", "sigma1", "mu2", "sigma2")))
    analytic = float(case["analytic"].split("=")[-1])
    assert got == pytest.approx(analytic, abs=5e-7), case["name"]
    for package in ("clean_fid", "pytorch_fid", "torch_fidelity"):
      if isinstance(case[package], str):  # two of them refuse one dimension
        assert "ValueError" in case[package] and np.size(case["mu1"]) == 1
      else:
        assert got == pytest.approx(case[package], abs=1e-8)
  for case in golden("fid")["frechet_from_features"]:  # one test looks at pytorch_fid's
    assert case["clean_fid"] == case["pytorch_fid"] == case["torch_fidelity"]
  y, x, c = np.mgrid[:400, :512, :3]
  image = PIL.Image.fromarray(((17 * y + 31 * x + 97 * c) % 256).astype(np.uint8))
  assert golden("fid")["eval_crop_400x512"]["pil_default_equals_bicubic"] is True
  assert image.resize((256, 256)) == image.resize((256, 256), PIL.Image.Resampling.BICUBIC)


def test_words_of_vqascore():
  content = golden("genai_bench")
  assert vqascore.QUESTION == content["question_template"]
  assert vqascore.ANSWER == content["answer_template"]
  example = content["rendered_example"]
  assert vqascore.QUESTION.format(example["text"]) == example["question"]
  # The package puts these words around the question; the same system prompt as VILA-U's.
  system = SequenceSettings().system_prompt.strip()
  assert content["clip_flant5_conversation"] == (
    f"{system} USER: <image>\n{{question}} ASSISTANT: "
  )


def test_parts_of_vqascore():
  for case in golden("genai_bench")["score_cases"]:
    first, second = (np.array([case[f"logits_step{i}"]]) for i in (0, 1))
    yes, end, no = (case["token_ids"][k] for k in ("Yes", "</s>", "No"))
    assert case["labels"] == [yes, end]
    p_yes, p_no = (genai_bench.geometric_mean(first, [token]) for token in (yes, no))
    p_end = genai_bench.geometric_mean(second, [end])
    assert p_yes == pytest.approx(case["p_yes"], abs=5e-7)
    assert p_end == pytest.approx(case["p_eos_given_yes"], abs=5e-7)
    assert p_yes / (p_yes + p_no) == pytest.approx(case["yes_no_normalised"], abs=5e-7)
    whole = genai_bench.geometric_mean(np.concatenate([first, second]), case["labels"])
    assert whole == pytest.approx(np.sqrt(p_yes * p_end), rel=1e-12)
    assert whole == pytest.approx(case["geometric_mean"], abs=5e-7)
    assert whole == pytest.approx(case["vqascore_official"], abs=5e-7)


def test_lists_of_imagenet():
  pytest.importorskip("clip_benchmark")
  facts = golden("imagenet_zeroshot")["lists"]
  siglip = imagenet.Imagenet(pathlib.Path("nowhere"), Options())
  clip = imagenet.Imagenet(pathlib.Path("nowhere"), Options(protocol="open_clip"))
  assert len(clip.templates) == facts["n_open_clip_templates"]
  assert len(siglip.templates) == facts["n_big_vision_clip_paper"]
  hashes = [imagenet.list_hash(task.templates) for task in (clip, siglip)]
  assert hashes == [facts["clip_80_templates_sha256_open_clip_order"],
                    facts["big_vision_clip_paper_sha256"]]  # fmt: skip
  names = siglip.classes
  assert imagenet.list_hash(names) == facts["big_vision_classnames_sha256"]
  assert imagenet.list_hash(names) == facts["open_clip_classnames_sha256"]
  assert sorted({n for n in names if names.count(n) > 1}) == facts["duplicate_class_names"]
  assert names[:10] == facts["first10"] and names[-3:] == facts["last3"]
  best = imagenet.Imagenet(pathlib.Path("nowhere"), Options(protocol="clip_best"))
  assert imagenet.list_hash(best.templates) == imagenet.TEMPLATES_SHA256["clip_best"]
  assert best.templates == facts["clip_best_templates"]


def test_ensembles_follow_their_labels():
  case = golden("imagenet_zeroshot")["ensemble"]
  embeddings, labels = np.array(case["template_embeddings"]), np.array(case["labels"])
  for label, want in enumerate(case["class_embeddings"]):
    found = imagenet.ensemble(embeddings[None, labels == label])
    np.testing.assert_allclose(found[0], want, atol=5e-7)


def test_the_entry_point():
  content = golden("lmms_eval_contract")
  setup = (ROOT.parent / "setup.py").read_text()
  line = f'"{content["entry_point_group"]}": ["vilau_jax = vilau_jax.evaluate.lmms_eval:manifests"]'
  assert line in setup and content["entry_point_payload"].endswith("callable returning either")


def test_prompts_of_drawings():
  content = golden("lmms_eval_contract")["image_generation_prompt"]
  tokenizer = Tokenizer(ROOT / "golden" / "a" / "checkpoint" / "llm" / "tokenizer.model")
  settings = SequenceSettings()
  asked = sequences.drawing_prompt("A snowy mountain.", tokenizer, settings, "image").tokens
  null = sequences.unconditional_prompt(tokenizer, settings, "image").tokens
  for tokens, text in ((asked, content["conditional"]), (null, content["unconditional"])):
    words = text.removesuffix("<im_start>")
    assert list(tokens) == [tokenizer.bos, *tokenizer.encode(words), tokenizer.im_start]
  film = sequences.drawing_prompt("A snowy mountain.", tokenizer, settings, "video").tokens
  assert content["video"] == "same with <vi_start>"
  assert list(film) == [*asked[:-1], tokenizer.vi_start]


def test_references_of_mjhq(tmp_path):
  case = golden("mjhq30k")
  (tmp_path / "meta_data.json").write_text(json.dumps(case["meta_data_json"]))
  task = mjhq.Mjhq(tmp_path, Options())
  requests, found = task.requests(), []
  for request in requests:
    category, name = request.truth
    (tmp_path / category).mkdir()
    PIL.Image.new("RGB", (2, 2)).save(tmp_path / category / f"{name}.jpg")
    found.append(str(task._reference(request).relative_to(tmp_path)))
  assert found == [name.replace("<ref>/", "") for name in case["reference_layout"]]
  assert {r.truth[0] for r in requests} <= set(case["categories"])
  assert len(case["categories"]) * case["images_per_category"] == 30000


def test_numbers_of_the_paper_that_stand_twice():
  rows = paper.tables()["mjhq-30k"]["rows"]
  content = golden("mjhq30k")["paper"]
  for side in ("256", "384"):
    assert rows[f"VILA-U {side}"]["fid"] == content[f"VILA-U-{side} (cfg 3)"]
  rows = paper.tables()["vbench"]["rows"]
  for row in golden("vbench")["paper_table6_check"]:
    for name in ("quality", "semantic"):
      assert rows[row["name"]][name] == row[name]
    assert vbench.total(row["quality"], row["semantic"]) == pytest.approx(
      row["recomputed"], abs=5e-4
    )
  towers = paper.tables()["reconstruction"]["rows"]  # of table 8's two towers
  content = golden("paper_numbers")["ablation_1_3b"]
  assert towers["RQ-VAE 16x16x4"]["fid"] == content["rqvae"]["rFID"]
  assert towers["VILA-U 256"]["fid"] == content["unified"]["rFID"]
  for side, want in golden("paper_numbers")["vision_tower"].items():
    grid, _, depth = want["code"].split("x")
    preset = PRESETS[f"vilau_7b_{side}"].tower
    assert (preset.grid, preset.quantizer.depth) == (int(grid), int(depth))


def test_words_to_the_judge_of_mmvet():
  facts = golden("mmvet")["prompt_facts"]
  assert judge_prompts.MMVET_SHA256 == facts["official_prompt_sha256"]
  assert mmvet.AGAIN == facts["retry_suffix"].replace("\\n", "\n")
  truth = {"question": "<question>", "answer": "a<AND>b<OR>c"}
  row = mmvet.row_prompt("<official prompt>", truth, "<prediction>")
  shown = facts["row_template"].replace("\\n", "\n")
  wanted = "<answer with ' <AND> ' and ' <OR> ' spaced>"
  assert row == shown.replace(wanted, "a <AND> b <OR> c")
  pytest.importorskip("lmms_eval")
  assert len(judge_prompts.mmvet(None)[0]) == facts["official_prompt_chars"]


def test_words_to_the_judge_of_videos():
  content = golden("video_qa")
  assert judge_prompts.VIDEO_SYSTEM_SHA256 == content["judge_prompt_sha256"]["system"]
  wanted = content["judge_prompt_sha256"]["user_for_record_0"]
  assert judge_prompts.VIDEO_USER_SHA256 == wanted
  pytest.importorskip("lmms_eval")
  texts, _ = judge_prompts.video_qa(None)
  row = content["records"][0]
  user = judge_prompts.render(texts["user"], row["Q"], row["A"], row["pred"])
  assert judge_prompts._sha(user) == wanted


def test_counts_of_pope():
  content = golden("pope")
  pairs = [(pope.parse(c["answer"], "official"), c["label"]) for c in content["cases"]]
  sides = {("yes", "yes"): "TP", ("yes", "no"): "FP", ("no", "no"): "TN", ("no", "yes"): "FN"}
  for pair, name in sides.items():
    assert pairs.count(pair) == content["official_aggregate"][name]
  labels = [c["label"] for c in content["cases"]]  # lmms-eval calls this the ratio of answers
  share = content["lmms_aggregate"]["yes_ratio_of_the_LABELS"]
  assert labels.count("yes") / len(labels) == pytest.approx(share)
  # Without a single yes the official script divides by zero; here, as in lmms-eval, it is zero.
  assert "ZeroDivisionError" in content["edge_cases"]["official_all_no_predictions"]
  rates = pope.rates([("no", "yes"), ("no", "no")])
  for name, value in content["edge_cases"]["lmms_all_no_predictions"].items():
    assert rates[name] == value
  example = content["mean_over_three_splits_example"]
  assert mean(example["f1"].values()) == pytest.approx(example["reported"], abs=5e-7)


def test_first_letters_and_choices_of_seedbench():
  content = golden("seedbench")
  for case in content["cases"]:
    first = case["lmms_first_char"]
    assert seedbench.correct(first, case["answer"], "lmms") == case["lmms_correct"]
    assert case["output"].strip().startswith(first)
  variant = content["likelihood_variant"]
  row = {f"choice_{k}": text for k, text in zip("abcd", variant["choices"])}
  row["question"] = content["prompt"].splitlines()[0]
  assert seedbench.likelihood_prompt(row) == variant["prompt_lmms_seedbench_ppl"]
  assert variant["target"] == row["choice_a"]
  # A choice is scored as " One</s>" behind "ASSISTANT:"; see Seedbench.predict.
  assert variant["continuation_prefix"] == " "


def test_answers_that_are_sent_in():
  for case in golden("textvqa")["cases"]:
    assert vqa_answers.evalai(case["prediction"]) == case["lmms_submission_answer"]
  for case in golden("vqav2")["normalize_cases"]:
    assert case["lmms_same_as_m4c"] is True  # so that one function serves both


def test_scores_of_an_older_lmms_eval():
  for case in golden("vqav2")["score_cases"]:  # 0.2.4 normalised as LLaVA does
    got = vqa_answers.vqa_accuracy(case["prediction"], case["answers"], "llava")
    assert got == pytest.approx(case["lmms_eval_0_2_4"]), case


def test_gqas_distribution_before_it_is_printed():
  example = golden("gqa")["distribution_example"]
  found = gqa.distribution(example["gold"], example["predicted"])
  assert 100 * found == pytest.approx(example["weighted_chi2"], rel=1e-12)


def test_frames_of_vilas_older_scripts():
  for case in golden("video_frames")["cases"]:
    want = case["llava_vila_opencv_8(linspace(0,n-2,int))"]
    got = media.frame_indices_opencv(case["frame_count"], 8)
    assert got == (case["vila_u_8"] if want is None else want)


def test_videos_are_read_as_the_protocol_says(tmp_path):
  frames = [PIL.Image.new("RGB", (4, 4), (10 * i, 0, 0)) for i in range(10)]
  red = lambda **how: [f.getpixel((0, 0))[0] // 10 for f in media.read_video(frames, 4, **how)]  # noqa: E731
  assert red() == [0, 3, 6, 9]
  assert red(choose=media.frame_indices_opencv) == [0, 2, 5, 8]
