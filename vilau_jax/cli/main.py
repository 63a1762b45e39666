"""The `vilau` command: finds the command, parses its flags, turns bad input into exit code 2.

Exit codes: 0 done, 1 failed or partial, 2 bad input, 130 interrupted.
"""

import difflib
import importlib
import os
import sys
import threading
import time
import traceback

from absl import flags

from vilau_jax.plan.chips import GPU_SHARE

QUOTES = "'\""
GRACE = 5.0  # seconds that other threads have when a command has failed
# What a path that was typed may turn out to be.
_PATH_ERRORS = (
  FileNotFoundError,
  FileExistsError,
  IsADirectoryError,
  NotADirectoryError,
  PermissionError,
)
# command -> (module, one line for `vilau --help`). A module has FLAGS, its own and no other's, and
# `main(argv) -> int`.
COMMANDS = {
  "train": ("vilau_jax.cli.train", "train any stage: --config=configs/X.py --workdir=DIR"),
  "data import": ("vilau_jax.cli.data_import", "raw data set -> records: FORMAT --source --output"),
  "data inspect": ("vilau_jax.cli.data_inspect", "counts, sizes and a contact sheet of records"),
  "tokenize": ("vilau_jax.cli.tokenize", "add a tower's codes to records"),
  "convert": ("vilau_jax.cli.convert", "PyTorch checkpoints: import|export FORMAT, or verify"),
  "generate batch": ("vilau_jax.cli.generate_batch", "thousands of prompts from a file, resumable"),
  "generate": ("vilau_jax.cli.generate", "draw or animate: image|video --model --prompt --output"),
  "chat": ("vilau_jax.cli.chat", "ask about pictures and videos, or just talk"),
  "reconstruct": ("vilau_jax.cli.reconstruct", "image -> codes -> image, with PSNR"),
  "demo": ("vilau_jax.cli.demo", "a page in the browser: chat, draw, animate, look inside"),
  "evaluate": ("vilau_jax.cli.evaluate", "measure a model: TASK --model --data --output"),
  "figures": ("vilau_jax.cli.figures", "losses, samples, reconstructions of a run as PNG files"),
  "bench": ("vilau_jax.cli.bench", "speed of a size of model here: --preset | --model [--set]"),
  "plan": ("vilau_jax.cli.plan", "does a run fit, and how fast: --config --topology=v5e:16x16"),
  "describe": ("vilau_jax.cli.describe", "components, parameters, geometry of a model or preset"),
}

# What follows the name in an example, for `vilau --help`.
EXAMPLES = {
  "train": "--config=configs/quickstart_tower.py --workdir=runs/tower",
  "data import": "folder --source=pictures --output=records",
  "data inspect": "records",
  "tokenize": "--model=runs/tower --records=records --output=codes",
  "convert": "import llama --source=FOLDER --output=DIR",
  "generate batch": "--model=DIR --prompts=FILE --output=out",
  "generate": 'image --model=DIR --prompt="two foxes" --output=out',
  "chat": '--model=DIR --image=fox.png "What is it?"',
  "reconstruct": "--model=DIR --image=fox.png --output=out",
  "demo": "--model=DIR",
  "evaluate": "pope --model=DIR --data=POPE --output=out",
  "figures": "--run=runs/quickstart --output=figures",
  "bench": "--preset=quickstart",
  "plan": "--config=configs/pretrain_7b_256.py --topology=v5e:16x16",
  "describe": "--preset=vilau_7b_256",
}

USAGE = """vilau: one model that reads, writes, draws and animates.

  vilau COMMAND [--flags]      vilau COMMAND --help explains each command

{commands}

Start here: bash launch/quickstart.sh trains a small model on this machine."""


def usage() -> str:
  width = max(map(len, COMMANDS))
  lines = (
    f"  {name:<{width}}  {line}\n{'':<{width}}    vilau {name} {EXAMPLES[name]}"
    for name, (_, line) in COMMANDS.items()
  )
  return USAGE.format(commands="\n".join(lines))


def find(argv: list[str]) -> tuple[str, list[str]]:
  """Splits argv into the command's name and what follows it.

  Raises:
    ValueError: if no known command is named; suggests the nearest one.
  """
  for size in (2, 1):
    name = " ".join(argv[:size])
    if len(argv) >= size and name in COMMANDS:
      return name, argv[size:]
  typed = " ".join(argv[:2]) if argv[:1] == ["data"] else argv[0]
  near = difflib.get_close_matches(typed, COMMANDS, n=1)
  hint = f" (did you mean {near[0]!r}?)" if near else ""
  raise ValueError(f"unknown command {typed!r}{hint}\n\n{usage()}")


def _at_home(argument: str) -> str:
  """--output=~/out means a folder of one's home, but shells only say so of "~" in front."""
  name, equals, value = argument.partition("=")
  if name.startswith("-") and value.startswith("~"):
    value = os.path.expanduser(value)
  return f"{name}{equals}{value}"


def _parse(argv: list[str], values: flags.FlagValues) -> list[str]:
  values.unparse_flags()  # a notebook may have run the command before
  argv = [_at_home(argument) for argument in argv]
  try:
    return values(argv)
  except (AttributeError, KeyError) as error:  # how ml_collections reports an unknown config field
    said = str(error.args[0]).strip()
    if said[:1] in ("'", '"'):  # nothing but the name
      said = f"no field {said.strip(QUOTES)!r}"
    raise ValueError(f"--config: {said:.2000}") from error
  except (flags.IllegalFlagValueError, OSError) as error:  # with a config file's traceback in it
    said = [line for line in str(error).splitlines() if line.strip()]
    words = said[-1] if len(said) == 1 else f"{said[0]} {said[-1].strip()}"
    raise ValueError(f"{words:.2000}") from error
  except flags.Error:
    raise
  except (ValueError, TypeError, LookupError, SyntaxError, RecursionError, MemoryError) as error:
    # What ml_collections lets through of Python's parser, which reads the values.
    raise ValueError(f"the flags cannot be read: {str(error) or repr(error):.2000}") from error


def run(argv: list[str]) -> int:
  """Runs one command line without the program's name; returns the exit code."""
  if not argv or argv[0] in ("help", "--help", "-h", "--helpfull"):
    print(usage())
    return 0 if argv else 2
  os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(GPU_SHARE))  # as plans reckon
  try:
    name, rest = find(argv)
    module = importlib.import_module(COMMANDS[name][0])
    if any(a in ("--help", "-h", "-help") for a in rest):
      print(f"vilau {name}: {module.__doc__}\n\nflags:")
      print(module.FLAGS.module_help(module))
      return 0
    left = _parse([f"vilau {name}", *rest], module.FLAGS)
    return module.main(left[1:]) or 0
  except (ValueError, *_PATH_ERRORS, flags.Error) as error:
    if os.environ.get("VILAU_TRACEBACK"):
      raise
    print(f"vilau: error: {error}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print("\nvilau: interrupted; what was finished is kept", file=sys.stderr)
    return 130


def main() -> None:
  try:
    code = run(sys.argv[1:])
  except Exception as error:
    traceback.print_exc()
    code = 130 if _interrupted(error) else 1
  if code:
    _leave(code)
  sys.exit(code)


def _interrupted(error: BaseException | None) -> bool:
  """Whether an error came of clearing up after Ctrl-C."""
  while error is not None and not isinstance(error, KeyboardInterrupt):
    error = error.__context__
  return error is not None


def _leave(code: int) -> None:
  """Ends a process that has failed, also where Python would not: threads of a library may wait for
  what never comes. (orbax's do so for twenty minutes when memory for a checkpoint is short.)"""
  until = time.monotonic() + GRACE
  others = [t for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]
  for thread in others:
    thread.join(max(0.0, until - time.monotonic()))
  # After Ctrl-C at once: threads in C++ that still work would abort an interpreter that is closing.
  if code == 130 or any(thread.is_alive() for thread in others):
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
  main()
