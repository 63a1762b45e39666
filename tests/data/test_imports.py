"""The driver of imports: same bytes, resuming, repetitions, other writers and places."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import sources

from vilau_jax.data import as_tfds, imports, records
from vilau_jax.data.pieces import Note, Piece, Reject

ROOT = pathlib.Path(__file__).parents[2]


def count_up(payload):
  """A format of its own: a record a number, a reject at every seventh."""
  for number in range(*payload):
    if number % 7 == 0:
      yield Reject(str(number), "a multiple of seven", f"at {number}")
    else:
      yield Note("kept")
      yield {"kind": "text", "id": f"n{number % 60}", "caption": str(number)}


def plan(count=50, files=(("a", "1"),), unique="id", convert=count_up):
  def pieces():
    for start in range(0, count, 10):
      yield Piece(f"from {start}", (start, min(start + 10, count)), 10 / count)

  return imports.Plan("toy", {"count": count}, "toy", dict(files), pieces, convert, unique)


def bytes_of(path):
  return {p.name: p.read_bytes() for p in sorted(pathlib.Path(path).iterdir())}


def test_any_number_of_workers_gives_the_same_bytes(tmp_path):
  shown = []
  counts = imports.run(plan(), tmp_path / "a", progress=lambda *args: shown.append(args))
  assert counts == {"accepted": 42, "rejected": 8}
  assert shown[-1] == (pytest.approx(1.0), 42)
  imports.run(plan(), tmp_path / "b", executor=imports.in_processes(2))
  assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
  found = records.Records(tmp_path / "a")
  assert [r["caption"] for r in found] == [str(n) for n in range(50) if n % 7]
  assert len(found.shards) == 5 and found.kinds == {"text": 42}
  assert found.info["notes"] == {"kept": 42} and found.info["rejected"] == 8
  assert set(bytes_of(tmp_path / "a")) == {*found.shards, records.INFO, imports.REJECTS}
  # Finished, it does nothing, and says so of another import into the same place.
  assert imports.run(plan(convert=None), tmp_path / "a") == counts
  with pytest.raises(ValueError, match="holds records of another import"):
    imports.run(plan(40), tmp_path / "a")
  (tmp_path / "a" / "data-00001-of-00005.array_record").unlink()
  with pytest.raises(ValueError, match=r"the shard data-00001-of-00005.array_record .* is missing"):
    imports.run(plan(), tmp_path / "a")
  with pytest.raises(ValueError, match="data-00001-of-00005"):
    records.Records(tmp_path / "a")


def interrupted(payload):
  if payload[0] == 30:
    raise KeyboardInterrupt
  yield from count_up(payload)


def test_interrupted_it_goes_on(tmp_path):
  imports.run(plan(), tmp_path / "whole")
  with pytest.raises(KeyboardInterrupt):
    imports.run(plan(convert=interrupted), tmp_path / "out")
  partial = tmp_path / "out.partial"
  kept = {p.name: p.stat().st_mtime_ns for p in partial.glob("00000*.records")}
  assert len(kept) == 3
  (partial / ".000003.json.77").write_text("half")  # what kill -9 leaves
  (partial / "000001-000.records").unlink()  # someone removed a shard
  with pytest.raises(ValueError, match="has changed: b is new, a has changed"):
    imports.run(plan(files=[("a", "2"), ("b", "1")]), tmp_path / "out")
  with pytest.raises(ValueError, match="is an import of other settings"):
    imports.run(plan(40), tmp_path / "out")
  imports.run(plan(), tmp_path / "out")
  assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def test_interrupted_at_the_very_end_it_goes_on(tmp_path, monkeypatch):
  imports.run(plan(), tmp_path / "whole")
  with monkeypatch.context() as patch:
    patch.setattr(records, "write_info", interrupted_info)
    with pytest.raises(KeyboardInterrupt):
      imports.run(plan(), tmp_path / "out")
  assert not (tmp_path / "out").exists()
  imports.run(plan(convert=None), tmp_path / "out")  # nothing is converted again
  assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def interrupted_info(*args):
  raise KeyboardInterrupt


@pytest.mark.parametrize("writer", ["array_record", "tfrecord"])
def test_repeated_ids_are_rejected_once_everything_is_there(tmp_path, writer):
  counts = imports.run(plan(100), tmp_path / "out", writer=writer)
  # n0 .. n39 come again from 60 on, but for the multiples of seven.
  again = [n for n in range(60, 100) if n % 7 and (n - 60) % 7]
  assert counts == {"accepted": 85 - len(again), "rejected": 15 + len(again)}
  found = records.Records(tmp_path / "out")
  ids = [r["id"] for r in found]
  assert len(set(ids)) == len(ids) == counts["accepted"]
  assert {int(r["caption"]) for r in found} == {n for n in range(100) if n % 7} - set(again)
  lines = (tmp_path / "out" / imports.REJECTS).read_text()
  assert '"n1", "reason": "it came before: from 0, record 0", "where": "from 60"' in lines
  whole = imports.run(plan(100, unique="record"), tmp_path / "whole", writer=writer)
  assert whole == {"accepted": 85, "rejected": 15}


def broken(payload):
  yield {"kind": "text", "id": str(payload[0])}
  yield {"kind": "text", "id": "x", "caption": 7}
  yield {"kind": "music", "id": "y"}
  if payload[0] == 20:
    raise ValueError("this file is no such thing")


def test_records_and_files_that_are_broken_cost_only_themselves(tmp_path):
  counts = imports.run(plan(convert=broken), tmp_path / "out")
  assert counts == {"accepted": 5, "rejected": 11, "damaged": 1}
  lines = (tmp_path / "out" / imports.REJECTS).read_text()
  assert '"from 20"' in lines and "this file is no such thing" in lines
  assert "'caption' must be text" in lines and "kind must be one of" in lines
  with pytest.raises(ValueError, match="none of the entries of toy was accepted; the first: at 0"):
    imports.run(plan(1), tmp_path / "none")
  assert not list(tmp_path.glob("none*"))


SLOW = """
import sys, time
sys.path[:0] = {path!r}
import test_imports
from vilau_jax.data import imports
def slow(payload):
  time.sleep(0.2)
  yield from test_imports.count_up(payload)
if __name__ == "__main__":
  imports.run(test_imports.plan(200, convert=slow), {out!r}, executor=imports.in_processes(2))
"""


def test_killed_it_goes_on_and_leaves_no_process(tmp_path):
  imports.run(plan(200), tmp_path / "whole")
  script = tmp_path / "slow.py"
  path = [str(ROOT), str(ROOT / "tests" / "data")]
  script.write_text(SLOW.format(path=path, out=str(tmp_path / "out")))
  child = subprocess.Popen([sys.executable, script], start_new_session=True)
  partial, deadline = tmp_path / "out.partial", time.monotonic() + 60
  while len(list(partial.glob("*.json"))) < 4 and time.monotonic() < deadline:
    time.sleep(0.02)
  with pytest.raises(ValueError, match="another import is writing"):
    imports.run(plan(200), tmp_path / "out")
  os.kill(child.pid, signal.SIGKILL)
  child.wait()
  assert not (tmp_path / "out").exists() and partial.exists()
  while _group_lives(child.pid) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not _group_lives(child.pid)
  imports.run(plan(200), tmp_path / "out")
  assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole")


def _group_lives(group):
  try:
    os.killpg(group, 0)
    return True
  except ProcessLookupError:
    return False


def test_tfrecord_holds_the_same_records(tmp_path):
  imports.run(plan(), tmp_path / "a")
  imports.run(plan(), tmp_path / "t", writer="tfrecord")
  first, second = (records.Records(tmp_path / name) for name in "at")
  assert list(first) == list(second) and second[-1] == first[41]
  (name, *_) = second.shards
  data = bytearray((tmp_path / "t" / name).read_bytes())
  data[20] ^= 1
  (tmp_path / "t" / name).write_bytes(data)
  with pytest.raises(ValueError, match="the record at byte 0 is damaged"):
    records.Records(tmp_path / "t")[0]
  (tmp_path / "t" / name).write_bytes(data[:-3])
  with pytest.raises(ValueError, match="is cut off in the record at byte"):
    records.Records(tmp_path / "t")


def test_tfds_reads_them(tmp_path):
  import tensorflow_datasets as tfds

  imports.run(sources.plan("mmc4", tmp_path), tmp_path / "out")
  path = as_tfds.write(tmp_path / "out")
  data = tfds.builder_from_directory(path).as_data_source("train")
  found = records.Records(tmp_path / "out")
  assert len(data) == len(found)
  for shown, record in zip(data, found):
    assert shown["id"].decode() == record["id"]
    assert set(shown) == set(record)
    assert list(shown["images"]) == record["images"]
    assert [value.decode() for value in shown["sentences"]] == record["sentences"]
    np.testing.assert_array_equal(shown["image_sentence_index"], record["image_sentence_index"])
  imports.run(sources.plan("llava", tmp_path), tmp_path / "mixed")
  path = as_tfds.write(tmp_path / "mixed")
  data = tfds.builder_from_directory(path).as_data_source("train")
  assert set(data[0]) == {"kind", "id", "source", "conversations_from", "conversations_value"}
