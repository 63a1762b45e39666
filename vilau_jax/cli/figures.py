"""draw a run's figures as PNG files

vilau figures --run=DIR --output=DIR
    --run is a training workdir or a folder of them, such as runs/quickstart. Losses of each stage,
    the samples it drew while it trained, and, where `vilau evaluate quickstart` has written its
    parts there, reconstructions by depth and tables of what was asked and what was drawn. Needs
    neither the model nor its data, and can be repeated while a run goes on.
"""

from absl import flags

FLAGS = flags.FlagValues()
_RUN = flags.DEFINE_string(
  "run", None, "training workdir, or a folder of them (required)", flag_values=FLAGS
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "where the PNG files go (required)", flag_values=FLAGS
)


def main(argv: list[str]) -> int:
  if argv:
    raise ValueError(f"unexpected argument {argv[0]!r}; give --run=DIR and --output=DIR")
  for flag in (_RUN, _OUTPUT):
    if not flag.value:
      raise ValueError(f"--{flag.name}=DIR is missing; see vilau figures --help")
  from vilau_jax.evaluate import run_figures  # flags first: matplotlib takes a second

  written, missing = run_figures.write(_RUN.value, _OUTPUT.value)
  for line in missing:
    print(f"  note: {line}")
  for path in written:
    print(path)
  return 0
