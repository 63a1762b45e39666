import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from vilau_jax.data import codes, forms, imports, inspect, records
from vilau_jax.data.formats import emoji_import
from vilau_jax.data.tokenizer import Tokenizer, record_texts, train_tokenizer

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
  root = tmp_path_factory.mktemp("inspect")
  plans = emoji_import.plans(scenes=12, videos=4, test_scenes=2, test_videos=2)
  imports.run_parts(plans, root / "raw")
  encode = lambda images: np.arange(len(images) * 100).reshape(-1, 25, 4) % 256  # noqa: E731
  for part in ("train_scenes", "train_videos"):
    codes.add_codes(root / "raw" / part, root / "coded" / part, encode, "tower", image_size=60)
  return root


def test_summary_and_sheet(coded):
  found = records.Records(coded / "coded" / "train_videos")
  text = inspect.summary(found)
  assert "4 t2v" in text and "16 (16 60x60)" in text and "4 records by tower" in text
  assert "moving" in text and text.count("#") >= 40 and "words a record" in text
  sheet = inspect.sheet(found, count=3, columns=4)
  assert sheet.dtype == np.uint8 and sheet.shape[1] == 4 * 124 + 4


def test_histogram():
  lines = inspect.histogram([1] * 10 + [9] * 5)
  assert len(lines) == 9 and lines[1].endswith("10 " + "#" * 40)
  assert lines[-1].endswith("5 " + "#" * 20) and lines[4].endswith("0 ")
  assert inspect.histogram([3, 3])[1].split()[3:] == ["2", "#" * 40]


def test_row_is_drawn_in_the_colours_of_what_it_holds(coded, tmp_path):
  found = records.Records(coded / "coded" / "train_scenes")
  tokenizer = Tokenizer(train_tokenizer(record_texts(found), tmp_path / "t.model"))
  settings = forms.SequenceSettings(system_prompt="", frames=0)
  for form, absent in (("t2i", "picture"), ("i2t", "picture, supervised")):
    row = inspect.first_row(found, form, tokenizer, settings, 200)
    picture = inspect.draw_row(row, tokenizer)[36:]
    seen = {name for name, c in inspect.COLORS.items() if (picture == c).all(-1).sum() > 500}
    assert seen == set(inspect.COLORS) - {absent}
  with pytest.raises(ValueError, match="fits into 10 positions"):
    inspect.first_row(found, "t2i", tokenizer, settings, 10)


def vilau(*arguments):
  command = [sys.executable, "-m", "vilau_jax.cli.main", "data", *map(str, arguments)]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_commands(coded, tmp_path):
  small = ("--scenes=5", "--videos=2", "--test_scenes=2", "--test_videos=2")
  done = vilau("import", "emoji", f"--output={tmp_path / 'data'}", *small)
  assert done.returncode == 0 and "train_scenes: 5 accepted, 0 rejected" in done.stdout
  assert len(records.Records(tmp_path / "data" / "train_scenes")) == 5
  done = vilau("inspect", coded / "coded", "--as_batch", f"--output={tmp_path / 'pictures'}")
  assert done.returncode == 0, done.stderr
  assert "12 i2t" in done.stdout and "4 t2v" in done.stdout
  files = sorted(p.name for p in (tmp_path / "pictures").iterdir())
  parts = ("train_scenes", "train_videos")
  assert files == [f"{part}-{what}.png" for part in parts for what in ("row", "sheet")]
  with Image.open(tmp_path / "pictures" / files[1]) as image:
    assert image.width > 500
  done = vilau("inspect", coded / "coded", f"--output={tmp_path / 'one' / 'x.png'}")
  assert done.returncode == 0, done.stderr
  sheets = sorted(p.name for p in (tmp_path / "one").iterdir())
  assert sheets == [f"{part}-sheet.png" for part in parts]  # and not one over the other


@pytest.mark.parametrize(
  ("arguments", "problem"),
  [
    (("import", "emojy", "--output=x"), "did you mean 'emoji'"),
    (("import", "folder", "--source=/nowhere", "--output=x"), "no folder at /nowhere"),
    (("import", "emoji"), "--output=DIR"),
    (("inspect", "/nowhere"), "no directory at /nowhere"),
  ],
)
def test_typos_are_explained(arguments, problem):
  done = vilau(*arguments)
  assert done.returncode == 2
  assert problem in done.stderr and "Traceback" not in done.stderr
