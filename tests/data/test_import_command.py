import json
import pathlib
import subprocess
import sys
import time

import sources

from vilau_jax.data import imports, records

ROOT = pathlib.Path(__file__).parents[2]


def vilau(*arguments):
  command = [sys.executable, "-m", "vilau_jax.cli.main", "data", "import", *map(str, arguments)]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_import_command(tmp_path):
  root = sources.wids(tmp_path / "wids")
  done = vilau("wids", f"--source={root}", f"--output={tmp_path / 'a'}", "--workers=2", "--tfds")
  assert done.returncode == 0, done.stderr
  assert "4 accepted, 0 rejected" in done.stdout and (tmp_path / "a/tfds/features.json").exists()
  imports.run(sources.plan("wids", tmp_path), tmp_path / "b")
  assert records.Records(tmp_path / "a").info == records.Records(tmp_path / "b").info
  data = (root / "00.tar").read_bytes()
  (root / "00.tar").write_bytes(data[: len(data) // 4])
  done = vilau("wids", f"--source={root}", f"--output={tmp_path / 'cut'}", "--writer=tfrecord")
  assert done.returncode == 1 and "damaged" in done.stdout and "rejects.jsonl" in done.stdout
  lines = (tmp_path / "cut" / imports.REJECTS).read_text().splitlines()
  assert any("00.tar" in json.loads(line)["where"] for line in lines)
  done = vilau("wids", f"--source={root}", "--output=x", "--frames=4")
  assert done.returncode == 2 and "--frames is no option of the format wids" in done.stderr


def test_what_was_there_is_said_and_other_pictures_are_another_import(tmp_path):
  file = sources.llava(tmp_path / "raw")
  typed = ("llava", f"--source={file}", f"--output={tmp_path / 'out'}")
  (tmp_path / "empty").mkdir()
  done = vilau(*typed, f"--images={tmp_path / 'empty'}")
  assert done.returncode == 0 and "1 accepted, 6 rejected" in done.stdout, done.stderr
  assert "was there" not in done.stdout
  time.sleep(1.1)  # object stores know when a file was written to the second
  done = vilau(*typed, f"--images={tmp_path / 'empty'}")
  assert done.returncode == 0 and "out was there" in done.stdout
  done = vilau(*typed, f"--images={tmp_path / 'raw' / 'images'}")
  assert done.returncode == 2 and "'images': 'empty'" in done.stderr
