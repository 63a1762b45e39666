"""What can happen to a stage: each fault is applied to running processes, and healed afterwards."""

import contextlib
import glob
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator

from tests.chaos.stages import Stage

SMALL_FILE = 6000  # bytes that a process on the "full disk" may still write into one file
SMALL_MEMORY = 64 * 2**20  # bytes beyond what it has that a process short of memory may get


def prepared(fault: str, environment: dict[str, str], rng: random.Random) -> dict[str, str]:
  """The environment that a disturbed attempt starts in.

  clock: the process starts in the past or future, and its clock runs faster or jumps on.
  """
  if fault != "clock":
    return environment
  library = glob.glob("/usr/lib/*/faketime/libfaketime.so.1")
  if not library:
    raise SystemExit("the clock fault needs libfaketime: apt install faketime")
  offset = rng.choice(("-400d", "+400d", "+3h x50", "-1d x10"))
  return environment | {"LD_PRELOAD": library[0], "FAKETIME": offset, "DONT_FAKE_MONOTONIC": "1"}


@contextlib.contextmanager
def before(fault: str, stage: Stage, root: pathlib.Path, rng: random.Random) -> Iterator[None]:
  """Damage that is there from the start of the attempt, and mended behind it.

  shard: bytes of one shard of the input are overwritten.
  damage: one byte of the newest checkpoint is another one; this stays.
  """
  if fault == "damage":
    steps = sorted((root / stage.outputs[0] / "checkpoints").glob("[0-9]*"), key=lambda p: p.stat())
    sealed = ("manifest.json", "_CHECKPOINT_METADATA")
    files = [f for d in steps[-1:] for f in sorted(d.rglob("*")) if f.is_file()]
    files = [f for f in files if f.name not in sealed and f.stat().st_size]
    if len(steps) > 1 and files:
      _overwrite(rng.choice(files), rng, 1)
    yield
    return
  if fault != "shard":
    yield
    return
  shards = [f for i in stage.inputs for f in sorted((root / i).glob("*.array_record"))]
  victim = rng.choice(shards)
  copy = victim.with_suffix(".good")
  shutil.copy2(victim, copy)
  _overwrite(victim, rng, 200)
  try:
    yield
  finally:
    os.replace(copy, victim)


def _overwrite(file: pathlib.Path, rng: random.Random, count: int) -> None:
  data = bytearray(file.read_bytes())
  for _ in range(count):
    place = rng.randrange(len(data))
    data[place] ^= rng.randrange(1, 256)
  file.write_bytes(data)


def strike(
  fault: str,
  processes: list[subprocess.Popen],
  stage: Stage,
  root: pathlib.Path,
  rng: random.Random,
) -> None:
  """Applies a fault to what is running.

  kill, clock: SIGKILL to all. term: SIGTERM. peer: SIGKILL to one of several. child: SIGKILL to a
  process that a process has started, as the kernel does when memory runs out; to itself where there
  is none. memory: allocations fail from now on. disk: files cannot grow from now on. vanish: the
  checkpoints are gone. shard, damage: nothing more.
  """
  running = [p for p in processes if p.poll() is None]
  if fault in ("kill", "clock"):
    for process in running:
      _signal(process.pid, signal.SIGKILL, group=True)
  elif fault == "term":
    for process in running:
      _signal(process.pid, signal.SIGTERM)
  elif fault == "peer" and running:
    _signal(rng.choice(running).pid, signal.SIGKILL)
  elif fault == "child" and running:
    _signal(rng.choice(_children(running[0].pid) or [running[0].pid]), signal.SIGKILL)
  elif fault == "memory":
    for process in running:
      with contextlib.suppress(ProcessLookupError, ValueError, FileNotFoundError):
        size = int(pathlib.Path(f"/proc/{process.pid}/statm").read_text().split()[0]) * 4096
        _limit(process.pid, resource.RLIMIT_AS, size + SMALL_MEMORY)
  elif fault == "disk":
    for process in running:
      for pid in (process.pid, *_children(process.pid)):
        _limit(pid, resource.RLIMIT_FSIZE, SMALL_FILE)
  elif fault == "vanish":
    shutil.rmtree(root / stage.outputs[0] / "checkpoints", ignore_errors=True)


def _limit(pid: int, kind: int, value: int) -> None:
  with contextlib.suppress(ProcessLookupError):
    resource.prlimit(pid, kind, (value, value))


def _signal(pid: int, number: int, group: bool = False) -> None:
  with contextlib.suppress(ProcessLookupError):
    (os.killpg if group else os.kill)(pid, number)


def _children(pid: int) -> list[int]:
  found = []
  for tasks in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
      found += [int(child) for child in tasks.read_text().split()]
  return found
