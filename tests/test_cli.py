"""The command line as a user meets it: real processes, exit codes, messages."""

import importlib
import json
import subprocess
import sys

import pytest

from vilau_jax.cli import main


def vilau(*args: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", "vilau_jax.cli.main", *args], capture_output=True, text=True
  )


def test_help_lists_every_command():
  result = vilau("--help")
  assert result.returncode == 0
  assert all(name in result.stdout for name in main.COMMANDS)


@pytest.mark.parametrize("argv, hint", [(["trian"], "train"), (["data", "imprt"], "data import")])
def test_unknown_command_suggests_the_nearest(argv, hint, capsys):
  assert main.run(argv) == 2
  assert f"did you mean '{hint}'" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(main.COMMANDS))
def test_every_command_has_help_that_teaches(name):
  result = vilau(*name.split(), "--help")
  assert result.returncode == 0, result.stderr
  assert f"vilau {name}" in result.stdout and "--" in result.stdout
  assert len(result.stdout) > 200


def test_unknown_flag_is_bad_input():
  result = vilau("describe", "--prest=tiny")
  assert result.returncode == 2
  assert "prest" in result.stderr and "Traceback" not in result.stderr


def test_importing_the_package_is_cheap_and_quiet():
  code = (
    "import sys, time; t = time.time(); import vilau_jax; "
    "assert not {'jax', 'tensorflow', 'torch'} & set(sys.modules), 'heavy import'; "
    "print(time.time() - t)"
  )
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert result.returncode == 0, result.stderr
  assert float(result.stdout) < 1.5


def test_commands_of_one_process_keep_their_flags_apart(tmp_path, capsys):
  """As in a notebook: neither another command's defaults nor what was typed before."""
  for module, _ in main.COMMANDS.values():
    importlib.import_module(module)
  typed = ["describe", "--preset=quickstart"]
  assert main.run([*typed, "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["parameters"]
  assert main.run(typed) == 0
  assert not capsys.readouterr().out.startswith("{")
  missing = tmp_path / "missing"
  common = [f"--model={missing}", f"--output={tmp_path}"]
  assert main.run(["generate", "image", "--prompt=a", *common]) == 2
  said = capsys.readouterr().err  # of the model, and not of --num, which evaluate has with no value
  assert str(missing) in said


def test_a_tilde_is_ones_home(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.chdir(tmp_path)
  assert main.run(["reconstruct", "--model=~/none", "--image=~/a.png", "--output=~/out"]) == 2
  assert f"{tmp_path}/none" in capsys.readouterr().err
  assert not (tmp_path / "~").exists()
