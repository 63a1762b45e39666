"""Feeds broken and hostile bytes to every parser of outside data.

  python -m tests.fuzz [--inputs=1000] [--seed=0] [--only=tar,png,..|plain|media] [--keep=DIR]
  python -m tests.fuzz --only=tar --replay=FILE

Every target (tests/fuzz/targets.py) gets its seeds, which are valid files made by real writers, and
then inputs bent from them; the same seed gives the same inputs. An input must be accepted, or be
refused by an error of ours with a message for people. Another exception, a crash, more than 5
seconds, or more memory than the target's bound is a finding: it is shown, its input is kept, and
the exit code is 1.
"""

import argparse
import importlib.util
import json
import pathlib
import sys
import tempfile
import traceback

from tests.fuzz import run
from tests.fuzz.media_targets import MEDIA
from tests.fuzz.targets import PLAIN

TARGETS = (*PLAIN, *MEDIA)


def chosen(only: str) -> list[run.Target]:
  """Targets by name or kind.

  Raises:
    ValueError: for an unknown one.
  """
  names = [name for name in only.split(",") if name]
  known = {t.name for t in TARGETS} | {t.kind for t in TARGETS}
  if unknown := set(names) - known:
    raise ValueError(f"unknown targets {sorted(unknown)}; known: {sorted(known)}")
  return [t for t in TARGETS if not names or t.name in names or t.kind in names]


def replay(target: run.Target, file: pathlib.Path) -> int:
  """Reads one input in this process, and shows what it makes the reader say."""
  with tempfile.TemporaryDirectory() as folder:
    target.seeds(pathlib.Path(folder))
    try:
      print(repr(target.read(file.read_bytes(), pathlib.Path(folder)))[:300])
    except Exception as error:
      traceback.print_exc()
      return bool(run.refusal(error, target))
  return 0


def main() -> int:
  parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
  parser.add_argument("--inputs", type=int, default=1000, help="of each target")
  parser.add_argument("--seed", type=int, default=0, help="of the inputs")
  parser.add_argument("--only", default="", help="these targets, or plain or media")
  parser.add_argument("--keep", type=pathlib.Path, help="for inputs of findings (default: new)")
  parser.add_argument("--replay", type=pathlib.Path, help="one kept input, with its --only")
  options = parser.parse_args()
  sys.stdout.reconfigure(errors="backslashreplace")
  try:
    targets = chosen(options.only)
  except ValueError as error:
    parser.error(str(error))
  if options.replay:
    return replay(targets[0], options.replay)
  keep = options.keep or pathlib.Path(tempfile.mkdtemp(prefix="fuzz-findings-"))
  keep.mkdir(parents=True, exist_ok=True)
  findings, total, seconds = [], 0, 0.0
  print(f"{'target':<16} {'inputs':>8} {'accepted':>8} {'refused':>8} {'a second':>8} "
        f"{'MiB':>6} findings", flush=True)  # fmt: skip
  for target in targets:
    if target.needs and importlib.util.find_spec(target.needs) is None:
      print(f"{target.name:<16} left out: it needs {target.needs}", flush=True)
      continue
    row, found = run.fuzz(target, options.inputs, options.seed, keep)
    rate = row["inputs"] / max(row["seconds"], 0.1)
    print(f"{target.name:<16} {row['inputs']:>8} {row['accepted']:>8} {row['refused']:>8} "
          f"{rate:>8.0f} {row['megabytes']:>6} {row['findings']}", flush=True)  # fmt: skip
    for finding in found:
      print(f"  FINDING {finding.number}: {finding.what}\n{finding.detail}", flush=True)
    findings += found
    total, seconds = total + row["inputs"], seconds + row["seconds"]
  print(json.dumps({"targets": len(targets), "inputs": total, "seconds": round(seconds),
                    "findings": len(findings)}))  # fmt: skip
  if findings:
    print(f"the inputs of exceptions are in {keep}; --replay shows one again")
  elif not options.keep:
    keep.rmdir()
  return 1 if findings else 0


if __name__ == "__main__":
  sys.exit(main())
