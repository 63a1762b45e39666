import hashlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vilau_jax.data import records as R

VALUES = {
  "text": st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
  "blob": st.binary(max_size=40),
  "int": st.integers(-(2**63), 2**63 - 1),
  "float": st.floats(width=32, allow_nan=False),
}


def features(name):
  kind = R.FEATURES[name]
  return st.lists(VALUES[kind[:-1]], max_size=5) if kind.endswith("s") else VALUES[kind]


@given(st.fixed_dictionaries({}, optional={name: features(name) for name in R.FEATURES}))
def test_any_record_survives(record):
  data = R.encode(record)
  assert R.decode(data) == record
  assert R.encode(dict(reversed(record.items()))) == data


def test_layout_is_that_of_tensorflow():
  # field 1 (features) > field 1 (map entry) > key, Feature > int64_list (3) > packed value
  want = bytes.fromhex("0a130a110a086e5f6672616d657312051a030a0104")
  assert R.encode({"n_frames": 4}) == want
  assert R.encode({"caption": "a"}) == bytes.fromhex("0a120a100a0763617074696f6e12050a030a0161")


@pytest.mark.parametrize(
  ("record", "problem"),
  [
    ({"captoin": "x"}, "did you mean 'caption'"),
    ({"caption": 3}, "'caption' must be text"),
    ({"images": "abc"}, "'images' must be blobs"),
    ({"n_frames": "many"}, "'n_frames' must be int"),
    ({"n_frames": 2**70}, "'n_frames' must be int"),
  ],
)
def test_wrong_features_are_named(record, problem):
  with pytest.raises(ValueError, match=problem):
    R.encode(record)


def test_bytes_that_are_no_record():
  with pytest.raises(ValueError, match="not a record"):
    R.decode(b"\xff\xff\xff")


def test_codes_round_trip():
  codes = np.arange(24).reshape(2, 3, 4) * 2000
  record = {}
  R.put_codes(record, codes, "tower")
  got = R.get_codes(R.decode(R.encode(record)))
  np.testing.assert_array_equal(got, codes)
  assert got.dtype == np.uint16 and record["tower_id"] == "tower"
  for bad in (codes[0], codes + 40_000, codes - 1):
    with pytest.raises(ValueError, match="codes must be"):
      R.put_codes({}, bad, "tower")
  with pytest.raises(ValueError, match="vilau tokenize"):
    R.get_codes({"id": "a"})


def write(path, count=7, per_shard=3):
  with R.Writer(path, "toy", records_per_shard=per_shard, info={"seed": 1}) as writer:
    for i in range(count):
      writer.write({"kind": "t2i", "id": str(i), "images": [bytes([i])]})


def test_writer_and_reader(tmp_path):
  write(tmp_path / "a")
  records = R.Records(tmp_path / "a")
  assert len(records) == 7 and records.info == {"seed": 1} and records.kinds == {"t2i": 7}
  assert [r["id"] for r in records] == list("0123456")
  assert records[-1]["images"] == [b"\x06"]
  assert list(records.shards.values()) == [3, 3, 1]
  assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
    "dataset_info.json", *(R.shard_name("toy", i, 3) for i in range(3))
  ]  # fmt: skip
  assert [list(r) for r in records.shard_ranges().values()] == [[0, 1, 2], [3, 4, 5], [6]]
  with pytest.raises(IndexError):
    records[7]


def test_same_records_give_the_same_bytes(tmp_path):
  digests = set()
  for name in "ab":
    write(tmp_path / name)
    files = sorted((tmp_path / name).iterdir())
    digests.add(tuple(hashlib.sha256(f.read_bytes()).hexdigest() for f in files))
  assert len(digests) == 1


def test_interrupted_writer_leaves_nothing_and_can_run_again(tmp_path):
  with pytest.raises(RuntimeError), R.Writer(tmp_path / "a", "toy") as writer:
    writer.write({"kind": "text"})
    raise RuntimeError
  assert list(tmp_path.iterdir()) == []
  (tmp_path / "a.partial").mkdir()  # what kill -9 leaves
  (tmp_path / "a.partial" / "00000").write_bytes(b"half")
  write(tmp_path / "a")
  assert len(R.Records(tmp_path / "a")) == 7
  with pytest.raises(ValueError, match="not empty"):
    write(tmp_path / "a")


def test_empty_and_wrong_records_are_refused(tmp_path):
  with pytest.raises(ValueError, match="nothing was written"):
    write(tmp_path / "a", count=0)
  with pytest.raises(ValueError, match="kind must be"), R.Writer(tmp_path / "a", "toy") as writer:
    writer.write({"kind": "t2x"})


def test_unfinished_and_foreign_directories_are_refused(tmp_path):
  with pytest.raises(ValueError, match="holds no records"):
    R.Records(tmp_path)
  write(tmp_path / "a")
  path = tmp_path / "a" / "dataset_info.json"
  content = json.loads(path.read_text())
  path.write_text(json.dumps({**content, "schema_version": 99}))
  with pytest.raises(ValueError, match="schema version 99"):
    R.Records(tmp_path / "a")
  path.write_text("{")
  with pytest.raises(ValueError, match="not JSON"):
    R.Records(tmp_path / "a")
  path.write_text(json.dumps({**content, "records": 8}))
  with pytest.raises(ValueError, match="holds 7 records"):
    R.Records(tmp_path / "a")
  (tmp_path / "a" / R.shard_name("toy", 1, 3)).unlink()
  with pytest.raises(ValueError, match="is missing"):
    R.Records(tmp_path / "a")


@settings(max_examples=5, deadline=None)
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=20), st.integers(1, 7))
def test_random_access_equals_what_was_written(tmp_path_factory, blobs, per_shard):
  path = tmp_path_factory.mktemp("records") / "a"
  with R.Writer(path, "toy", records_per_shard=per_shard) as writer:
    for blob in blobs:
      writer.write({"kind": "text", "images": [blob]})
  records = R.Records(path)
  order = np.random.default_rng(0).permutation(len(blobs))
  assert [records[int(i)]["images"][0] for i in order] == [blobs[i] for i in order]
