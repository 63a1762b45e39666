"""The frame of an evaluation: killed and resumed, on one device or eight, as typed, reported."""

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

import benchmark_files
import golden_model
import PIL.Image
import pytest

import vilau_jax
from vilau_jax.cli import main as cli
from vilau_jax.evaluate import runner, summary
from vilau_jax.evaluate.store import Store
from vilau_jax.evaluate.task import Options, Request

# Dies by SIGKILL once four predictions are on disk; on one device, unlike the tests.
KILLED = """
import os, signal, sys
import jax
jax.config.update("jax_default_matmul_precision", "highest")
from vilau_jax.evaluate import runner
from vilau_jax.evaluate.task import Options
assert len(jax.devices()) == 1

def progress(done, total):
  if done >= 4:
    os.kill(os.getpid(), signal.SIGKILL)

model, data, output = sys.argv[1:4]
options = Options(batch_size=1, max_new_tokens=8)
runner.run("pope", data=data, output=output, model=model, options=options, progress=progress)
"""


@functools.cache
def place() -> pathlib.Path:
  root = pathlib.Path(tempfile.mkdtemp(prefix="vilau_runner_"))
  vilau_jax.VilaU.from_loaded(golden_model.tiny()).save(root / "model")
  benchmark_files.pope(root / "pope")
  benchmark_files.gqa(root / "gqa")
  return root


@functools.cache
def model() -> vilau_jax.VilaU:
  return vilau_jax.load(place() / "model")


def pope(output, model=None, **options):
  options = Options(**{"batch_size": 1, "max_new_tokens": 8} | options)
  return runner.run(
    "pope", data=place() / "pope", output=output, model=model or place() / "model", options=options
  )


@pytest.mark.slow
def test_kill_9_in_the_middle_changes_nothing(tmp_path):
  whole = pope(tmp_path / "whole", model())
  environment = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=os.getcwd(), XLA_FLAGS="")
  out = tmp_path / "killed"
  typed = [sys.executable, "-c", KILLED, place() / "model", place() / "pope", out]
  killed = subprocess.run(typed, env=environment, timeout=300)
  assert killed.returncode == -signal.SIGKILL
  path = out / "predictions.jsonl"
  assert len(path.read_text().splitlines()) == 4 and not (out / "scores.json").exists()
  with open(path, "a") as f:
    f.write('{"id": "adversarial/1", "ans')  # as if it had been killed while writing
  # What one device predicted and what several predict is the same, so the files are, too.
  result = pope(out)
  assert path.read_text() == (tmp_path / "whole" / "predictions.jsonl").read_text()
  same = ("metrics", "categories", "n", "missing", "data", "model", "settings")
  assert {k: result[k] for k in same} == {k: whole[k] for k in same}


def test_an_output_of_another_run_is_refused(tmp_path):
  pope(tmp_path, model())
  for options in ({"max_new_tokens": 4}, {"limit": 2}, {"protocol": "lmms"}):
    with pytest.raises(ValueError, match="holds another run"):
      pope(tmp_path, model(), **options)
  assert pope(tmp_path, model(), batch_size=2)["n"] == 6  # of no consequence
  path = tmp_path / "predictions.jsonl"
  path.write_text(path.read_text() + '{"id": "random/9", "answer": "yes"}\n')
  with pytest.raises(ValueError, match="unknown ids, the first: random/9"):
    pope(tmp_path, model())
  path.write_text(path.read_text() + '{"id": "random/1", "answer": "yes"}\n')
  with pytest.raises(ValueError, match="id random/1 appears twice"):
    pope(tmp_path, model())
  (tmp_path / "run.json").unlink()
  with pytest.raises(ValueError, match=r"but no run\.json"):
    pope(tmp_path, model())


def test_arrays_stand_beside_their_rows(tmp_path):
  import numpy as np

  store = Store(tmp_path, {"a": 1})
  requests = [Request(str(i), None) for i in range(4)]
  for half in (requests[:2], requests[2:]):
    values = np.array([[float(r.id)] for r in half])
    store.add(half, [{}, {}], {"x": values})
  again = Store(tmp_path, {"a": 1})
  order = [requests[i] for i in (3, 0, 2, 1)]
  assert [float(a["x"][0]) for a in again.arrays(order)] == [3, 0, 2, 1]


def test_a_limit_is_no_final_result(tmp_path):
  result = pope(tmp_path, model(), limit=2)
  assert result["n"] == 2
  assert "only the first 2 were asked" in runner_notes(result)


def runner_notes(result):
  from vilau_jax.evaluate import paper

  return paper.differences(result)


def test_command_line_and_report(tmp_path, capsys):
  common = [f"--model={place()}/model", "--max_new_tokens=4"]
  typed = ["evaluate", "pope", *common, f"--data={place()}/pope", f"--output={tmp_path}/pope"]
  assert cli.run(typed) == 0
  printed = capsys.readouterr().out
  assert "VILA-U 256" in printed and "83.9" in printed and "scores.json" in printed
  typed = ["evaluate", "gqa", *common, f"--data={place()}/gqa", f"--output={tmp_path}/gqa",
           "--limit=1"]  # fmt: skip
  assert cli.run(typed) == 0 and "only the first 1 were asked" in capsys.readouterr().out
  assert cli.run(["evaluate", "report", f"--output={tmp_path}"]) == 0
  text = (tmp_path / "report.md").read_text()
  assert "## Table 2: Questions about pictures" in text and "### POPE" in text
  assert "| 85.8 |" in text and "- only the first 1 were asked" in text
  for line in text.splitlines():
    if line.startswith("!["):
      with PIL.Image.open(tmp_path / line.split("(")[1][:-1]) as image:
        assert image.format == "PNG" and image.width > 300


@pytest.mark.parametrize(
  ("typed", "words"),
  [
    (["popee"], "did you mean 'pope'"),
    (["pope", "--data=x", "--output=y"], "--model=DIR is missing"),
    (["pope", "--model=x", "--output=y"], "--data=DIR is missing"),
    (["pope", "--model=x", "--data=nowhere", "--output=y"], "no data at nowhere"),
    (["report", "--output={empty}"], "no scores.json below"),
    (["mmvet", "--model=x", "--data={empty}", "--output=y", "--judge_url=x"], "must begin with"),
    (["pope", "--model=x", "--data={empty}", "--output=y", "--lpips=a"], "no use for --lpips"),
    (["pope", "--model=x", "--data={empty}", "--output=y", "--process_index=1"], "must lie below"),
  ],
)
def test_bad_input_is_explained(typed, words, tmp_path, capsys):
  assert cli.run(["evaluate", *(t.format(empty=tmp_path) for t in typed)]) == 2
  assert words in capsys.readouterr().err


def test_a_partial_result_is_marked_everywhere(tmp_path, capsys):
  benchmark_files.mmvet(tmp_path / "data")
  answers = tmp_path / "answers.json"
  answers.write_text(json.dumps({f"v1_{i}": "text" for i in range(3)}))
  typed = ["evaluate", "mmvet", f"--predictions={answers}", f"--data={tmp_path}/data",
           f"--output={tmp_path}/out/mmvet"]  # fmt: skip
  assert cli.run(typed) == 1
  assert "PARTIAL" in capsys.readouterr().out
  text = summary.write(tmp_path / "out").read_text()
  assert "### MM-Vet (PARTIAL)" in text and "- partial: no judge" in text
