"""measure a model: every table of the paper, and the quickstart

vilau evaluate TASK --model=DIR --data=DIR --output=DIR
    predictions.jsonl, scores.json and a table beside the paper's numbers. Interrupted or killed,
    the same command goes on where it was. Without --model, --predictions=FILE scores given
    answers. Exit code 1: the scores are partial (a judge is gone, another tool must give scores).
    A process uses all devices of its machine. Several machines share the work with
    --process_index=0 --process_count=4 and one --output that all of them see; the first one scores.
{tasks}
vilau evaluate report --output=DIR
    collects all scores.json below DIR: report.md with tables and PNG charts
vilau evaluate quickstart --model=DIR --data=DIR --output=DIR [--runs=DIR] [--smoke] [--seed=N]
    every figure of the quickstart on held-out pictures, questions, prompts and videos; writes
    report.html (open it in a browser) and report.json. Interrupted, it goes on where it was.
"""

import difflib

from absl import flags
from rich.console import Console
from rich.table import Table

from vilau_jax.cli import compile_cache
from vilau_jax.cli.given import none, only
from vilau_jax.evaluate.catalogue import TASKS, WITHOUT_DATA
from vilau_jax.evaluate.judge import JudgeSettings
from vilau_jax.evaluate.task import Options

__doc__ = __doc__.format(tasks="".join(f"      {n:<16}{line}\n" for n, (*_, line) in TASKS.items()))
NAMES = (*TASKS, "report", "quickstart")


FLAGS = flags.FlagValues()


def _text(name: str, words: str):
  return flags.DEFINE_string(name, None, words, flag_values=FLAGS)


def _number(name: str, default: int | None, words: str, least: int = 0):
  return flags.DEFINE_integer(name, default, words, lower_bound=least, flag_values=FLAGS)


_MODEL = _text("model", "model directory or training workdir")
_DATA = _text("data", "the benchmark's directory (required but for easy-vqa)")
_OUTPUT = _text("output", "where predictions and scores go (required)")
_PREDICTIONS = _text("predictions", "score this file of answers, without a model")
_JUDGE_URL = _text("judge_url", "judges: base URL of an OpenAI-compatible server")
_JUDGE_MODEL = _text("judge_model", "judges: the model's name there")
_JUDGE_KEY = flags.DEFINE_string(
  "judge_key_env", "OPENAI_API_KEY", "judges: environment variable with the key", flag_values=FLAGS
)
_JUDGE_TRIES = _number("judge_tries", 6, "judges: tries of one question", least=1)
_JUDGE_TIMEOUT = flags.DEFINE_float(
  "judge_timeout", 60.0, "judges: seconds of one try", lower_bound=0.01, flag_values=FLAGS
)
_JUDGE_WAIT = flags.DEFINE_float(
  "judge_wait",
  1.0,
  "judges: seconds before the second try, then doubled",
  lower_bound=0.0,
  flag_values=FLAGS,
)
_INDEX = _number("process_index", 0, "which of the processes this is")
_PROCESSES = _number("process_count", 1, "processes that share the work", least=1)
_RUNS = _text("runs", "quickstart: where tower/, lm/, finetune/ and times.jsonl lie")
_SMOKE = flags.DEFINE_bool(
  "smoke", False, "quickstart: a few samples of everything", flag_values=FLAGS
)
_SHARED = flags.DEFINE_bool(
  "all_devices", False, "share each batch among the devices of this process", flag_values=FLAGS
)
_INT8 = flags.DEFINE_bool(
  "int8",
  False,
  "weights in eight bits, on one device or, with --all_devices, on all",
  flag_values=FLAGS,
)
# The flags below are fields of Options under the same names.
_OPTIONS = (
  _text("protocol", "whose rules; every task has its own default"),
  _text("split", "of the data"),
  _number("limit", 0, "only the first N, 0 = all"),
  _number("batch_size", 16, "answered or drawn at once", least=1),
  _number("seed", 0, "same seed, same outputs"),
  _number("max_new_tokens", None, "longest answer, in tokens", least=1),
  flags.DEFINE_bool("strict", False, "gqa: refuse missing predictions", flag_values=FLAGS),
  _text("judge_prompt", "file with the words to the judge (default: those of lmms-eval)"),
  _text("unparsed", "video QA: verdicts that can't be read: drop, or no"),
  _text("inception", "FID: Inception weights, .pth or .safetensors"),
  _text("lpips", "reconstruction: LPIPS weights, .safetensors or .npz"),
  _text("resize", "FID: clean, pytorch_fid or tf1"),
  _text("classnames", "imagenet: JSON list of the names of the classes"),
  _text("templates", "imagenet: JSON list of sentences with {}"),
  _text("reference", "mjhq-30k, cfg-sweep: folder of the reference pictures"),
  _text("external_scores", "genai-bench, vbench: what their own tools found"),
  _number("num", None, "vbench: videos a prompt", least=1),
)
_SCALES = flags.DEFINE_list(
  "cfg_scales", [], "mjhq-30k: guidance; cfg-sweep: several", flag_values=FLAGS
)


_ALONE = {
  "report": ("output",), "quickstart": ("model", "data", "output", "runs", "seed", "smoke"),
}  # fmt: skip


def main(argv: list[str]) -> int:
  if len(argv) != 1 or argv[0] not in NAMES:
    typed = " ".join(argv)
    near = difflib.get_close_matches(typed, NAMES, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"give one task of {', '.join(NAMES)}; got {typed!r}{hint}")
  name = argv[0]
  if name in _ALONE:
    only(FLAGS, _ALONE[name], f"{name} takes {', '.join(f'--{flag}' for flag in _ALONE[name])}")
  else:
    others = [flag for flag in FLAGS if flag not in ("runs", "smoke")]
    only(FLAGS, others, "they are for quickstart")
  if name == "report":
    return report()
  if not _PREDICTIONS.value or name == "quickstart":
    _need(_MODEL)
  if name not in WITHOUT_DATA:
    _need(_DATA)
  _need(_OUTPUT)
  compile_cache.use_compile_cache()
  return quickstart() if name == "quickstart" else benchmark(name)


def _need(flag) -> None:
  if not flag.value:
    raise ValueError(f"--{flag.name}=DIR is missing; see vilau evaluate --help")


def benchmark(name: str) -> int:
  from vilau_jax.cli.progress import Bar  # flags first: jax takes seconds
  from vilau_jax.evaluate import paper, runner

  judge = None
  if _JUDGE_URL.value:
    judge = JudgeSettings(
      _JUDGE_URL.value, _JUDGE_MODEL.value or "", _JUDGE_KEY.value, tries=_JUDGE_TRIES.value,
      timeout=_JUDGE_TIMEOUT.value, wait=_JUDGE_WAIT.value,
    )  # fmt: skip
  if not 0 <= _INDEX.value < _PROCESSES.value:
    raise ValueError(
      f"--process_index={_INDEX.value} must lie below --process_count={_PROCESSES.value}"
    )
  if _PREDICTIONS.value is not None:
    none(FLAGS, ("model",), "--predictions has the answers")
  given = {flag.name: flag.value for flag in _OPTIONS}
  options = Options(judge=judge, cfg_scales=tuple(map(float, _SCALES.value)), **given)
  with Bar("predictions") as bar:
    result = runner.run(
      name, data=_DATA.value, output=_OUTPUT.value, model=_model(),
      predictions=_PREDICTIONS.value, options=options, progress=bar.update,
      process=(_INDEX.value, _PROCESSES.value),
    )  # fmt: skip
  if "predicted" in result:
    print(f"{result['predicted']} predictions are there; process 0 waits for all, and scores")
    return 0
  head, rows = paper.rows(result)
  partial = f"PARTIAL ({result['partial']}): " if result["partial"] else ""
  title = f"{partial}{name}, {result['split']}, protocol {result['protocol']}, n = {result['n']}"
  table = Table(*head, title=title, title_justify="left")
  for row in rows:
    table.add_row(*row)
  Console().print(table)
  for line in (*paper.differences(result), *result["notes"]):
    print(f"  note: {line}")
  print(f"\nscores: {_OUTPUT.value}/scores.json")
  return 1 if result["partial"] else 0


def _model():
  """The model's directory, or the model on all devices or in eight bits."""
  if not ((_SHARED.value or _INT8.value) and _MODEL.value):
    return _MODEL.value
  import jax

  from vilau_jax import api, sharding

  mesh = sharding.make_mesh(devices=jax.local_devices()) if _SHARED.value else None
  return api.load(_MODEL.value, mesh, "int8" if _INT8.value else None)


def report() -> int:
  _need(_OUTPUT)
  from vilau_jax.evaluate import summary

  path = summary.write(_OUTPUT.value)
  print(f"report: {path}")
  return 0


def quickstart() -> int:
  from vilau_jax.evaluate import quickstart as figures  # flags first: jax takes seconds

  given = {flag.name: flag.value for flag in _OPTIONS}
  result = figures.run(
    _MODEL.value, _DATA.value, _OUTPUT.value,
    runs_directory=_RUNS.value, seed=given["seed"], smoke=_SMOKE.value,
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
