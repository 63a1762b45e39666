"""What pip installs: complete, light to import, typed."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
HEAVY = ("tensorflow", "torch", "jax", "flax", "numpy")


def test_importing_is_quick_and_brings_no_heavy_package():
  """The public classes need jax, but neither TensorFlow nor torch."""
  bare = "import sys, vilau_jax; print([m for m in sys.argv[1:] if m in sys.modules])"
  began = time.monotonic()
  said = subprocess.run(
    [sys.executable, "-c", bare, *HEAVY], capture_output=True, text=True, cwd=ROOT, check=True
  )
  assert time.monotonic() - began < 1.5
  assert said.stdout.strip() == "[]"
  used = (
    "import sys, vilau_jax; vilau_jax.load; print([m for m in sys.argv[1:] if m in sys.modules])"
  )
  said = subprocess.run(
    [sys.executable, "-c", used, "tensorflow", "torch", "gradio", "matplotlib"],
    capture_output=True, text=True, cwd=ROOT, check=True,
  )  # fmt: skip
  assert said.stdout.strip() == "[]"


def build(kind: str, source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
  """By the build backend itself, so nothing is downloaded."""
  code = f"from setuptools import build_meta as b; print('\\n' + b.build_{kind}({str(target)!r}))"
  said = subprocess.run(
    [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=True
  )
  return target / said.stdout.strip().split("\n")[-1]


@pytest.mark.slow
def test_sdist_and_wheel_hold_everything_and_run_in_a_clean_environment(tmp_path):
  left_out = shutil.ignore_patterns(
    ".venv*", ".git", "runs", "*.egg-info", "build", "dist", "__pycache__"
  )
  shutil.copytree(ROOT, tmp_path / "tree", ignore=left_out, symlinks=True)
  sdist = build("sdist", tmp_path / "tree", tmp_path)
  with tarfile.open(sdist) as archive:
    archive.extractall(tmp_path / "unpacked", filter="data")
  (unpacked,) = (tmp_path / "unpacked").iterdir()
  for name in ("LICENSE", "NOTICE", "configs/quickstart_lm.py", "launch/quickstart.sh", "tests",
               ".ci/run"):  # fmt: skip
    assert (unpacked / name).exists(), name
  wheel = build("wheel", unpacked, tmp_path)  # from the sdist, as an installer would
  held = set(zipfile.ZipFile(wheel).namelist())
  wanted = {
    str(path.relative_to(ROOT))
    for path in (ROOT / "vilau_jax").rglob("*")
    if path.is_file() and path.suffix != ".pyc"
  }
  assert wanted <= held, wanted - held
  assert not any(name.startswith(("tests", "notebooks")) for name in held)
  assert any(name.endswith("NOTICE") for name in held)

  subprocess.run([sys.executable, "-m", "venv", tmp_path / "clean"], check=True)
  python = tmp_path / "clean" / "bin" / "python"
  where = subprocess.run(
    [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
    capture_output=True, text=True, check=True,
  ).stdout.strip()  # fmt: skip
  subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True)
  # What it depends on is that of these tests; the editable install of the checkout is not.
  pathlib.Path(where, "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
  code = (
    "import vilau_jax, sys; assert sys.prefix in vilau_jax.__file__, vilau_jax.__file__;"
    "from vilau_jax.data.formats.emoji import sprites; assert len(sprites(24)) > 5;"
    "from vilau_jax.evaluate import paper; print('right')"
  )
  alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
  said = subprocess.run(
    [python, "-c", code], cwd=tmp_path, env=alone, capture_output=True, text=True
  )
  assert said.stdout.strip() == "right", said.stderr
  vilau = subprocess.run([python.with_name("vilau"), "--help"], capture_output=True, text=True)
  assert "vilau COMMAND" in vilau.stdout
