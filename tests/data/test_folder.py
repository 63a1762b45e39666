import io
import json

import numpy as np
import pytest
from PIL import Image

from vilau_jax.data import imports, media, records
from vilau_jax.data.formats import folder


def save(path, value=0, size=(9, 6)):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
  root = tmp_path / "pictures"
  for i, name in enumerate(("b.png", "a.jpg", "sub/c.webp", "d.bmp")):
    save(root / name, 40 * i)
    (root / name).with_suffix(".txt").write_text(f" caption of {name}\n")
  return root


def rejects(output):
  return {
    row["id"]: row["reason"]
    for row in map(json.loads, (output / imports.REJECTS).read_text().splitlines())
  }


def convert(root, output, size=0):
  return imports.run(folder.plan(root, size=size), output)


def test_pictures_beside_texts(root, tmp_path):
  counts = convert(root, tmp_path / "out")
  assert counts == {"accepted": 4, "rejected": 0}
  found = list(records.Records(tmp_path / "out"))
  assert [r["id"] for r in found] == ["a.jpg", "b.png", "d.bmp", "sub/c.webp"]
  assert [r["caption"] for r in found] == [f"caption of {r['id']}" for r in found]
  assert found[1]["images"] == [(root / "b.png").read_bytes()]
  assert Image.open(io.BytesIO(found[2]["images"][0])).format == "PNG"
  assert (found[0]["width"], found[0]["height"]) == ([9], [6])
  convert(root, tmp_path / "again")
  for file in records.Records(tmp_path / "out").shards:
    assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
  convert(root, tmp_path / "square", size=8)
  assert media.open_image(records.Records(tmp_path / "square")[0]["images"][0]).size == (8, 8)


@pytest.mark.parametrize("name", ["captions.csv", "captions.jsonl"])
def test_lists_of_captions(root, tmp_path, name):
  rows = [("sub/c.webp", 'a "c", really'), ("a.jpg", "an a")]
  if name.endswith("csv"):
    text = "caption,file\n" + "".join(f'"{c.replace(chr(34), chr(34) * 2)}",{f}\n' for f, c in rows)
  else:
    text = "\n".join(json.dumps({"file": f, "caption": c}) for f, c in rows) + "\n\n"
  (root / name).write_text(text)
  convert(root, tmp_path / "out")
  assert [(r["id"], r["caption"]) for r in records.Records(tmp_path / "out")] == rows


def test_rejected_files_are_listed_with_reasons(root, tmp_path):
  save(root / "no_caption.png")
  save(root / "empty.png")
  (root / "empty.txt").write_text(" \n")
  (root / "text.png").write_text("no picture")
  (root / "text.txt").write_text("x")
  noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
  (root / "cut.png").write_bytes(media.encode_png(noise)[:2000])
  (root / "cut.txt").write_text("x")
  Image.fromarray(np.zeros((8200, 8200), np.uint8)).save(root / "huge.png")
  (root / "huge.txt").write_text("x")
  save(root / "one.png", size=(1, 1))
  (root / "one.txt").write_text("one pixel")
  counts = convert(root, tmp_path / "out")
  assert counts == {"accepted": 5, "rejected": 5}
  found = rejects(tmp_path / "out")
  for file, reason in {
    "no_caption.png": "no caption: no_caption.txt is missing",
    "empty.png": "caption is empty",
    "text.png": "not a picture",
    "cut.png": "broken or cut-off",
    "huge.png": "8200x8200",
  }.items():
    assert reason in found[file]


def test_lists_may_name_what_is_not_there(root, tmp_path):
  listed = (
    ("a.jpg", "x"),
    ("gone.png", "x"),
    ("../secret.png", "x"),
    ("b.png", None),
    ("d.bmp", ""),
  )
  rows = [{"file": file, "caption": caption} for file, caption in listed]
  save(tmp_path / "secret.png")
  (root / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
  assert convert(root, tmp_path / "out") == {"accepted": 1, "rejected": 4}
  found = rejects(tmp_path / "out")
  assert "missing" in found["gone.png"] and "outside" in found["../secret.png"]


@pytest.mark.parametrize(
  ("files", "problem"),
  [
    ({}, "holds no pictures"),
    (
      {"a.png": "no picture", "a.txt": "x"},
      "none of the entries of pictures was accepted; the first: a.png",
    ),
    ({"captions.csv": "name,text\n"}, "lacks the columns"),
    ({"captions.jsonl": "\nnonsense"}, "line 2: not JSON"),
    ({"captions.jsonl": '{"file": "a"}'}, r"line 1: .* lacks \['caption'\]"),
    ({"captions.jsonl": "[1]"}, "entry 0: an entry must be an object"),
    ({"captions.jsonl": "", "captions.csv": ""}, "both"),
  ],
)
def test_broken_folders_are_explained(tmp_path, files, problem):
  root = tmp_path / "pictures"
  root.mkdir()
  for name, text in files.items():
    (root / name).write_text(text)
  with pytest.raises(ValueError, match=problem):
    convert(root, tmp_path / "out")
  assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.partial"))
  with pytest.raises(ValueError, match="no folder"):
    convert(tmp_path / "gone", tmp_path / "out")


@pytest.mark.parametrize("file", ["b.png", "a.txt", "sub/c.txt"])
def test_another_content_is_another_source(root, tmp_path, file):
  convert(root, tmp_path / "out")
  assert convert(root, tmp_path / "out") == {"accepted": 4, "rejected": 0}
  if file.endswith(".txt"):
    (root / file).write_text("another caption")
  else:
    save(root / file, 200)
  with pytest.raises(ValueError, match=r"holds records of another import \(source_hash"):
    convert(root, tmp_path / "out")
