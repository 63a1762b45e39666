"""train any stage

vilau train --config=configs/quickstart_tower.py --workdir=runs/tower
    starts, or goes on with what is in the workdir; --config=FILE.py:ARG passes an argument
vilau train --config=.. --workdir=.. --config.optim.peak_lr=1e-3 --config.mesh.fsdp=8
    changes any field of the config

Ctrl-C or SIGTERM saves and stops; the same command goes on from there. Exit codes: 0 finished or
stopped by SIGTERM (--preempted_exit changes that), 1 failed, 2 bad input, 75 a peer hangs,
130 stopped by Ctrl-C.
"""

import signal
import sys
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

FLAGS = flags.FlagValues()
_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "experiment, FILE.py or FILE.py:ARG", flag_values=FLAGS
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "directory of this run alone (required)", flag_values=FLAGS
)
_PROFILE = flags.DEFINE_string(
  "profile", None, "START:STOP, steps to trace into WORKDIR/profile", flag_values=FLAGS
)
_CACHE = flags.DEFINE_string(
  "compile_cache",
  "auto",
  "directory for compiled programs; auto: below ~/.cache, none on a CPU; empty: none",
  flag_values=FLAGS,
)
_DISTRIBUTED = flags.DEFINE_string(
  "distributed",
  None,
  "several processes: auto (TPU pods, Slurm, GKE) or HOST:PORT,INDEX,COUNT",
  flag_values=FLAGS,
)
_PREEMPTED = flags.DEFINE_integer(
  "preempted_exit",
  0,
  "exit code when SIGTERM stopped the run before its end; not 0 for scripts that go on with what "
  "it trains",
  flag_values=FLAGS,
)


def main(argv: list[str]) -> int:
  if argv:
    raise ValueError(f"unexpected {argv}; see vilau train --help")
  if _CONFIG.value is None or not _WORKDIR.value:
    raise ValueError("give --config=FILE.py and --workdir=DIR; see vilau train --help")
  config = read_config(_CONFIG)
  span = _span(_PROFILE.value)
  from vilau_jax.cli.compile_cache import use_compile_cache  # flags first: jax takes seconds

  if _DISTRIBUTED.value:
    join(_DISTRIBUTED.value)
  use_compile_cache(_CACHE.value)
  from vilau_jax.metrics import NonFiniteError
  from vilau_jax.train.checkpoints import CheckpointError
  from vilau_jax.train.loop import train

  try:
    result = train(config, _WORKDIR.value, profile=span)
  except (NonFiniteError, CheckpointError) as error:
    said = "; ".join([str(error), *getattr(error, "__notes__", ())])
    print(f"vilau: training stopped: {said}", file=sys.stderr)
    return 1
  done, code = "finished", 0
  if not result["finished"]:
    done = "stopped and saved; the same command goes on"
    code = 130 if result["signal"] == signal.SIGINT else _PREEMPTED.value
    if result["signal"] == signal.SIGTERM:
      done = f"preempted (SIGTERM), {done}"
  print(f"{_WORKDIR.value}: {done} at step {result['step']}, {result['seconds']:.1f} s")
  return code


def read_config(flag: flags.FlagHolder) -> ConfigDict:
  """The experiment that a --config flag names, locked.

  Raises:
    ValueError: if its file is not there.
  """
  try:
    return ConfigDict(flag.value.copy_and_resolve_references()).lock()
  except OSError as error:  # the file is not there; ml_collections says so when it is used
    raise ValueError(f"--config: {error}") from error


def _span(text: str | None) -> tuple[int, int] | None:
  if not text:
    return None
  parts = text.split(":")
  if len(parts) != 2 or not all(p.isdigit() for p in parts) or int(parts[0]) >= int(parts[1]):
    raise ValueError(f"--profile must be START:STOP with START < STOP, got {text!r}")
  return int(parts[0]), int(parts[1])


def join(text: str, **how: Any) -> None:
  """Makes this process one of those that --distributed describes.

  Args:
    text: "auto", or HOST:PORT,INDEX,COUNT.
    how: of jax.distributed.initialize.

  Raises:
    ValueError: for another text.
  """
  import jax

  if text == "auto":
    jax.distributed.initialize(**how)
    return
  parts = text.split(",")
  if len(parts) != 3 or not (parts[1].isdigit() and parts[2].isdigit()):
    raise ValueError(f"--distributed must be auto or HOST:PORT,INDEX,COUNT, got {text!r}")
  jax.distributed.initialize(parts[0], process_id=int(parts[1]), num_processes=int(parts[2]), **how)
