"""Thousands of prompts through `vilau generate batch`: memory, and going on after kill -9."""

import hashlib
import json
import pathlib
import random
import statistics
import subprocess
import sys
import time
from typing import Any

from tests.load.page import memory

EVERY = 1.0  # seconds between measurements


def command(model: pathlib.Path, prompts: pathlib.Path, output: pathlib.Path) -> list[str]:
  return [sys.executable, "-m", "vilau_jax.cli.main", "generate", "batch", f"--model={model}",
          f"--prompts={prompts}", f"--output={output}", "--batch_size=32"]  # fmt: skip


def attempt(argv: list[str], log: pathlib.Path, kill_at: int, output: pathlib.Path) -> list[float]:
  """Resident MiB while the command runs; it is killed when so many pictures are there (0: never).

  Raises:
    SystemExit: if it fails by itself.
  """
  rss, tick = [], 0
  with log.open("a") as file:
    process = subprocess.Popen(argv, stdout=file, stderr=subprocess.STDOUT)
  while process.poll() is None:
    time.sleep(EVERY)
    try:
      rss.append(memory(process.pid))
    except (ProcessLookupError, FileNotFoundError):
      break
    tick += 1
    if kill_at and sum(1 for _ in output.rglob("*.png")) >= kill_at:
      process.kill()
  if process.wait() not in (0, -9):
    raise SystemExit(f"the batch ended with {process.returncode}; see {log}")
  return rss


def digest(output: pathlib.Path) -> dict[str, str]:
  """Pictures, and what results.jsonl says of them, in the order of their names."""
  found = {
    str(p.relative_to(output)): hashlib.sha256(p.read_bytes()).hexdigest()
    for p in sorted(output.rglob("*.png"))
  }
  rows = sorted((output / "results.jsonl").read_text().splitlines())
  return found | {"results": hashlib.sha256("\n".join(rows).encode()).hexdigest()}


def measure(model: pathlib.Path, root: pathlib.Path, options) -> tuple[dict[str, Any], list[str]]:
  """Figures, and what is wrong with them."""
  prompts, log = root / "prompts.jsonl", root / "batch.log"
  lines = (json.dumps({"prompt": f"a fox {n % 97}", "seed": n}) for n in range(options.prompts))
  prompts.write_text("\n".join(lines) + "\n")
  rng, wrong = random.Random(options.seed), []
  began = time.monotonic()
  rss = attempt(command(model, prompts, root / "whole"), log, 0, root / "whole")
  seconds = time.monotonic() - began
  marks = sorted(rng.randrange(1, options.prompts) for _ in range(options.kills))
  for mark in [*marks, 0]:
    attempt(command(model, prompts, root / "killed"), log, mark, root / "killed")
  whole, killed = digest(root / "whole"), digest(root / "killed")
  if whole != killed:
    differ = [k for k in whole.keys() | killed.keys() if whole.get(k) != killed.get(k)]
    wrong.append(f"{len(differ)} files differ, for example {sorted(differ)[:3]}")
  third = max(len(rss) // 3, 1)
  early, late = statistics.median(rss[third : 2 * third] or rss), statistics.median(rss[-third:])
  if late > 1.05 * early + 20:
    wrong.append(f"memory grows: {early:.0f} MiB in the second third, {late:.0f} in the last")
  return {
    "prompts": options.prompts, "pictures": len(whole) - 1, "seconds": round(seconds),
    "a_second": round(options.prompts / seconds, 1), "killed_at": marks, "equal": whole == killed,
    "memory_MiB": {"second_third": round(early), "last_third": round(late),
                   "most": round(max(rss))},
  }, wrong  # fmt: skip
