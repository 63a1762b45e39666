"""A slice of the fuzzing, the same inputs every time; the command does the rest."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def test_a_slice_of_every_target_finds_nothing():
  command = [sys.executable, "-m", "tests.fuzz", "--inputs=40"]
  run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert run.returncode == 0, run.stdout + run.stderr
  said = json.loads(run.stdout.splitlines()[-1])
  assert said["inputs"] >= 40 * 41 and said["findings"] == 0
