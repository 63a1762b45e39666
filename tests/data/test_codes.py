import numpy as np
import pytest

from vilau_jax.data import codes, media, records

S = 8


def encode(images):
  """A tower that writes what it sees: T = 4 quadrant means, R = 2."""
  assert images.shape == (16, S, S, 3) and images.dtype == np.uint8
  quadrants = images.reshape(16, 2, S // 2, 2, S // 2, 3).mean((2, 4, 5)).reshape(16, 4)
  return np.stack([quadrants, images.max((1, 2, 3))[:, None] + 0 * quadrants], -1).astype(np.int32)


def write(path, count=50):
  rng = np.random.default_rng(0)
  with records.Writer(path, "toy", records_per_shard=20, info={"seed": 1}) as writer:
    for i in range(count):
      size = (S, S) if i % 2 else (S, 2 * S)
      pictures = [media.encode_png(rng.integers(0, 256, (*size, 3), np.uint8)) for _ in range(3)]
      record = {"kind": "t2i", "id": str(i), "images": pictures[:1]}
      if i % 5 == 0:
        record = {"kind": "t2v", "id": str(i), "frames": pictures, "n_frames": 3}
      if i % 3:
        record["caption"] = "x"
      writer.write(record)


def run(root, name="coded", encode=encode, tower_id="tower", **kwargs):
  return codes.add_codes(
    root / "raw", root / name, encode, tower_id, image_size=S, batch_size=16, **kwargs
  )


def test_codes_belong_to_their_pictures(tmp_path):
  write(tmp_path / "raw")
  done = []
  coded = run(tmp_path, progress=lambda *args: done.append(args))
  assert len(coded) == 50 and done[-1] == (50, 50) and coded.info["seed"] == 1
  for record in coded:
    pictures = record.get("images") or record["frames"]
    for name, geometry in (("codes", "resize"), ("codes_crop", "crop")):
      if name == "codes_crop" and name not in record:
        assert int(record["id"]) % 2 or not record.get("caption")  # square, or never drawn
        continue
      images = np.zeros((16, S, S, 3), np.uint8)
      images[: len(pictures)] = [media.to_square(p, S, geometry) for p in pictures]
      np.testing.assert_array_equal(
        records.get_codes(record, name), encode(images)[: len(pictures)]
      )
    assert record["tower_id"] == "tower"
  assert sum("codes_crop" in r for r in coded) > 10
  slim = run(tmp_path, "slim", keep_images=False)
  assert "images" not in slim[1] and "codes" in slim[1]


def test_interrupted_it_goes_on_and_finished_it_does_nothing(tmp_path):
  write(tmp_path / "raw")
  calls = []

  def fails_later(images):
    calls.append(1)
    if len(calls) == 4:
      raise KeyboardInterrupt
    return encode(images)

  with pytest.raises(KeyboardInterrupt):
    run(tmp_path, encode=fails_later)
  with pytest.raises(ValueError, match="holds no records"):
    records.Records(tmp_path / "coded")
  kept = sorted(p.name for p in (tmp_path / "coded").glob("toy*"))
  assert 0 < len(kept) < 3
  with pytest.raises(ValueError, match="holds codes of tower tower"):
    run(tmp_path, tower_id="other")
  first = (tmp_path / "coded" / kept[0]).stat().st_mtime_ns
  (tmp_path / "coded" / f".{kept[0]}.123").write_bytes(b"half")  # what kill -9 leaves
  resumed = run(tmp_path)
  assert (tmp_path / "coded" / kept[0]).stat().st_mtime_ns == first
  whole = run(tmp_path, "whole")
  assert list(resumed) == list(whole)
  for file in whole.shards:
    assert (whole.path / file).read_bytes() == (resumed.path / file).read_bytes()
  assert {p.name for p in (tmp_path / "coded").iterdir()} == {*whole.shards, records.INFO}

  def never(images):
    raise AssertionError

  assert len(run(tmp_path, encode=never)) == 50
  with pytest.raises(ValueError, match="holds codes of tower tower"):
    run(tmp_path, tower_id="other")


def test_texts_among_pictures_stay_as_they_are(tmp_path):
  with records.Writer(tmp_path / "raw", "toy") as writer:
    writer.write(
      {"kind": "sft", "id": "a", "images": [media.encode_png(np.zeros((S, S, 3), "u1"))]}
    )
    writer.write({"kind": "sft", "id": "b"})
  coded = run(tmp_path)
  assert "codes" in coded[0] and coded[1] == {"kind": "sft", "id": "b"}


def test_records_without_pictures_and_foreign_outputs_are_refused(tmp_path):
  with records.Writer(tmp_path / "raw", "toy") as writer:
    writer.write({"kind": "pair", "id": "a"})
  with pytest.raises(ValueError, match="'a' has no pictures"):
    run(tmp_path)
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "a.txt").write_text("x")
  with pytest.raises(ValueError, match="something else"):
    run(tmp_path, "full")


def test_processes_share_the_shards(tmp_path):
  write(tmp_path / "raw")
  whole = run(tmp_path, "whole")
  assert run(tmp_path, process=(1, 2)) is None
  with pytest.raises(ValueError, match="holds no records"):
    records.Records(tmp_path / "coded")
  assert len(list((tmp_path / "coded").glob("toy*"))) == 1
  (tmp_path / "coded" / ".toy-00001-of-00003.array_record.5").write_bytes(b"of the other process")
  finished = run(tmp_path, process=(0, 2))
  assert list(finished) == list(whole)
  with pytest.raises(ValueError, match="process 2 of 2"):
    run(tmp_path, process=(2, 2))


def test_tfrecords_stay_tfrecords(tmp_path):
  write(tmp_path / "first")
  path = tmp_path / "raw"
  path.mkdir()
  data = map(records.encode, records.Records(tmp_path / "first"))
  count = records.write_shard(path / "toy-00000-of-00001.tfrecord", data)
  records.write_info(path, "toy", {"toy-00000-of-00001.tfrecord": count}, {"t2i": count}, {})
  coded = run(tmp_path)
  assert list(coded.shards) == ["toy-00000-of-00001.tfrecord"] and "codes" in coded[49]
