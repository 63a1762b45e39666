"""Kills every stage of the smoke quickstart with SIGKILL and compares the figures.

  python tests/interrupted_quickstart.py [--seed=0] [--output=runs/interrupted]

Runs `launch/quickstart.sh --smoke` twice undisturbed (the same seed must give the same figures) and
once with a kill at a random moment of every stage, each followed by the same command again. Exit
code 1 if any figure differs, timings apart. About a quarter of an hour on two cores; not part of
the default tests.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]


def start(output: pathlib.Path, log) -> subprocess.Popen:
  """The smoke quickstart in a process group of its own."""
  command = ["bash", "launch/quickstart.sh", "--smoke", f"--output={output}"]
  return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)


def complete(output: pathlib.Path) -> None:
  """Runs to the end; raises CalledProcessError otherwise."""
  with open(f"{output}.log", "a") as log:
    process = start(output, log)
    if process.wait():
      raise subprocess.CalledProcessError(process.returncode, process.args)


def kill_in(output: pathlib.Path, number: int, delay: float) -> bool:
  """Starts the run and kills it `delay` seconds into its stage `number`; False if it got by."""
  path = pathlib.Path(f"{output}.log")
  before = path.read_text().count("\n== ") if path.exists() else 0
  with open(path, "a") as log:
    process = start(output, log)
    while path.read_text().count("\n== ") - before <= number:
      if process.poll() is not None:
        return False
      time.sleep(0.05)
    time.sleep(delay)
    alive = process.poll() is None
    if alive:
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()
  return alive


def figures(output: pathlib.Path) -> dict:
  """report.json without what measures time or names the directory."""
  report = json.loads((output / "report.json").read_text())
  del report["model"]
  timings = ("minutes", "seconds", "when", "date")
  return {k: v for k, v in report.items() if not any(word in k for word in timings)}


def differences(got: dict, want: dict) -> list[str]:
  keys = sorted(got.keys() | want.keys())
  return [f"{k}: {got.get(k)!r} != {want.get(k)!r}" for k in keys if got.get(k) != want.get(k)]


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
  parser.add_argument("--output", type=pathlib.Path, default=ROOT / "runs" / "interrupted")
  options = parser.parse_args()
  shutil.rmtree(options.output, ignore_errors=True)
  options.output.mkdir(parents=True)
  runs = {name: (options.output / name).absolute() for name in ("first", "second", "killed")}
  for name in ("first", "second"):
    began = time.time()
    complete(runs[name])
    print(f"{name} undisturbed run: {time.time() - began:.0f} s", flush=True)
  wrong = differences(figures(runs["second"]), figures(runs["first"]))
  print(f"same seed twice: {len(wrong)} figures differ", *wrong, sep="\n  ", flush=True)

  times = [json.loads(line) for line in (runs["first"] / "times.jsonl").read_text().splitlines()]
  rng = random.Random(options.seed)
  for number, stage in enumerate(times):
    delay = stage["seconds"] * rng.uniform(0.1, 0.95)
    hit = kill_in(runs["killed"], number, delay)
    outcome = f"killed after {delay:.1f} of {stage['seconds']:.1f} s" if hit else "was faster"
    print(f"stage {number} {stage['stage']}: {outcome}", flush=True)
  complete(runs["killed"])
  lost = differences(figures(runs["killed"]), figures(runs["first"]))
  print(f"after {len(times)} kills: {len(lost)} figures differ", *lost, sep="\n  ", flush=True)
  return 1 if wrong or lost else 0


if __name__ == "__main__":
  sys.exit(main())
