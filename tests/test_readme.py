"""Commands in README.md and launch/README.md exist, with their flags, files and extras."""

import ast
import importlib.util
import inspect
import pathlib
import re
import runpy
import shlex
import subprocess

import pytest

import vilau_jax
from vilau_jax import convert, presets
from vilau_jax.cli import data_import, evaluate, main
from vilau_jax.plan import topology

ROOT = pathlib.Path(__file__).parents[1]
PAGES = ("README.md", "launch/README.md", "CONTRIBUTING.md")
PROGRAMS = (
  "vilau",
  "bash",
  "pip",
  "python",
  "lmms-eval",
  ".ci/run",
  ".ci/nightly",
  "sbatch",
  "kubectl",
  "gcloud",
)
# What the first words behind a command are of.
TABLES = {
  "evaluate": (evaluate.NAMES,),
  "data import": (data_import.PLANS,),
  "convert import": (convert.FORMATS,),
  "convert export": (convert.FORMATS,),
  "generate": (("image", "video"),),
}
FOLDERS = re.compile(r"(?:configs|launch|notebooks|tests|vilau_jax)/")
WORDS = re.compile(r"^[A-Z]+$")  # COMMAND, FORMAT, TASK: for the reader to fill in


def commands(page: str) -> list[str]:
  """Command lines of code blocks and of `inline code`."""
  text = (ROOT / page).read_text("utf-8")
  python = re.compile(r"^```python\n.*?^```", re.S | re.M)
  text = python.sub("", text)
  lines = re.findall(r"^    (\S.*)$", text, re.M)
  lines += [
    x for block in re.findall(r"^```\w*\n(.*?)^```", text, re.S | re.M) for x in block.split("\n")
  ]
  prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
  lines += [code.replace("\\|", "|") for code in re.findall(r"`([^`\n]+)`", prose)]
  found = []
  for line in lines:
    line = line.split(" # ")[0].strip()
    line = re.sub(r"^(?:\w+=\S* )+", "", line)  # variables in front
    if line.split(" ")[0] in PROGRAMS and (" " in line or line.startswith(".ci")):
      found.append(line)
  return sorted(set(found))


ALL = [(page, line) for page in PAGES for line in commands(page)]


def test_the_pages_have_commands():
  assert sum(line.startswith("vilau ") for _, line in ALL) > 25
  assert "bash launch/quickstart.sh" in commands("README.md")


@pytest.mark.parametrize("page, line", ALL, ids=[f"{p}: {x[:50]}" for p, x in ALL])
def test_a_command_exists(page, line):
  check(line)


@pytest.mark.parametrize(
  "line",
  ["vilau evaluate popes", "vilau data import lava", "vilau convert import lama",
   "vilau convert eat", "vilau generate sound", "vilau describe --preset=vilau_9b",
   "vilau plan --topology=v5e:16x17x3", "vilau generate image --prompts_file=launch/none.txt",
   "python -m tests.full_size_plants", "python vilau_jax/evaluate/none.py",
   "bash launch/test.sh tests/model", "pip install -e '.[demos]'"],
)  # fmt: skip
def test_a_wrong_command_is_found(line):
  with pytest.raises((AssertionError, ValueError)):
    check(line)


def check(line: str) -> None:
  line = (
    line.replace("..", "x").replace("[", "").replace("]", "")
    if not line.startswith("pip")
    else line
  )
  words = shlex.split(line)
  for value in (word.split("=")[-1].partition(":")[0] for word in words):
    if FOLDERS.match(value) and not WORDS.match(pathlib.Path(value).stem):
      assert (ROOT / value).exists(), value
  program = {"vilau": vilau, "bash": script, "pip": install, "python": module}.get(words[0])
  if program is not None:
    program(words[1:])
  elif words[0].startswith("."):
    assert (ROOT / words[0]).is_file()


def vilau(words: list[str]) -> None:
  """Flags of a `vilau` command are its own; config files and fields are there."""
  if WORDS.match(words[0]):
    return
  words = [w for w in words if w not in ("--help", "--")]
  name, rest = main.find(words)
  source = pathlib.Path(importlib.util.find_spec(main.COMMANDS[name][0]).origin).read_text()
  own = {n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant)}
  given = [w for w in rest if w.startswith("--")]
  typed = [w for w in rest if not w.startswith("--")]
  if name == "convert" and typed:
    assert typed[0] in ("import", "export", "verify", "merge"), typed[0]
    name, typed = f"convert {typed[0]}", typed[1:]
  for word, table in zip(typed, TABLES.get(name, ())):
    assert word in table or WORDS.match(word), f"vilau {name} has no {word}"
  for word in given:
    key, _, value = word.partition("=")
    if not WORDS.match(value):
      assert key != "--preset" or value in presets.PRESETS, word
      assert key != "--topology" or topology.parse(value), word
  for word in given:
    key = word[2:].split("=")[0].split(".")[0]
    known = key in own or key.removeprefix("no") in own
    # Flags behind a bare -- belong to Apache Beam.
    assert known or key in ("runner", "project"), f"vilau {name} has no --{key}"
  config = next((w for w in given if w.startswith("--config=")), None)
  if config is not None:
    fields(config.split("=")[1], [w[9:] for w in given if w.startswith("--config.")])


def fields(config: str, overrides: list[str]) -> None:
  """A config file that is there, and fields that it has."""
  path, _, argument = config.partition(":")
  if WORDS.match(pathlib.Path(path).stem):
    return
  built = runpy.run_path(str(ROOT / path))["get_config"](argument)
  for word in overrides:
    at = built
    for key in word.split("=")[0].split("."):
      assert key in at or not at, f"{path} has no {word}"  # an empty dict takes any key
      at = at.get(key, {})


def script(words: list[str]) -> None:
  path = ROOT / words[0]
  assert path.is_file(), words[0]
  assert subprocess.run(["bash", "-n", path], capture_output=True).returncode == 0
  text = path.read_text()
  for word in words[1:]:
    if word.startswith("--") and "launch/test.sh" not in words[0]:
      assert word.split("=")[0] in text, f"{words[0]} does not know {word}"


def install(words: list[str]) -> None:
  tree = ast.parse((ROOT / "setup.py").read_text())
  extras = next(
    {key.value for key in node.value.keys}
    for node in tree.body
    if isinstance(node, ast.Assign) and node.targets[0].id == "EXTRAS"
  )
  for word in words:
    for named in re.findall(r"\[([\w,]+)\]", word):
      assert set(named.split(",")) <= extras | {"dev"}, word


def module(words: list[str]) -> None:
  if words[0] == "-m":
    assert importlib.util.find_spec(words[1]) is not None, words[1]


def test_python_of_the_readme_uses_what_is_there():
  blocks = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.S | re.M
  )
  assert blocks
  calls = [n for block in blocks for n in ast.walk(ast.parse(block)) if isinstance(n, ast.Call)]
  methods = [n for n in calls if isinstance(n.func, ast.Attribute) and n.func.value.id == "model"]
  assert len(methods) >= 3
  for call in methods:
    signature = inspect.signature(getattr(vilau_jax.VilaU, call.func.attr))
    signature.bind(None, *call.args, **{k.arg: k.value for k in call.keywords})


def test_help_names_every_command_of_the_readme():
  usage = main.usage()
  for name in main.COMMANDS:
    assert f"  {name} " in usage
    example = f"vilau {name} {main.EXAMPLES[name]}"
    assert example in usage
    vilau(shlex.split(example)[1:])
    assert any(f"`vilau {name}" in line for line in (ROOT / "README.md").read_text().split("\n")), (
      name
    )
