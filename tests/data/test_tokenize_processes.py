"""`vilau tokenize` as two operating-system processes at once, as two machines that share a disk."""

import os
import pathlib
import subprocess
import sys

import experiments
import jax
import pytest
import sources

from vilau_jax.data import imports, records
from vilau_jax.train import loop

ROOT = pathlib.Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """A tower that was trained for a step, and seven shards of records."""
  root = tmp_path_factory.mktemp("tokenize")
  config = experiments.tower_run(root)
  config.steps = 1
  loop.train(config, root / "tower", devices=jax.devices()[:1])
  imports.run(sources.plan("llava", root / "raw"), root / "records", records_per_shard=1)
  return root


def begin(root, output, index, count):
  command = [sys.executable, "-m", "vilau_jax.cli.main", "tokenize", f"--model={root / 'tower'}"]
  command += [f"--records={root / 'records'}", f"--output={root / output}", "--batch_size=4"]
  command += [f"--process_index={index}", f"--process_count={count}"]
  paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
  return subprocess.Popen(
    command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths},
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
  )  # fmt: skip


def end(*processes):
  said = [process.communicate(timeout=300)[0] for process in processes]
  assert [process.returncode for process in processes] == [0] * len(processes), said
  return said


def bytes_of(path):
  return {p.name: p.read_bytes() for p in sorted(path.iterdir())}


def test_two_processes_at_once_write_what_one_does(root):
  end(begin(root, "one", 0, 1))
  said = end(begin(root, "two", 0, 2), begin(root, "two", 1, 2))
  assert any("7 records with codes of tower" in text for text in said)
  assert bytes_of(root / "two") == bytes_of(root / "one")
  # Killed, one of them with a shard under way; someone removes a finished one; both start again.
  whole = bytes_of(root / "one")
  files = list(records.Records(root / "one").shards)
  first, second = begin(root, "again", 0, 2), begin(root, "again", 1, 2)
  while not (root / "again" / files[0]).exists() and first.poll() is None:
    pass
  for process in (first, second):
    process.kill()
    process.communicate()
  (root / "again" / files[0]).unlink()
  (root / "again" / records.INFO).unlink(missing_ok=True)
  end(begin(root, "again", 0, 2), begin(root, "again", 1, 2))
  assert bytes_of(root / "again") == whole
