"""compile for machines you don't have: memory, work, communication, time

vilau plan --config=configs/pretrain_7b_256.py --topology=v5e:16x16
    compiles the very step that training runs, with the config's mesh; any field can be changed:
    --config.batch_size=1024 --config.mesh.fsdp=64. Large models take a minute or more.
vilau plan .. --topology=v5p:4x4x8 | v6e:16x16 | v4:4x4x4 | 2*v5e:16x16 | h100:8x8 | a100:8x8
    TPU tori (and slices of them), or hosts x GPUs a host
vilau plan .. --workload=tokenize | generate
    the tower over pictures, or drawing with guidance, instead of training; --int8 draws with
    weights in eight bits, as vilau generate does
vilau plan .. --what_if
    compiles the neighbours as well: other batches, rematerialisation, meshes
"""

import json
import os
import sys

from absl import flags
from ml_collections import ConfigDict, config_flags

from vilau_jax.cli import given

FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "experiment, FILE.py or FILE.py:ARG (required)", flag_values=FLAGS
)
_TOPOLOGY = flags.DEFINE_string(
  "topology", None, "CHIP:SHAPE, such as v5e:16x16 (required)", flag_values=FLAGS
)
_WORKLOAD = flags.DEFINE_string(
  "workload", "train", "train, tokenize or generate", flag_values=FLAGS
)
_INT8 = flags.DEFINE_bool("int8", False, "weights in eight bits, to generate", flag_values=FLAGS)
_SAMPLES = flags.DEFINE_float(
  "samples", 0, "rows or pictures to give the days for; 0: all of the run", flag_values=FLAGS
)
_WHAT_IF = flags.DEFINE_bool("what_if", False, "compile neighbours too", flag_values=FLAGS)
_JSON = flags.DEFINE_bool("json", False, "print one JSON object", flag_values=FLAGS)


def main(argv: list[str]) -> int:
  if argv:
    raise ValueError(f"unexpected {argv}; see vilau plan --help")
  if _CONFIG.value is None or not _TOPOLOGY.value:
    raise ValueError("give --config=FILE.py and --topology=CHIP:SHAPE; see vilau plan --help")
  if _WORKLOAD.value != "train":
    given.none(FLAGS, ("samples", "what_if"), "they are of --workload=train")
  if _JSON.value:
    given.none(FLAGS, ("samples",), "--json has seconds a step, and no days")
  # No device of this machine takes part; JAX would look for one in vain, and say so.
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  from rich.console import Console  # flags first: jax takes seconds

  from vilau_jax.cli.train import read_config
  from vilau_jax.plan import report, topology
  from vilau_jax.plan.compiling import make_plan
  from vilau_jax.train import defaults

  machine = topology.parse(_TOPOLOGY.value)
  config = read_config(_CONFIG)
  defaults.check(config)
  console = Console(width=None if sys.stdout.isatty() else 100)
  plan = make_plan(config, machine, _WORKLOAD.value, "int8" if _INT8.value else None)
  if not _JSON.value:
    report.show(plan, _SAMPLES.value or config.steps * config.batch_size, console)
  rows = _what_if(plan, console) if _WHAT_IF.value else {}
  if _JSON.value:
    more = {"what_if": report.summary(rows)} if rows else {}
    print(json.dumps(plan.result | more))
  return 0 if plan.result["fits"] else 1


def _what_if(plan, console) -> dict:
  from vilau_jax.plan import report
  from vilau_jax.plan.advice import neighbours
  from vilau_jax.plan.compiling import make_plan

  rows, table = {}, report.what_if_table()
  for name, config in neighbours(plan.config, plan.mesh.shape):
    try:
      rows[name] = make_plan(ConfigDict(config), plan.topology)
    except ValueError as error:  # a neighbour that cannot be, such as a batch too small
      rows[name] = str(error)
    table.add_row(name, *report.what_if_row(rows[name]))
  if not _JSON.value:
    console.print(table)
  return rows
