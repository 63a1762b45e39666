"""The whole evaluation on a tiny model with random weights: figures, report, resuming, errors."""

import functools
import json
import pathlib
import re
import tempfile

import numpy as np
import pytest
import quickstart_model

from vilau_jax.cli import main as cli
from vilau_jax.data.formats.emoji import Question
from vilau_jax.evaluate import figures, quickstart, reading, runs, seeing

# The names that are promised, whatever else report.json holds.
PROMISED = """psnr_scenes psnr_easy_vqa psnr_video retrieval_at_1 easy_vqa_accuracy easy_vqa_wh
  easy_vqa_yes_no easy_vqa_text_only qa_accuracy qa_count caption_exact caption_exact_count
  caption_exact_pair video_to_text_direction video_to_text_object t2i_background t2i_object
  t2i_count t2i_all_count_scenes t2i_pairs t2v_object t2v_direction scorer_ceiling_all
  scorer_ground_truth_all codes_used_1 perplexity_1 minutes_total""".split()

pytestmark = pytest.mark.slow  # they share one evaluation of a model


@functools.cache
def place() -> pathlib.Path:
  root = pathlib.Path(tempfile.mkdtemp(prefix="vilau_quickstart_"))
  quickstart_model.write_data(root / "data")
  quickstart_model.write_model(root / "model", root / "data")
  return root


def evaluate(output, **options):
  say = options.pop("say", lambda line: None)
  return quickstart.run(place() / "model", place() / "data", output, smoke=True, say=say, **options)


@functools.cache
def evaluated() -> quickstart.Result:
  return evaluate(place() / "out")


def timeless(path):
  return {k: v for k, v in json.loads(path.read_text()).items()
          if k not in ("minutes_total", "stage_seconds")}  # fmt: skip


def test_report_json_holds_every_promised_figure():
  report = json.loads(evaluated().figures.read_text())
  for name in PROMISED:
    assert isinstance(report[name], int | float) and np.isfinite(report[name]), name
    assert report["n"][name] > 0, name
  assert report["scorer_ground_truth_all"] == 1.0
  assert report["without"]["video_to_text_direction"] == {"value": 0.25, "is": "chance"}
  assert 0 < report["without"]["easy_vqa_accuracy"]["value"] < 1
  listed = {figure.name for group in figures.GROUPS.values() for figure in group}
  assert listed <= set(report)


def test_report_html_stands_alone():
  html = evaluated().page.read_text()
  assert not re.search(r'(src|href)="(?!data:|#)', html)
  assert "http:" not in html and "https:" not in html and "@import" not in html
  assert html.count("<svg") >= 7 and html.count("data:image/webp") >= 8
  ids = re.findall(r' id="(\w+)"', html)
  assert len(ids) == len(set(ids)) and set(re.findall(r'href="#(\w+)"', html)) <= set(ids)
  for figure in (f for group in figures.GROUPS.values() for f in group):
    assert figure.name.replace("_", "_<wbr>") in html
  assert "Smoke run" in html and "vilau generate image --model=" in html


def test_an_interrupted_evaluation_goes_on(tmp_path, monkeypatch):
  def stop(*args, **kwargs):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(quickstart.drawing, "sheet", stop)
    evaluate(tmp_path)
  assert not (tmp_path / "report.json").exists()
  said = []
  result = evaluate(tmp_path, say=said.append)
  assert [line.split(":")[0].strip() for line in said if "kept from before" in line] == [
    "pictures", "retrieval", "easy_vqa", "questions", "videos_read", "settings", "drawings",
  ]  # fmt: skip
  assert timeless(result.figures) == timeless(evaluated().figures)


def test_another_seed_draws_other_pictures(tmp_path):
  other = evaluate(tmp_path, seed=1)
  a, b = (np.load(r.page.parent / "parts" / "drawings.npz") for r in (other, evaluated()))
  assert (a["pictures"] != b["pictures"]).any()


def test_command_line(capsys):
  common = [f"--model={place()}/model", f"--data={place()}/data", f"--output={place()}/out"]
  assert cli.run(["evaluate", "quickstart", *common, "--smoke", "--seed=0"]) == 0
  out = capsys.readouterr().out
  assert "kept from before" in out and "t2i_background" in out and "report.html" in out
  assert cli.run(["evaluate", "quikstart", *common]) == 2
  assert "did you mean 'quickstart'" in capsys.readouterr().err
  assert cli.run(["evaluate", "quickstart", *common, "--limit=3"]) == 2
  assert "--limit would have no effect here" in capsys.readouterr().err
  assert cli.run(["evaluate", "pope", *common, "--smoke"]) == 2
  assert "they are for quickstart" in capsys.readouterr().err
  assert cli.run(["evaluate", "quickstart", *common, "--data="]) == 2
  assert "--data=DIR is missing" in capsys.readouterr().err
  assert cli.run(["evaluate", "quickstart", *common, f"--data={place()}/model"]) == 2
  assert "vilau data import emoji" in capsys.readouterr().err
  assert cli.run(["evaluate", "quickstart", *common, f"--model={place()}/data"]) == 2


def test_text_only_floor_is_the_best_answer_to_each_question():
  asked = [("a?", "yes"), ("a?", "yes"), ("a?", "no"), ("b?", "red"), ("b?", "blue")]
  right = reading.text_only([(0, Question("k", q, a)) for q, a in asked])
  assert right.tolist() == [True, True, False, True, False]


def test_psnr_usage_and_words():
  a = np.zeros((2, 4, 4, 3), np.uint8)
  b = np.stack([a[0], a[0] + 16])
  np.testing.assert_allclose(seeing.psnr(a, b), [60, 10 * np.log10(255**2 / 256)])
  usage = seeing.usage(np.array([[0, 1], [0, 2], [0, 3], [0, 1]]), 8)
  assert usage["used"] == [1, 3] and usage["positions"] == 4
  np.testing.assert_allclose(usage["perplexity"], [1, np.exp(1.5 * np.log(2))], rtol=1e-4)
  assert "left" in reading.words("a fox moving to the Left.") and "up" not in reading.words("a cup")


def test_what_the_stages_left_behind(tmp_path):
  (tmp_path / "lm" / "samples").mkdir(parents=True)
  lines = [{"step": s, "loss": 1.0, "loss_text": 2 / s, "loss_code/1": 1 / s} for s in (10, 20, 30)]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (tmp_path / "lm" / "metrics.jsonl").write_text(text + '{"step": 40, "lo')
  curves = runs.curves(tmp_path)
  assert list(curves) == ["language model"]
  assert curves["language model"]["text"] == ([10.0, 20.0, 30.0], [0.2, 0.1, 2 / 30])
  assert runs.samples(tmp_path) == {} and runs.seconds(tmp_path) == {}
  times = [("tower", 60), ("lm", 30), ("evaluate", 99), ("lm", 12.5)]
  (tmp_path / "times.jsonl").write_text(
    "".join(json.dumps({"stage": name, "seconds": s}) + "\n" for name, s in times)
  )
  assert runs.seconds(tmp_path) == {"tower": 60, "lm": 42.5}
