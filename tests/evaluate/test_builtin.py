"""The tasks that need no download: easy-VQA's test questions and the quickstart's scenes."""

import functools
import json

import golden_model
import pytest

import vilau_jax
from vilau_jax.cli import main as cli
from vilau_jax.data import imports
from vilau_jax.data.formats import easy_vqa, emoji_import
from vilau_jax.evaluate import catalogue, runner
from vilau_jax.evaluate.benchmarks import builtin
from vilau_jax.evaluate.task import Options


@functools.cache
def model() -> vilau_jax.VilaU:
  return vilau_jax.VilaU.from_loaded(golden_model.tiny())


def test_easy_vqa_needs_no_data(tmp_path):
  options = Options(limit=4, max_new_tokens=3)
  result = runner.run("easy-vqa", data=None, output=tmp_path, model=model(), options=options)
  asked = json.loads((easy_vqa.find(None) / "test" / "questions.json").read_text())
  task = catalogue.create("easy-vqa", None, Options())
  requests = task.requests()
  assert len(requests) == len(asked) and result["n"] == 4
  assert [r.content[1] for r in requests[:50]] == [row[0] for row in asked[:50]]
  rows = {r.id: {"answer": r.truth[1].upper() + "."} for r in requests}

  class Found:
    directory = tmp_path

  Found.rows = rows
  assert task.score(requests, Found).metrics["accuracy"] == 100


def test_scenes(tmp_path):
  plans = emoji_import.plans(scenes=20, videos=4, test_scenes=4, test_videos=2)
  imports.run_parts(plans, tmp_path / "emoji")
  options = Options(limit=6, max_new_tokens=3)
  result = runner.run(
    "scenes", data=tmp_path, output=tmp_path / "o", model=model(), options=options
  )
  assert result["n"] == 6 and set(result["metrics"]) == {"accuracy"}
  again = catalogue.create("scenes", tmp_path / "emoji" / "test_scenes", Options()).requests()
  assert len(again) >= 6 and len({r.id for r in again}) == len(again)
  with pytest.raises(ValueError, match="vilau data import emoji"):
    catalogue.create("scenes", tmp_path / "o", Options()).requests()


def test_every_task_says_what_it_is(capsys):
  assert cli.run(["evaluate", "--help"]) == 0
  text = capsys.readouterr().out
  assert all(name in text for name in catalogue.TASKS)
  with pytest.raises(ValueError, match="pope needs --data=DIR"):
    catalogue.create("pope", None, Options())


def test_exact_answers():
  assert builtin.plain(" Yes. ") == "yes" and builtin.plain("a Circle") == "a circle"
