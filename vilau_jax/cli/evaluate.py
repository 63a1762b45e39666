"""measure a model

vilau evaluate quickstart --model=DIR --data=DIR --output=DIR [--runs=DIR] [--smoke] [--seed=N]
    every figure of the quickstart on held-out pictures, questions, prompts and videos; writes
    report.html (open it in a browser) and report.json. Interrupted, it goes on where it was.
"""

import difflib

from absl import flags
from rich.console import Console
from rich.table import Table

from vilau_jax.cli import compile_cache

TASKS = ("quickstart",)

# Overridable, so that several commands can be imported into one process.
_MODEL = flags.DEFINE_string(
  "model", None, "workdir of the last stage, or a model directory (required)", allow_override=True
)
_DATA = flags.DEFINE_string(
  "data", None, "directory that holds emoji/ and easy_vqa/ (required)", allow_override=True
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "where the report goes (required)", allow_override=True
)
_RUNS = flags.DEFINE_string(
  "runs", None, "where tower/, lm/, finetune/ and times.jsonl lie (default: beside the model)",
  allow_override=True,
)  # fmt: skip
_SMOKE = flags.DEFINE_bool("smoke", False, "a few samples of everything", allow_override=True)
_SEED = flags.DEFINE_integer("seed", 0, "same seed, same figures", allow_override=True)


def main(argv: list[str]) -> int:
  if len(argv) != 1 or argv[0] not in TASKS:
    typed = " ".join(argv)
    near = difflib.get_close_matches(typed, TASKS, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"give one task of {', '.join(TASKS)}; got {typed!r}{hint}")
  for flag in (_MODEL, _DATA, _OUTPUT):
    if not flag.value:
      raise ValueError(f"--{flag.name}=DIR is missing; see vilau evaluate --help")
  from vilau_jax.evaluate import quickstart  # flags first: jax and matplotlib take seconds

  compile_cache.use_compile_cache()
  result = quickstart.run(
    _MODEL.value, _DATA.value, _OUTPUT.value,
    runs_directory=_RUNS.value, seed=_SEED.value, smoke=_SMOKE.value,
  )  # fmt: skip
  show(result.scores)
  print(f"\nreport:  {result.page}\nfigures: {result.figures}")
  print(f"\nnext: open {result.page} in a browser, or draw something yourself:")
  print(f'  vilau generate image --model={_MODEL.value} --prompt="two foxes on a blue background"'
        " --output=out")  # fmt: skip
  return 0


def show(scores) -> None:
  """Prints the table of figures."""
  from vilau_jax.evaluate.figures import GROUPS, shown

  table = Table("figure", "value", "without", "n", title="Held-out data", title_justify="left")
  for group in GROUPS.values():
    for figure in group:
      if figure.headline and figure.name in scores.values:
        value = f"{scores.shown(figure)} {scores.error(figure)}"
        n = str(scores.n[figure.name])
        table.add_row(figure.name, value, scores.floor(figure), n)
    table.add_section()
  table.add_row("minutes_total", shown(scores.values["minutes_total"], "min"), "", "")
  Console().print(table)
