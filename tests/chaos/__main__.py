"""Disturbs every stage at random moments and compares what is left with an undisturbed run.

  python -m tests.chaos --kills=200 [--stages=import,tower,..] [--seed=0] [--root=DIR]

A small project runs through once undisturbed: import, tower, tokenize, lm (in one process), lm2 (in
two), evaluate, batch (of drawings). Then every stage runs again and is disturbed
(tests/chaos/faults.py): killed, told to stop, out of memory or disk, its clock wrong, its
checkpoints gone or damaged, its data bad, one of its processes killed. After each blow the same
command is started again. When a stage has had its share of blows it runs to its end, and its
records, losses, parameters, data position, predictions or pictures must equal the undisturbed ones
bit for bit, or the exit code is 1. No blow may cost a checkpoint, a finished answer or a finished
drawing, and no attempt may take more than --patience seconds.
"""

import argparse
import collections
import json
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from tests.chaos import faults
from tests.chaos.stages import ROOT, STAGES, Stage, environment

Blow = collections.namedtuple("Blow", "stage fault after ended")


class Wrong(Exception):
  """The run is not what it must be."""


class Chaos:
  def __init__(self, root: pathlib.Path, seed: int, patience: float):
    self.root, self.rng, self.patience = root, random.Random(seed), patience
    self.seconds: dict[str, float] = {}
    self.want: dict[str, dict[str, str]] = {}
    self.blows: list[Blow] = []
    self.hung = 0

  def undisturbed(self, stage: Stage) -> None:
    """Runs a stage twice: it compiles the first time, and both must be equal."""
    for attempt in range(2):
      self._wipe(stage)
      began = time.monotonic()
      self._finish(stage)
      self.seconds[stage.name] = time.monotonic() - began
      found = stage.digest(self.root)
      if attempt and found != self.want[stage.name]:
        raise Wrong(f"{stage.name}: two undisturbed runs differ: {_differing(found, self.want)}")
      self.want[stage.name] = found
    print(
      f"{stage.name}: {self.seconds[stage.name]:.1f} s undisturbed, {len(found)} parts", flush=True
    )

  def disturbed(self, stage: Stage, count: int) -> None:
    """Strikes `count` times, in as many runs of the stage as that takes, and compares each run."""
    self._wipe(stage)
    order: list[str] = []
    while count:
      if not order:
        order = list(stage.faults)
        self.rng.shuffle(order)
      fault = order.pop()
      before = self._newest(stage)
      ended = self._strike(stage, fault)
      if ended == "was faster":
        self._compare(stage)
        self._wipe(stage)
        continue
      count -= 1
      if fault not in ("vanish", "damage"):
        self._no_step_lost(stage, before)
    self._finish(stage)
    self._compare(stage)

  def _strike(self, stage: Stage, fault: str) -> str:
    delay = self.rng.uniform(0.05, 0.9) * self.seconds[stage.name]
    env = faults.prepared(fault, environment(self.root), self.rng)
    with faults.before(fault, stage, self.root, self.rng), self._log(stage).open("a") as log:
      began = time.monotonic()
      processes = self._start(stage, log, env)
      while time.monotonic() - began < delay and any(p.poll() is None for p in processes):
        time.sleep(0.02)
      early = all(p.poll() is not None for p in processes)
      if early and fault not in ("shard", "damage") and not any(p.poll() for p in processes):
        self.seconds[stage.name] = time.monotonic() - began  # blows come earlier from now on
        return "was faster"
      faults.strike(fault, processes, stage, self.root, self.rng)
      if fault in ("vanish", "damage"):  # goes on for a moment, then it is killed
        time.sleep(self.rng.uniform(0, 0.3) * self.seconds[stage.name])
        faults.strike("kill", processes, stage, self.root, self.rng)
      codes = self._wait(stage, processes, may_hang=fault == "memory" and not stage.watched)
    blow = Blow(stage.name, fault, round(delay, 2), codes)
    self.blows.append(blow)
    print(
      f"{len(self.blows):4} {stage.name:<9} {fault:<7} after {delay:5.1f} s: exit {codes}",
      flush=True,
    )
    return str(codes)

  def _start(self, stage: Stage, log, env: dict[str, str]) -> list[subprocess.Popen]:
    return [
      subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
      )
      for command in stage.commands(self.root)
    ]

  def _wait(
    self, stage: Stage, processes: list[subprocess.Popen], may_hang: bool = False
  ) -> list[int]:
    """Exit codes. may_hang: libraries in C++ may wait for a thread for which there was no memory;
    training has a watchdog against that, the other commands are killed here."""
    until = time.monotonic() + (self.patience / 4 if may_hang else self.patience)
    while any(p.poll() is None for p in processes):
      if time.monotonic() > until:
        for process in processes:
          faults._signal(process.pid, signal.SIGKILL, group=True)
        if may_hang:
          self.hung += 1
          return [p.wait() for p in processes]
        raise Wrong(f"{stage.name} hangs: nothing ended in {self.patience:g} s; {self._log(stage)}")
      time.sleep(0.02)
    return [p.returncode for p in processes]

  def _finish(self, stage: Stage) -> None:
    with self._log(stage).open("a") as log:
      codes = self._wait(stage, self._start(stage, log, environment(self.root)))
    if any(codes):
      raise Wrong(f"{stage.name} ended with {codes}; see {self._log(stage)}")

  def _compare(self, stage: Stage) -> None:
    found = stage.digest(self.root)
    if found != self.want[stage.name]:
      raise Wrong(f"{stage.name} differs: {_differing(found, self.want[stage.name])}")

  def _no_step_lost(self, stage: Stage, before: int) -> None:
    """What was finished before the blow still is, and nothing half-written counts."""
    after = self._newest(stage)
    if after < before:
      raise Wrong(f"{stage.name}: {before} was there before the blow, {after} behind it")

  def _newest(self, stage: Stage) -> int:
    """The newest checkpoint's step, or how many answers or drawings there are."""
    output = self.root / stage.outputs[0]
    rows = (f for name in ("predictions", "results") for f in output.glob(f"{name}.jsonl"))
    lines = [f.read_text().count("\n") for f in rows]
    steps = [int(p.name) for p in output.glob("checkpoints/*") if re.fullmatch(r"\d+", p.name)]
    return max(steps or lines, default=0)

  def _wipe(self, stage: Stage) -> None:
    for output in stage.outputs:
      shutil.rmtree(self.root / output, ignore_errors=True)

  def _log(self, stage: Stage) -> pathlib.Path:
    return self.root / f"{stage.name}.log"


def _differing(found: dict, want: dict) -> list[str]:
  return [k for k in sorted(found.keys() | want.keys()) if found.get(k) != want.get(k)][:10]


def main() -> int:
  parser = argparse.ArgumentParser(
    prog="python -m tests.chaos", description=__doc__.splitlines()[0]
  )
  parser.add_argument("--kills", type=int, default=200, help="blows over all stages")
  parser.add_argument("--stages", default="", help="only these are disturbed, commas between")
  parser.add_argument("--seed", type=int, default=0, help="of moments and faults")
  parser.add_argument("--patience", type=float, default=900, help="seconds until an attempt hangs")
  parser.add_argument("--root", type=pathlib.Path, help="kept behind the run (default: a new one)")
  options = parser.parse_args()
  root = (options.root or pathlib.Path(tempfile.mkdtemp(prefix="chaos-"))).absolute()
  root.mkdir(parents=True, exist_ok=True)
  chaos = Chaos(root, options.seed, options.patience)
  names = [s.name for s in STAGES]
  chosen = options.stages.split(",") if options.stages else names
  if unknown := set(chosen) - set(names):
    parser.error(f"unknown stages {sorted(unknown)}; known: {names}")
  try:
    for stage in STAGES:
      if stage.name in chosen or any(s.name in chosen for s in STAGES[STAGES.index(stage) :]):
        chaos.undisturbed(stage)
    share, more = divmod(options.kills, len(chosen))
    for place, name in enumerate(chosen):
      chaos.disturbed(STAGES[names.index(name)], share + (place < more))
  except Wrong as error:
    print(f"WRONG after {len(chaos.blows)} blows: {error}", flush=True)
    return 1
  counts = collections.Counter((b.stage, b.fault) for b in chaos.blows)
  table = {s: {f: n for (stage, f), n in counts.items() if stage == s} for s in chosen}
  print(json.dumps(table, indent=1))
  print(f"{chaos.hung} commands without a watchdog hung when memory was short, and were killed")
  print(f"{len(chaos.blows)} blows, everything equal bit for bit")
  if options.root is None:
    shutil.rmtree(root)
  return 0


if __name__ == "__main__":
  sys.exit(main())
