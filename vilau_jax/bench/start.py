"""Seconds from typing `vilau generate image` to the first picture, and where they go.

python -m vilau_jax.bench.start --model=DIR [--starts=3] [--prompt=TEXT] [--json_file=FILE]

Every start is a process of its own. The first finds an empty folder for compiled programs, the
others what it left there (JAX_COMPILATION_CACHE_DIR; on CPUs nothing is kept unless it is set).
"""

import json
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import time
from multiprocessing.connection import Connection

from absl import app, flags

PHASES = ("python", "loading", "tracing", "lowering", "compiling", "drawing")
_MODEL = flags.DEFINE_string("model", None, "model directory or training workdir", required=True)
_PROMPT = flags.DEFINE_string("prompt", "two foxes on a blue background", "what is drawn")
_STARTS = flags.DEFINE_integer("starts", 3, "starts with what the first compiled", lower_bound=1)
_JSON = flags.DEFINE_string("json_file", None, "file for the figures", allow_override=True)
_EVENTS = {
  "/jax/core/compile/jaxpr_trace_duration": "tracing",
  "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
  "/jax/core/compile/backend_compile_duration": "compiling",  # reading the cache is part of it
}
Interval = tuple[float, float]


def covered(intervals: list[Interval]) -> float:
  """Seconds that are in at least one interval: a function is traced within another's tracing."""
  total, end = 0.0, float("-inf")
  for low, high in sorted(intervals):
    total += max(0.0, high - max(low, end))
    end = max(end, high)
  return total


def phases(began: float, ready: float, ended: float, spans: dict[str, list[Interval]]):
  """Splits [began, ended] among PHASES; what lies in two belongs to the later one but drawing.

  Args:
    began, ready, ended: when the process was started, had imported jax, had its picture.
    spans: when it loaded, traced, lowered and compiled.

  Returns:
    {phase: seconds} and "total".
  """
  found, later = {}, []
  for phase in reversed(PHASES[1:-1]):
    found[phase] = covered(spans[phase] + later) - covered(later)
    later = later + spans[phase]
  found["python"] = ready - began
  found["drawing"] = ended - ready - covered(later)
  return {phase: found[phase] for phase in PHASES} | {"total": ended - began}


def _child(answer: Connection, began: float, model: str, prompt: str, output: str) -> None:
  """One `vilau generate image`, with a clock at each of its parts."""
  import jax.monitoring

  from vilau_jax import api
  from vilau_jax.cli import main as cli

  ready = time.time()
  spans: dict[str, list[Interval]] = {phase: [] for phase in PHASES[1:-1]}

  def heard(event: str, seconds: float, **_) -> None:
    if event in _EVENTS:
      spans[_EVENTS[event]].append((time.time() - seconds, time.time()))

  jax.monitoring.register_event_duration_secs_listener(heard)
  load = api.load

  def timed_load(*args, **kwargs):
    loading = time.time()
    loaded = load(*args, **kwargs)
    spans["loading"].append((loading, time.time()))
    return loaded

  api.load = timed_load
  words = [f"--model={model}", f"--prompt={prompt}", f"--output={output}"]
  code = cli.run(["generate", "image", *words])
  answer.send(phases(began, ready, time.time(), spans) if code == 0 else None)


def _start(model: str, prompt: str, folder: pathlib.Path, number: int) -> dict[str, float]:
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "programs")
  fresh = multiprocessing.get_context("spawn")
  here, there = fresh.Pipe()
  arguments = there, time.time(), model, prompt, str(folder / f"{number}")
  process = fresh.Process(target=_child, args=arguments)
  process.start()
  there.close()
  try:
    found = here.recv()
  except EOFError:  # it ended without an answer
    found = None
  process.join()
  if found is None:
    raise SystemExit("`vilau generate image` failed: see above")
  return found


def main(_) -> None:
  with tempfile.TemporaryDirectory() as folder:
    cold, *warm = [
      _start(_MODEL.value, _PROMPT.value, pathlib.Path(folder), number)
      for number in range(_STARTS.value + 1)
    ]
  median = {key: statistics.median(start[key] for start in warm) for key in cold}
  print(f"{'seconds':24}" + "".join(f"{key:>11}" for key in cold))
  for name, start in (("nothing compiled yet", cold), (f"median of {len(warm)} later", median)):
    print(f"{name:24}" + "".join(f"{seconds:11.2f}" for seconds in start.values()))
  if _JSON.value:
    found = {"cold": cold, "warm": warm, "median": median}
    pathlib.Path(_JSON.value).write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
  app.run(main)
