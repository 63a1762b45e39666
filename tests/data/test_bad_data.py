"""Broken raw data: each break is named with file and position, and its neighbours arrive."""

import builtins
import collections
import json
import pickle

import numpy as np
import pytest
import sources
from hypothesis import given
from hypothesis import strategies as st
from sources import put, said

from vilau_jax.data import imports, records
from vilau_jax.data.formats import coyo, llava, openvid, pickles, ranges, vflan, webdataset


def run(plan, out):
  """(ids that arrived, rejects by id or place, counts)."""
  counts = imports.run(plan, out)
  lines = map(json.loads, (out / imports.REJECTS).read_text().splitlines())
  found = {row["id"] or row["where"]: (row["where"], row["reason"]) for row in lines}
  return [record["id"] for record in records.Records(out)], found, counts


def talk(name, **fields):
  return {"id": name, "conversations": said("<image>What?", "This."), **fields}


def test_llava_questions_are_those_that_training_takes(tmp_path):
  put(tmp_path / "images" / "a.jpg", sources.picture(0))
  film = sources.movie(tmp_path / "v.mp4", 0).read_bytes()
  put(tmp_path / "images" / "v.mp4", film)
  rows = [
    talk("good", image="a.jpg"),
    {**talk("open", image="a.jpg"), "conversations": said("<image>\nWhat?", "A.", "And?", "B")[:3]},
    {**talk("mute", image="a.jpg"), "conversations": said("<image>", "A cat.")},
    {"id": "blind", "conversations": said("What?", "A cat.")},
    talk("film", video="v.mp4"),
  ]
  path = put(tmp_path / "x.json", json.dumps(rows))
  arrived, found, _ = run(llava.plan(path, images=tmp_path / "images", kind="i2t"), tmp_path / "o")
  assert arrived == ["good", "open"]
  assert len(records.Records(tmp_path / "o")[1]["conversations_value"]) == 2  # nobody answers more
  reasons = {name: reason for name, (_, reason) in found.items()}
  assert "text of turn 0 is empty" in reasons["mute"] and "neither picture" in reasons["blind"]
  assert "it has a video; --kind=sft takes it" in reasons["film"]


def test_llava_entries(tmp_path):
  root = tmp_path / "images"
  good = sources.picture(0, size=(200, 150))
  for name, data in {
    "a.jpg": good,
    "cut.jpg": good[:700],
    "text.jpg": b"no",
    "no.mp4": b"",
  }.items():
    put(root / name, data)
  film = sources.movie(tmp_path / "v.mp4", 0).read_bytes()
  put(root / "short.mp4", film[:300])
  put(root / "most.mp4", film[:-40])
  put(root / "noise.mp4", bytes(range(256)))
  rows = [
    talk("good", image="a.jpg"),
    talk("gone", image="gone.jpg"),
    talk("cut", image="cut.jpg"),
    talk("text", image="text.jpg"),
    talk("empty", video="no.mp4"),
    talk("short", video="short.mp4"),
    talk("most", video="most.mp4"),
    talk("noise", video="noise.mp4"),
    talk("out", image="../secret.jpg"),
    talk("many", image=["a.jpg", "a.jpg"]),
    talk("both", image="a.jpg", video="no.mp4"),
    {"id": "number", "image": "a.jpg", "conversations": [{"from": "human", "value": 7}]},
    {"id": "order", "conversations": said("a", "b") + said("c")[:1] + said("d")[:1]},
    {"id": "who", "conversations": [{"from": "system", "value": "x"}]},
    17,
    talk("good", image="a.jpg"),
    {**talk("good", image="a.jpg"), "conversations": said("Another?", "Yes.")},
    talk("last", image="a.jpg"),
  ]
  path = put(tmp_path / "x.json", json.dumps(rows))
  arrived, found, counts = run(llava.plan(path, images=root), tmp_path / "out")
  assert arrived == ["good", "good", "last"]  # one id, two conversations: both are wanted
  assert counts == {"accepted": 3, "rejected": 15}
  for name, problem in {
    "gone": "gone.jpg is missing",
    "cut": "broken or cut-off",
    "text": "not a picture",
    "empty": "no.mp4 is an empty file",
    "short": "short.mp4 is cut off: its box 'mdat' ends at byte",
    "most": "most.mp4 is cut off",
    "noise": "not a video that can be read",
    "out": "outside of the folder",
    "many": "1 <image> placeholders for 2 images",
    "both": "has ['image', 'video']",
    "number": "turn 0 is not a string: 7",
    "order": "turns must alternate",
    "who": "from 'system'",
    "x.json, entry 14": "must be an object, it is 17",
    "good": "it came before: x.json, from entry 0, record 0",
  }.items():
    assert problem in found[name][1]
    assert found[name][0].startswith("x.json, ")
  assert found["cut"][0] == "x.json, entry 2" and found["most"][0] == "x.json, entry 6"


def test_video_without_frames(tmp_path):
  import av

  put(tmp_path / "images/a.jpg", sources.picture(0))
  with av.open(str(tmp_path / "images/sound.mp4"), "w") as container:
    stream = container.add_stream("aac", rate=16000)
    silence = np.zeros((stream.codec_context.layout.nb_channels, 1024), np.float32)
    frame = av.AudioFrame.from_ndarray(silence, "fltp", stream.codec_context.layout.name)
    frame.sample_rate = 16000
    for packet in [*stream.encode(frame), *stream.encode(None)]:
      container.mux(packet)
  rows = [talk("a", image="a.jpg"), talk("v", video="sound.mp4")]
  path = put(tmp_path / "x.json", json.dumps(rows))
  arrived, found, _ = run(llava.plan(path, images=tmp_path / "images"), tmp_path / "out")
  assert arrived == ["a"] and "sound.mp4 holds no video" in found["v"][1]


def test_json_files(tmp_path):
  whole = json.dumps([{"id": i, "conversations": said("a", "b")} for i in range(5)])
  cut = put(tmp_path / "cut.json", whole[:-60])
  arrived, found, counts = run(llava.plan(cut), tmp_path / "cut")
  assert arrived == list("0123") and counts["damaged"] == 1
  assert "cut.json cannot be read behind entry 3" in found["cut.json, from entry 4"][1]
  spoilt = put(tmp_path / "bad.json", whole.replace('{"id": 3', "{'id': 3"))
  arrived, found, _ = run(llava.plan(spoilt), tmp_path / "bad")
  place = whole.index('"id": 3')
  assert arrived == list("012")
  assert f"at byte {place}" in found["bad.json, from entry 3"][1]
  latin = put(tmp_path / "l.jsonl", b'{"id": 7}\n' + json.dumps(json.loads(whole)[0]).encode())
  with open(latin, "ab") as f:
    f.write(b'\n{"id": "\xe9", "conversations": []}\nno\n')
  arrived, found, _ = run(llava.plan(latin), tmp_path / "latin")
  assert arrived == ["0"]
  assert "not UTF-8" in found["l.jsonl, line 3"][1] and "not JSON" in found["l.jsonl, line 4"][1]
  for name, data in {"empty": b" \n", "wide": "[1]".encode("utf-16")}.items():
    with pytest.raises(ValueError, match=r"is empty|is UTF-16"):
      run(llava.plan(put(tmp_path / f"{name}.json", data)), tmp_path / name)


JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
  max_leaves=8,
)


@given(st.lists(JSON, max_size=8), st.integers(1, 4), st.booleans(), st.sampled_from([0, 1, 2]))
def test_ranges_of_json_are_what_json_reads(tmp_path_factory, values, size, ascii, indent):
  path = tmp_path_factory.getbasetemp() / "any.json"
  path.write_text(
    json.dumps(values, ensure_ascii=ascii, indent=indent or None), errors="surrogatepass"
  )
  if not ascii and b"\xed" in path.read_bytes():
    return  # lone surrogates are no UTF-8
  found = [
    e for r in ranges.split_json(ranges.epath.Path(path), size) for e in ranges.read_range(r)
  ]
  assert [e.value for e in found] == values and [e.number for e in found] == list(
    range(len(values))
  )


def test_csv_with_broken_quoting(tmp_path):
  for number in range(6):
    sources.movie(tmp_path / "video" / f"{number}.mp4", 0, frames=3)
  lines = [
    "video,caption,fps",
    '0.mp4,"fine, ""really""",8',
    '1.mp4,"never closed,8',
    '2.mp4,"two\nlines",8',
    '3.mp4,"closed" too early,8',
    "4.mp4,one too few",
    "5.mp4,plain,8",
  ]
  path = put(
    tmp_path / "x.csv", ("\n".join(lines) + "\n").encode() + b"6.mp4,\xff\xfe,8\n7.mp4,,8\n"
  )
  arrived, found, counts = run(openvid.plan(path, frames=2), tmp_path / "out")
  assert arrived == ["0.mp4", "2.mp4", "5.mp4"] and counts["rejected"] == 5
  for line, problem in {
    3: "broken quoting",
    6: "broken quoting",
    7: "2 columns, the header has 3",
    9: "not UTF-8",
  }.items():
    assert problem in found[f"x.csv, line {line}"][1]
  assert found["7.mp4"] == ("x.csv, line 10", "no video: the file 7.mp4 is missing") or (
    found["7.mp4"][1] == "the caption is empty"
  )


def test_csv_ranges_are_the_same_at_any_size(tmp_path):
  rows = ["a,b", *(f'{i},"{"x" * (i % 5)}\n{i}"' if i % 3 else f"{i},plain" for i in range(40))]
  rows.insert(20, '"broken')
  path = ranges.epath.Path(put(tmp_path / "x.csv", "\n".join(rows) + "\n"))
  found = {
    size: [e for r in ranges.split_csv(path, rows=size) for e in ranges.read_range(r)]
    for size in (1000, 7, 1)
  }
  assert len([e for e in found[1000] if not e.problem]) == 40
  for size in (7, 1):
    assert [e[:3] for e in found[size]] == [e[:3] for e in found[1000]]


def test_tar_cut_in_the_middle(tmp_path):
  root = sources.wids(tmp_path / "wids")
  whole = (root / "00.tar").read_bytes()
  place = whole.index(b"c.png")
  (root / "00.tar").write_bytes(whole[: place + 700])
  arrived, found, counts = run(webdataset.plan_wids(root), tmp_path / "out")
  assert arrived == ["00/a.b", "01/c", "01/d"] and counts["damaged"] == 2
  assert any(where.startswith("00.tar, byte") for where, _ in found.values())
  assert "the index says 2 samples, the tar has 1" in found["00.tar"][1]
  # Cut between two members, or overwritten there, tarfile itself takes it for the end.
  for name, data in {"edge": whole[:place], "noise": whole[:place] + b"noise" * 900}.items():
    (root / "00.tar").write_bytes(data)
    arrived, found, counts = run(webdataset.plan_wids(root), tmp_path / name)
    assert arrived == ["00/a.b", "01/c", "01/d"] and counts["damaged"] == 2
  (root / "more/01.tar").unlink()
  with pytest.raises(ValueError, match=r"wids-meta.json names .*01.tar, which is missing"):
    webdataset.plan_wids(root)
  tar = [("a.json", "{}"), ("b.jpg", sources.picture(0)), ("b.json", "{"), ("c.jpg", b"x")]
  sources.tar(tmp_path / "t/0.tar", [*tar, ("d.jpg", sources.picture(0)), ("d.txt", "fine")])
  arrived, found, _ = run(webdataset.plan_img2dataset(tmp_path / "t"), tmp_path / "t_out")
  assert arrived == ["d"]
  assert {key: why for key, (_, why) in found.items() if key != "c"}.keys() == {"a", "b"}
  assert "its .json is broken" in found["b"][1] and "no caption" in found["a"][1]


class Evil:
  def __reduce__(self):
    return builtins.print, ("it ran",)


def test_pickles_that_run_code_are_refused(tmp_path, capsys):
  good = [{"question": "Q", "answer": "A", "image": []}]
  put(tmp_path / "a.pkl", pickle.dumps(good))
  put(tmp_path / "b.pkl", pickle.dumps([Evil()]))
  put(tmp_path / "c.pkl", pickle.dumps(good)[:-4])
  put(tmp_path / "d.pkl", pickle.dumps(good))
  put(tmp_path / "d.count", "2")
  put(tmp_path / "e.pkl", pickle.dumps({"question": 1}))
  arrived, found, counts = run(vflan.plan(tmp_path), tmp_path / "out")
  assert arrived == ["a#0"] and counts["damaged"] == 4
  assert "it wants builtins.print" in found["b.pkl"][1] and "it ran" not in capsys.readouterr().out
  assert "is cut off" in found["c.pkl"][1] and "d.count says '2'" in found["d.pkl"][1]
  assert "holds a dict" in found["e.pkl"][1]


PLAIN = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.text(), inner, max_size=3)
    | st.tuples(inner, inner)
    | st.frozensets(st.integers(), max_size=3)
  ),
  max_leaves=8,
)


@given(PLAIN, st.integers(0, 5), st.integers(0, 400), st.integers(0, 255))
def test_plain_pickles_are_read_and_damaged_ones_refused(value, protocol, place, byte):
  data = pickle.dumps(value, protocol)
  assert pickles.load_file(sources.io.BytesIO(data), "x") == value
  damaged = bytearray(data)
  damaged[place % len(data)] = byte
  try:
    pickles.load_file(sources.io.BytesIO(bytes(damaged)), "x")
  except ValueError as error:
    assert str(error).startswith("x is ")
  ordered = collections.OrderedDict(a=1)
  assert pickles.load_file(sources.io.BytesIO(pickle.dumps(ordered, protocol)), "x") == ordered


def test_pairs_without_picture_or_text(tmp_path):
  rows = [
    {"id": 0, "text": "fine", "image": sources.base64_of(0)},
    {"id": 1, "text": "fine", "image": "???"},
    {"id": 2, "text": ["no"], "image": sources.base64_of(0)},
    {"id": 3, "text": "lonely"},
    {"id": 0, "text": "again", "image": sources.base64_of(1)},
  ]
  put(tmp_path / "raw/part-00000.pkl", pickle.dumps(rows))
  arrived, found, _ = run(coyo.plan(tmp_path / "raw"), tmp_path / "out")
  assert arrived == ["0"]
  assert "not base64" in found["1"][1] and "not a string" in found["2"][1]
  assert "no picture: download" in found["3"][1] and "came before" in found["0"][1]
  assert found["1"][0] == "part-00000.pkl, entry 1"
  put(tmp_path / "p/x.parquet", sources.coyo_parquet(tmp_path / "q") and b"PAR1 no")
  put(tmp_path / "p/y.parquet", (tmp_path / "q/meta.parquet").read_bytes())
  plan = coyo.plan(tmp_path / "p", images=tmp_path / "q/images")
  arrived, found, counts = run(plan, tmp_path / "p_out")
  assert arrived == ["0", "1", "2"] and counts["damaged"] == 1
  assert "x.parquet is not a Parquet file" in found["x.parquet, from row 0"][1]


def test_records_of_a_newer_schema_are_refused(tmp_path):
  imports.run(sources.plan("folder", tmp_path), tmp_path / "out")
  path = tmp_path / "out" / records.INFO
  content = json.loads(path.read_text())
  path.write_text(json.dumps({**content, "schema_version": records.SCHEMA_VERSION + 1}))
  with pytest.raises(ValueError, match=r"dataset_info.json has schema version 2; .* reads 1"):
    records.Records(tmp_path / "out")
