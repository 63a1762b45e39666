"""how fast a model of some size runs on this machine

vilau bench --preset=vilau_7b_256 --set=dtype=bfloat16[,llm.depth=16,depth.width=1024]
vilau bench --model=DIR --only=image,text --batch_size=8
    random weights of that size, medians of --rounds calls: tower encode and decode, prefill, a text
    step, drawing with guidance, a training step; what memory limits is compared with the bandwidth
    of a copy on the same device. One device is measured. What it has no memory for is a row that
    says so (exit code 1). --positions is the room of the cache behind the prompt. Presets
    are float32, and so is every CPU; released weights and training configs are bfloat16.
vilau bench --preset=vilau_7b_256 --only=image,speculative --window=8
    a position of drawing beside a pass of speculative drawing, which draws several: it wins where a
    model gets more positions a pass (`vilau generate --speculative` says how many) than a pass
    costs positions.
vilau bench --config=configs/pretrain_7b_256.py --config.batch_size=8
    the very step that this config trains with, on random data: seconds, tokens/s, MFU and the peak
    of memory, to be held against what `vilau plan` foretells of the same machine.
"""

import json
import pathlib
import sys

import yaml
from absl import flags
from ml_collections import config_flags

from vilau_jax.cli import given

FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string(
  "model", None, "model directory or training workdir, for its size", flag_values=FLAGS
)
_PRESET = flags.DEFINE_string("preset", None, "name of an architecture", flag_values=FLAGS)
_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "experiment whose step is run, FILE.py or FILE.py:ARG", flag_values=FLAGS
)
_SET = flags.DEFINE_list("set", [], "fields of the architecture: llm.depth=16", flag_values=FLAGS)
_ONLY = flags.DEFINE_list("only", None, "workloads, default all but speculative", flag_values=FLAGS)
_BATCH = flags.DEFINE_integer("batch_size", 1, "pictures or rows at once", flag_values=FLAGS)
_PROMPT = flags.DEFINE_integer("prompt_length", 64, "positions", flag_values=FLAGS)
_LENGTH = flags.DEFINE_integer("row_length", 256, "of a training row", flag_values=FLAGS)
_POSITIONS = flags.DEFINE_integer("positions", 256, "room for decoding", flag_values=FLAGS)
_WINDOW = flags.DEFINE_integer("window", 8, "speculative: drafts a pass", flag_values=FLAGS)
_ROUNDS = flags.DEFINE_integer("rounds", 10, "timed calls of each", flag_values=FLAGS)
_JSON = flags.DEFINE_string("json_file", None, "file for the figures", flag_values=FLAGS)
_STDOUT = flags.DEFINE_bool("json", False, "print the figures as JSON", flag_values=FLAGS)


def main(argv: list[str]) -> int:
  if argv or [_MODEL.value, _PRESET.value, _CONFIG.value].count(None) != 2:
    raise ValueError("give one of --model=DIR, --preset=NAME and --config=FILE.py")
  for flag in (_BATCH, _PROMPT, _LENGTH, _POSITIONS, _WINDOW, _ROUNDS):
    if flag.value < 1:
      raise ValueError(f"--{flag.name} must be at least 1, got {flag.value}")
  if _JSON.value:  # before minutes of work
    with open(_JSON.value, "a", encoding="utf-8"):
      pass
  if _CONFIG.value is not None:
    given.only(FLAGS, ("config", "rounds", "json_file", "json"), "--config says what is run")
    return _experiment()
  from vilau_jax import checkpoint  # flags first: jax takes seconds
  from vilau_jax.bench import model
  from vilau_jax.bench.workloads import Sizes
  from vilau_jax.config import VilaUConfig

  if _PRESET.value is not None:
    config = VilaUConfig.from_preset(_PRESET.value)
  else:
    config = checkpoint.model_config(_MODEL.value)
  config = config.with_overrides(**overrides(_SET.value))
  sizes = Sizes(_BATCH.value, _PROMPT.value, _LENGTH.value, _POSITIONS.value, _WINDOW.value)
  only = _ONLY.value or _possible(config)
  result = model.measure(config, sizes, only, _ROUNDS.value, on_row=_say)
  if _STDOUT.value:
    print(json.dumps(result))
  else:
    show(result)
  return 1 if any("error" in row for row in result["rows"]) else 0


def _experiment() -> int:
  """Runs the step of --config."""
  from vilau_jax.bench import experiment
  from vilau_jax.cli.train import read_config
  from vilau_jax.train import defaults

  config = read_config(_CONFIG)
  defaults.check(config)
  found = experiment.measure(config, _ROUNDS.value)
  _write(found)
  if _STDOUT.value:
    print(json.dumps(found))
    return 0
  memory, mfu = found["memory_gib"], found["mfu"]
  print(
    f"{found['device']}: {found['step_s']:.4g} s a step (±{found['spread'] / 2:.0%}), "
    f"{found['tokens_per_s']:,.0f} tokens/s, {found['images_per_s']:,.1f} images/s, MFU "
    + (f"{mfu:.1%}" if mfu is not None else "unknown")
    + (f", {memory['peak']:.1f} of {memory['limit']:.1f} GiB" if memory else "")
    + f"; compiled in {found['compile_s']:.0f} s"
  )
  return 0


def _write(result: dict) -> None:
  if _JSON.value:
    pathlib.Path(_JSON.value).write_text(json.dumps(result, indent=1), encoding="utf-8")


def overrides(assignments: list[str]) -> dict:
  """["llm.depth=16"] -> {"llm": {"depth": 16}}.

  Raises:
    ValueError: for something that is no assignment.
  """
  tree: dict = {}
  for text in assignments:
    path, equals, value = text.partition("=")
    if not equals or not all(path.split(".")):
      raise ValueError(f"--set takes FIELD=VALUE, for example llm.depth=16; got {text!r}")
    *parents, leaf = path.split(".")
    at = tree
    for name in parents:
      at = at.setdefault(name, {})
    at[leaf] = yaml.safe_load(value)
  return tree


def _say(result: dict) -> None:
  _write(result)  # what is measured stays, whatever becomes of the rest
  row = result["rows"][-1]
  if "error" in row:
    print(f"{row['name']}: {row['error']}", file=sys.stderr, flush=True)
    return
  rate = f"{row['ms_per_unit']:.2f} ms each, {row['per_s']:,.1f} {row['unit']} a second"
  print(f"{row['name']}: {rate}, ready after {row['first_s']:.0f} s", file=sys.stderr, flush=True)


def show(result: dict) -> None:
  """Prints the table."""
  from rich.console import Console
  from rich.table import Table

  dtype = result["config"]["dtype"]
  title = f"{result['device']}, {dtype}, copies at {result['copy_gb_per_s']:.1f} GB/s"
  table = Table(
    "workload", "ms a call", "+-", "a second", "ms each", "GB/s", "of copy", title=title
  )
  for row in result["rows"]:
    if "error" in row:
      table.add_row(row["name"], row["error"])
      continue
    bound = ("-", "-")
    if "gb_per_s" in row:
      bound = (f"{row['gb_per_s']:.1f}", f"{row['of_copy']:.0%}")
    table.add_row(
      row["name"], f"{row['ms']:.2f}", f"{row['spread']:.0%}",
      f"{row['per_s']:,.1f} {row['unit']}", f"{row['ms_per_unit']:.2f}", *bound,
    )  # fmt: skip
  Console().print(table)


def _possible(config) -> list[str]:
  if config.llm is None:
    return ["tower_encode", "tower_decode"]
  if config.tower is None or config.depth is None:
    return ["prefill", "text"]
  return ["tower_encode", "tower_decode", "prefill", "text", "image", "train"]
