import json
import shutil

import numpy as np
import pytest

from vilau_jax.data import imports, media, records
from vilau_jax.data.formats import easy_vqa as V


@pytest.fixture(scope="module")
def root():
  return V.find(None)


def test_captions_from_pixels_agree_with_the_published_answers(root):
  agree, total = 0, 0
  for split, size in (("train", 0), ("test", 60)):
    for number, asked in list(V._questions(root, split).items())[:600]:
      path = root / split / "images" / f"{number}.png"
      image = media.to_square(path, size) if size else np.asarray(media.open_image(path))
      for said, seen in zip(V.from_questions(asked), V.from_pixels(image)):
        if said is not None:
          total += 1
          agree += said == seen
  assert total > 2000
  assert agree / total > 0.99


@pytest.mark.parametrize(
  ("asked", "found"),
  [
    ([("what color is the shape?", "blue")], ("blue", None)),
    ([("what is the red shape?", "triangle")], ("red", "triangle")),
    ([("what is the color of the circle?", "teal")], ("teal", "circle")),
    ([("is there not a black shape in the image?", "no")], ("black", None)),
    ([("is there not a black shape in the image?", "yes")], (None, None)),
    ([("does the image contain a circle?", "yes")], (None, "circle")),
    ([("is no triangle present?", "no")], (None, "triangle")),
    ([("is a red shape present?", "no")], (None, None)),
  ],
)
def test_what_questions_settle(asked, found):
  assert V.from_questions(asked) == found


def convert(output, source=None, **options):
  counts = imports.run_parts(V.plans(source, **options), output)
  return {part: found["accepted"] for part, found in counts.items()}


def test_import_keeps_the_split_and_the_questions(root, tmp_path, monkeypatch):
  assert convert(tmp_path, limit=20) == {"train": 20, "test": 20}
  for split in V.SPLITS:
    part = records.Records(tmp_path / split)
    published = json.loads((root / split / "questions.json").read_text())
    for number, record in enumerate(part):
      said = record["conversations_value"]
      want = [(q, a) for q, a, i in published if i == number]
      assert list(zip(said[::2], said[1::2])) == want
      assert media.open_image(record["images"][0]).size == (60, 60)
      colors, shapes = V.from_questions(want)
      article, color, shape = record["caption"].split()
      assert article == "a" and color in V.COLORS and shape in V.SHAPES
      assert colors in (None, color) and shapes in (None, shape)
  before = (tmp_path / "train" / records.INFO).stat().st_mtime_ns
  convert(tmp_path, limit=20)
  assert (tmp_path / "train" / records.INFO).stat().st_mtime_ns == before
  with pytest.raises(ValueError, match="another import"):
    convert(tmp_path, limit=20, size=64)
  convert(tmp_path / "kept", limit=2, size=0)
  assert records.Records(tmp_path / "kept" / "test")[0]["width"] == [64]
  monkeypatch.setattr(V, "PICTURES", 6)
  plans = V.plans(limit=20)
  imports.run_parts(plans, tmp_path / "again", executor=imports.in_processes(2))
  for split in V.SPLITS:
    first, again = (records.Records(tmp_path / name / split) for name in ("", "again"))
    assert list(first) == list(again) and len(again.shards) == 4


def test_a_broken_picture_costs_only_itself(root, tmp_path):
  for split in V.SPLITS:
    shutil.copytree(root / split, tmp_path / "raw" / split, ignore=lambda d, names: names[30:])
    asked = json.loads((root / split / "questions.json").read_text())
    kept = json.dumps([row for row in asked if row[2] < 3])
    (tmp_path / "raw" / split / "questions.json").write_text(kept)
    for number in range(3):
      picture = f"{split}/images/{number}.png"
      shutil.copy(root / picture, tmp_path / "raw" / picture)
  broken = tmp_path / "raw/test/images/1.png"
  broken.write_bytes(broken.read_bytes()[:200])
  assert convert(tmp_path / "out", tmp_path / "raw") == {"train": 3, "test": 2}
  (line,) = (tmp_path / "out/test" / imports.REJECTS).read_text().splitlines()
  found = json.loads(line)
  assert (found["id"], found["where"]) == ("test/1", "test/images/1.png")
  assert "cut-off" in found["reason"]


def test_missing_package_and_broken_sources_are_explained(tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(V.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install"):
      V.plans()
  with pytest.raises(ValueError, match=r"questions\.json is missing"):
    V.plans(tmp_path)
  for split in V.SPLITS:
    (tmp_path / split).mkdir()
    (tmp_path / split / "questions.json").write_text("[[1]]")
  with pytest.raises(ValueError, match="not a list of"):
    V.plans(tmp_path)
