"""The scripts and documents that a newcomer touches first."""

import pathlib
import re
import shlex
import subprocess

import pytest

from vilau_jax.cli import main

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = ("launch/environment.sh", "launch/quickstart.sh", "launch/test.sh", ".ci/run")


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_parse(script):
  subprocess.run(["bash", "-n", ROOT / script], check=True)


def test_quickstart_explains_itself_and_refuses_typos():
  script = ROOT / "launch" / "quickstart.sh"
  told = subprocess.run(["bash", script, "--help"], capture_output=True, text=True, check=True)
  assert "--smoke" in told.stdout and "continues where it was" in told.stdout
  wrong = subprocess.run(["bash", script, "--smok"], capture_output=True, text=True)
  assert wrong.returncode == 2 and "--smok" in wrong.stderr


def _commands():
  """Every `vilau ...` line of the documents, in code blocks, tables and sentences."""
  for name in ("README.md", "launch/README.md", "launch/quickstart.sh"):
    text = (ROOT / name).read_text()
    for found in re.findall(r"(?:`|^\s+|^)(vilau [a-z]+ [^`\n|]*)", text, re.MULTILINE):
      yield name, found.strip()


@pytest.mark.parametrize("name, command", list(_commands()))
def test_documented_commands_exist_with_their_flags(name, command):
  words = shlex.split(command.replace("$", ""), comments=True)[1:]
  if words[0] == "COMMAND":
    return
  found, rest = main.find(words)
  module = pathlib.Path(ROOT, *main.COMMANDS[found][0].split(".")).with_suffix(".py").read_text()
  for flag in re.findall(r"--([a-z_]+)", " ".join(rest)):
    assert flag in ("help", "config") or f'"{flag}"' in module, f"{name}: {found} has no --{flag}"
  for config in re.findall(r"--config=(configs/\w+\.py)", command):
    assert (ROOT / config).exists(), f"{name} names {config}"


def test_the_map_names_what_exists():
  tree = (ROOT / "README.md").read_text().split("```\nvilau_jax/")[1].split("```")[0]
  for line in tree.splitlines():
    if line.startswith("  "):
      assert (ROOT / "vilau_jax" / line.split()[0]).exists(), line
