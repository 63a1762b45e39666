import json
import pathlib

import numpy as np
import pytest

from vilau_jax.data import media, pictures, records
from vilau_jax.data.tokenizer import TowerTokenizer

LLAMA = (
  pathlib.Path(__file__).parents[1] / "golden" / "a" / "checkpoint" / "llm" / "tokenizer.model"
)


def picture(value, size=(6, 6)):
  return media.encode_png(np.full((*size, 3), value, np.uint8))


def same(a, b):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp("pictures")
  colors = ("red", "green", "blue", "gray", "a very long name of a colour")
  for name, count, frames in (("pictures", 40, 1), ("videos", 12, 2)):
    with records.Writer(root / name, name, records_per_shard=16) as writer:
      for i in range(count):
        record = {"kind": "pair", "id": f"{name}{i}", "caption": f"{i} {colors[i % 5]}"}
        record["images" if frames == 1 else "frames"] = [picture(5 * i + f) for f in range(frames)]
        writer.write(record | ({"n_frames": frames} if frames > 1 else {}))
  return root


@pytest.fixture(scope="module")
def tower_tokenizer():
  return TowerTokenizer(LLAMA, 12, "lower")


def tower(root, tokenizer, **kwargs):
  data = dict(
    mixture=(
      dict(path=str(root / "pictures"), weight=3.0),
      dict(path=str(root / "videos"), weight=1.0),
    ),
    **kwargs.pop("data", {}),
  )
  arguments = dict(image_size=8, batch_size=8, seed=1, process_index=0, process_count=1)
  return pictures.tower_dataset(data, tokenizer, **{**arguments, **kwargs})


def test_tower_batches(root, tower_tokenizer):
  found = tower(root, tower_tokenizer)
  batch = found[0]
  assert {n: (a.dtype.name, a.shape) for n, a in batch.items()} == {
    "image": ("uint8", (8, 8, 8, 3)),
    "text": ("int32", (8, 12)),
    "caption_id": ("int32", (8,)),
  }
  same(tower(root, tower_tokenizer, data={"cache": False})[5], found[5])
  halves = [tower(root, tower_tokenizer, process_index=p, process_count=2)[5] for p in (0, 1)]
  same({n: np.concatenate([h[n] for h in halves]) for n in batch}, found[5])
  assert set(tower(root, None)[0]) == {"image"}
  texts, names = [], []
  for i in range(12):
    texts += [tuple(t) for t in found[i]["text"]]
    names += found[i]["caption_id"].tolist()
  assert len(set(texts)) == len(set(names)) == len(set(zip(texts, names)))
  # Both frames of a video come up.
  values = {int(v) for i in range(60) for v in found[i]["image"].mean((1, 2, 3))}
  assert len(values & {5 * i + 1 for i in range(12)}) > 6


@pytest.mark.parametrize("augment", ["mix", "crop_flip"])
def test_augmented_pictures_differ_between_visits(augment, root, tmp_path):
  wide = np.random.default_rng(0).integers(0, 256, (8, 20, 3), np.uint8)
  with records.Writer(tmp_path / "wide", "wide") as writer:
    writer.write({"kind": "pair", "caption": "x", "images": [media.encode_png(wide)]})
  data = dict(mixture=(dict(path=str(tmp_path / "wide"), weight=1.0),), augment=augment)
  found = pictures.tower_dataset(data, None, image_size=8, batch_size=16, seed=0)
  assert len({image.tobytes() for image in found[0]["image"]}) > 4
  same(found[2], pictures.tower_dataset(data, None, image_size=8, batch_size=16, seed=0)[2])


def test_a_wrong_caption_of_the_record_itself_is_drawn(tmp_path, tower_tokenizer):
  wrong = {f"{i} dogs": [f"{i + 1} dogs", f"{i + 2} dogs"] if i % 2 else [] for i in range(6)}
  with records.Writer(tmp_path / "dogs", "dogs") as writer:
    for caption, others in wrong.items():
      record = {"kind": "pair", "caption": caption, "images": [picture(9)]}
      writer.write(record | {"wrong_captions": others})
  data = dict(mixture=(dict(path=str(tmp_path / "dogs"), weight=1.0),))
  found = pictures.tower_dataset(
    data, tower_tokenizer, image_size=8, batch_size=8, seed=0, wrong=True
  )
  ids = {tuple(tower_tokenizer.encode(f"{i} dogs")): f"{i} dogs" for i in range(8)}
  drawn = set()
  for i in range(12):
    for text, other, has in zip(*(found[i][n] for n in ("text", "wrong_text", "has_wrong"))):
      caption = ids[tuple(text)]
      assert bool(has) == bool(wrong[caption])
      if has:
        drawn.add((caption, ids[tuple(other)]))
  assert drawn == {(caption, other) for caption, others in wrong.items() for other in others}


def test_wrong_captions_that_nobody_has_are_missed(root, tower_tokenizer):
  with pytest.raises(ValueError, match=r"loss\.wrong_captions wants records .*pictures"):
    tower(root, tower_tokenizer, wrong=True)


def test_tower_records_need_pictures_and_captions(tmp_path, tower_tokenizer):
  for name, record, problem in (
    ("a", {"kind": "text", "caption": "x"}, "no pictures"),
    ("b", {"kind": "pair", "caption": " ", "images": [picture(0)]}, "empty caption"),
  ):
    with records.Writer(tmp_path / name, name) as writer:
      writer.write(record)
    data = dict(mixture=(dict(path=str(tmp_path / name), weight=1.0),))
    with pytest.raises(ValueError, match=problem):
      pictures.tower_dataset(data, tower_tokenizer, image_size=8, batch_size=1, seed=0)
  with pytest.raises(ValueError, match=r"data\.augment"):
    pictures.tower_dataset({"augment": "flip"}, None, image_size=8, batch_size=1, seed=0)


def test_what_an_import_counted_is_not_looked_through(tmp_path, tower_tokenizer, monkeypatch):
  with records.Writer(tmp_path / "a", "a") as writer:
    writer.write({"id": "p", "kind": "pair", "caption": "x", "images": [picture(0)]})
    writer.write({"id": "q", "kind": "pair", "caption": " ", "images": [picture(0)]})
  info = tmp_path / "a" / records.INFO
  counted = json.loads(info.read_text()) | {"features": {"images": 2, "caption": 2}}
  info.write_text(json.dumps(counted))
  data = dict(mixture=(dict(path=str(tmp_path / "a"), weight=1.0),))
  make = lambda: pictures.tower_dataset(  # noqa: E731
    data, tower_tokenizer, image_size=8, batch_size=2, seed=0
  )
  with pytest.raises(ValueError, match="record 'q' has an empty caption"):
    make()[0]  # as late as its turn comes
  info.write_text(json.dumps(counted | {"features": {"images": 2, "caption": 1}}))
  with pytest.raises(ValueError, match="record 'q' has an empty caption"):
    make()
