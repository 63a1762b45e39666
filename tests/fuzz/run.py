"""Runs a target's inputs in child processes with limits, and tells what went wrong.

A child is forked from the parent, which has everything imported and no threads. Before each input
the child writes its number where the parent sees it and sets an alarm that ends it, so a hang and a
crash are found at their input, and another child goes on behind it.
"""

import collections
import dataclasses
import json
import mmap
import os
import pathlib
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable

import vilau_jax
from tests.fuzz import mutate

HANG = 5.0  # seconds of computing that an input may take
WAITING = 12 * HANG  # seconds until it is not even waiting for a busy machine
LONGEST = 4000  # characters of a message for people
KEPT = 2  # examples of one finding
PRODUCT = os.path.dirname(vilau_jax.__file__) + os.sep


@dataclasses.dataclass(frozen=True)
class Target:
  """One reader of bytes from outside.

  Attributes:
    name: of the target.
    seeds: folder to write in -> small valid inputs, made by real writers.
    read: (input, folder of its own) reads it to its end; what is no record, picture, .. is a
      ValueError of ours, or a rejected entry.
    kind: "plain" (text and binary) or "media".
    tree, png: see mutate.mutated.
    megabytes: of memory that one input may take beyond what the process has.
    also: further exceptions that are how this reader refuses.
    needs: a module without which the target is left out, and said to be.
  """

  name: str
  seeds: Callable[[pathlib.Path], list[bytes]]
  read: Callable[[bytes, pathlib.Path], object]
  kind: str = "plain"
  tree: bool = False
  png: bool = False
  megabytes: int = 256
  also: tuple[type[Exception], ...] = ()
  needs: str = ""


@dataclasses.dataclass(frozen=True)
class Finding:
  """An input that was not answered as it should be: where, its number, and what happened."""

  target: str
  number: int
  what: str
  detail: str = ""


def data_of(target: Target, seeds: list[bytes], seed: int, number: int) -> bytes:
  """Input `number`; the valid seeds come first."""
  if number < len(seeds):
    return seeds[number]
  rng = random.Random(f"{seed}/{target.name}/{number}")
  return mutate.mutated(rng, seeds, tree=target.tree, png=target.png)


def refusal(error: Exception, target: Target) -> str:
  """What is wrong with how an input was refused; "" where it is one of our own errors, raised by
  our own code, in words that fit a screen."""
  if isinstance(error, target.also):
    return ""
  frames = traceback.extract_tb(error.__traceback__)
  ours = os.path.abspath(frames[-1].filename).startswith(PRODUCT)
  kinds = (ValueError, FileNotFoundError, FileExistsError)
  if not ours or (type(error) not in kinds and not type(error).__module__.startswith("vilau_jax")):
    place = next((f for f in reversed(frames) if f.filename.startswith(PRODUCT)), frames[-1])
    return f"{type(error).__name__} at {os.path.basename(place.filename)}:{place.name}"
  words = str(error)
  if not words.strip() or len(words) > LONGEST:
    return f"message of {len(words)} characters at {os.path.basename(frames[-1].filename)}"
  return ""


def fuzz(target: Target, count: int, seed: int, keep: pathlib.Path) -> tuple[dict, list[Finding]]:
  """`count` inputs; what was accepted and refused, and the findings, whose inputs are in `keep`."""
  shared = mmap.mmap(-1, 32)
  found: list[Finding] = []
  kinds: collections.Counter[str] = collections.Counter()
  began, first = time.monotonic(), 0
  while first < count:
    status, said = _forked(target, range(first, count), seed, keep, shared)
    for line in said.splitlines():
      finding = Finding(target.name, *json.loads(line))
      kinds[finding.what] += 1
      if kinds[finding.what] <= KEPT:
        found.append(finding)
    number = struct.unpack("q", shared[:8])[0]
    if not status or number < first:  # to the end, or the seeds are refused
      count = count if not status else 0
      break
    what, first = _ended(status), number + 1
    again, _ = _forked(target, range(number, first), seed, keep, shared, careful=True)
    if not again:  # a busy machine is no fault of the input's
      kinds["slow once"] += what.startswith("no end")
      continue
    kinds[what] += 1
    if kinds[what] <= KEPT:
      found.append(Finding(target.name, number, what))
    if kinds[what] > 20:
      found.append(Finding(target.name, number, f"given up: {what}"))
      count = first
  accepted, refused, peak = struct.unpack("qqq", shared[8:32])
  seconds = time.monotonic() - began
  row = dict(inputs=count, accepted=accepted, refused=refused, findings=sum(kinds.values()))
  row["findings"] -= kinds["slow once"]
  return row | dict(seconds=round(seconds, 1), megabytes=peak // 1024), found


def _forked(target, numbers: range, seed, keep, shared, careful=False) -> tuple[int, bytes]:
  """How a child ended that ran these inputs, 0 where it came to its end, and what it found."""
  with tempfile.TemporaryFile() as log:
    child = os.fork()
    if not child:
      _child(target, numbers, seed, keep, shared, log.fileno(), careful)
    _, status = os.waitpid(child, 0)
    log.seek(0)
    return status, log.read()


def _ended(status: int) -> str:
  if not os.WIFSIGNALED(status):
    return f"exit {os.WEXITSTATUS(status)}"
  number = signal.Signals(os.WTERMSIG(status))
  hung = number in (signal.SIGALRM, signal.SIGPROF)
  return f"no end within {HANG:g} s" if hung else f"ended by {number.name}"


def _child(target, numbers: range, seed, keep, shared, log: int, careful: bool) -> None:
  """Runs inputs and ends the process."""
  code = 1
  try:
    sys.stdout.flush()
    shared[:8] = struct.pack("q", -1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # what FFmpeg and others have to say about broken files
    if not os.environ.get("FUZZ_STDERR"):
      os.dup2(null, 2)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fuzz-", dir=_memory()))
    try:
      _inputs(target, numbers, seed, keep, shared, log, folder, careful)
    finally:
      shutil.rmtree(folder, ignore_errors=True)
    code = 0
  except BaseException:
    os.write(log, json.dumps([-1, "the seeds are refused", traceback.format_exc()]).encode())
    code = 1
  finally:
    os._exit(code)


def _alarm(seconds: float) -> None:
  """0: none. The signals' default action ends the process, in C code or not."""
  signal.setitimer(signal.ITIMER_PROF, seconds)
  signal.setitimer(signal.ITIMER_REAL, WAITING if seconds else 0)


def _memory() -> str | None:
  """A folder in memory, where the system has one."""
  return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _inputs(target, numbers: range, seed, keep, shared, log, folder, careful: bool) -> None:
  seeds = target.seeds(folder)
  for data in seeds if not numbers.start else ():
    # A seed must give something, or the fuzzing would see errors alone.
    found = target.read(data, folder)
    if isinstance(found, int) and not found:
      raise AssertionError(f"a seed gives nothing: {data[:80]!r}")
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  size = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
  limit = size + target.megabytes * 2**20
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
  accepted, refused, peak = struct.unpack("qqq", shared[8:32])
  for number in numbers:
    shared[:8] = struct.pack("q", number)
    data = data_of(target, seeds, seed, number)
    if careful:  # it has ended a process before
      (keep / f"{target.name}-{number}").write_bytes(data)
    _alarm(HANG)
    try:
      target.read(data, folder)
      accepted += 1
    except Exception as error:
      refused += 1
      if what := refusal(error, target):
        _alarm(0)
        (keep / f"{target.name}-{number}").write_bytes(data)
        detail = "".join(traceback.format_exception(error))[-1500:]
        os.write(log, json.dumps([number, what, detail]).encode() + b"\n")
    _alarm(0)
    if not number % 64:
      peak = max(peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    shared[8:32] = struct.pack("qqq", accepted, refused, peak)
