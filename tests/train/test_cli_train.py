"""The command line of training: typos, profiles, and a run that is killed."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import experiments
import jax
import numpy as np
import pytest

from vilau_jax import checkpoint
from vilau_jax.cli import main

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = """
import experiments, pathlib
def get_config(arg=""):
  c = experiments.tower_run(pathlib.Path(arg))
  c.mesh.data, c.steps, c.ckpt.every = 1, 40, 8
  return c
"""


def command(config, workdir, *more):
  return ["train", f"--config={config}", f"--workdir={workdir}", "--compile_cache=", *more]


@pytest.mark.parametrize(
  "arguments, message",
  [
    ([], "give --config=FILE.py and --workdir=DIR"),
    (["--config={q}", "--workdir={w}", "--config.optim.peak_lrr=1"], 'Did you mean "peak_lr"'),
    (["--config={q}", "--workdir={w}", "--config.steps=many"], "--config.steps=many"),
    (["--config={q}:smok", "--workdir={w}"], "unknown config argument 'smok'"),
    (["--config={q}x", "--workdir={w}"], "No such file"),
    (["--config={q}x", "--workdir={w}", "--config.steps=3"], "No such file"),
    (["--config={q}", "--workdir={w}", "--config.nosuch=3"], "no field 'nosuch'"),
    (["--config={q}", "--workdir={w}", "--profile=3"], "START:STOP"),
    (["--config={q}", "--workdir={w}", "--distributed=here"], "HOST:PORT,INDEX,COUNT"),
    (["--config={q}", "--workdir={w}", "--config.data.root=/nowhere"], "no records at /nowhere"),
    (["--config={q}", "--workdir={w}", "--config.model.preset=quikstart"], "did you mean 'quickst"),
    (["--config={q}", "--workdir={w}", "--config.data.mixture=('a','b')"], "lacks path, weight"),
    (["again", "--config={q}", "--workdir={w}"], "unexpected"),
    (["--config={q}", "--workdir={w}", "--config.guard.hang_aftr=1"], 'Did you mean "hang_after"'),
  ],
)
def test_bad_input_is_explained_without_a_traceback(arguments, message, tmp_path):
  places = dict(q=ROOT / "configs/quickstart_tower.py", w=tmp_path / "run")
  arguments = [a.format(**places) for a in arguments]
  run = subprocess.run(
    [sys.executable, "-m", "vilau_jax.cli.main", "train", *arguments],
    capture_output=True, text=True, cwd=ROOT, check=False,
  )  # fmt: skip
  assert run.returncode == 2, run.stderr
  assert message in run.stderr and "Traceback" not in run.stderr
  assert run.stderr.startswith("vilau: error: ")


@pytest.fixture
def experiment(tmp_path):
  """A config file for a tiny tower run, and the environment of its processes."""
  config = tmp_path / "tiny.py"
  config.write_text(CONFIG)
  experiments.tower_run(tmp_path)
  paths = [str(ROOT), str(ROOT / "tests/train"), os.environ.get("PYTHONPATH", "")]
  return f"{config}:{tmp_path}", os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def start(config, workdir, environment, *more):
  return subprocess.Popen(
    [sys.executable, "-m", "vilau_jax.cli.main", *command(config, workdir, *more)],
    env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
  )  # fmt: skip


def wait_for(path, text, process):
  while process.poll() is None and not (path.exists() and text in path.read_text()):
    time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_run_goes_on_exactly(experiment, tmp_path):
  config, environment = experiment
  whole = start(config, tmp_path / "whole", environment, "--profile=2:3")
  assert whole.wait() == 0, whole.stdout.read()
  assert "finished at step 40" in whole.stdout.read()
  assert list((tmp_path / "whole" / "profile").rglob("*.xplane.pb"))
  for number, log in ((signal.SIGKILL, '"step": 10,'), (signal.SIGTERM, '"step": 12,')):
    process = start(config, tmp_path / "cut", environment)
    wait_for(tmp_path / "cut" / "metrics.jsonl", log, process)
    process.send_signal(number)
    code, said = process.wait(), process.stdout.read()
    assert code == (0 if number == signal.SIGTERM else -signal.SIGKILL), said
    assert ("preempted (SIGTERM), stopped and saved" in said) == (number == signal.SIGTERM)
  last = start(config, tmp_path / "cut", environment)
  assert last.wait() == 0, last.stdout.read()
  runs = [tmp_path / "whole", tmp_path / "cut"]
  logs = [[json.loads(x) for x in (r / "metrics.jsonl").read_text().splitlines()] for r in runs]
  assert [x["loss"] for x in logs[0]] == [x["loss"] for x in logs[1]]
  one, other = (checkpoint.load_model(r).variables for r in runs)
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_help_teaches(capsys):
  assert main.run(["train", "--help"]) == 0
  said = capsys.readouterr().out
  assert "vilau train --config=configs/quickstart_tower.py" in said and "--profile" in said
