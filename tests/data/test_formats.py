"""Every format of raw data: what its records are, and what is said of entries that are broken."""

import pytest
import sources

from vilau_jax.data import imports, media, records


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
  root = tmp_path_factory.mktemp("formats")
  found = {}

  def get(name):
    if name not in found:
      counts = sources.load(name, root / "raw", root / "records" / name)
      found[name] = (records.Records(root / "records" / name), counts)
    return found[name]

  return get


@pytest.mark.parametrize("name", sources.EVERY)
def test_every_format_gives_its_records(imported, name):
  found, counts = imported(name)
  assert counts == {"accepted": len(found), "rejected": 0}
  assert found.kinds == sources.KINDS[name]
  assert found.info["format"] == sources.EVERY[name][0] and found.info["source_hash"]
  for record in found:
    shown = record.get("images") or record.get("frames") or []
    assert [media.open_image(p).size for p in shown] == list(
      zip(record.get("width", []), record.get("height", []))
    )
    assert record["source"] and record["id"]
  assert len({record["id"] for record in found}) == len(found) or name == "folder_parquet"


def test_llava(imported):
  by_id = {record["id"]: record for record in imported("llava")[0]}
  assert list(by_id) == ["000", "1", "two", "share#3", "t", "v", "share#6"]
  assert by_id["000"]["images"] == [sources.picture(0)]
  assert by_id["000"]["conversations_value"] == ["What is it?\n<image>", "A blur."]
  assert by_id["1"]["conversations_from"] == ["human", "gpt"] * 2
  assert len(by_id["two"]["images"]) == 2
  assert by_id["share#3"]["conversations_value"] == ["<image>", "x"]  # the leading answer is gone
  assert by_id["t"]["kind"] == "text" and "images" not in by_id["t"]
  video = by_id["v"]
  assert video["frame_index"] == [0, 1, 3, 4, 5, 6, 8, 9] and video["n_frames"] == 10
  assert video["fps"] == 8 and len(video["frames"]) == 8
  asked = by_id["share#6"]
  assert asked["conversations_value"] == ["Which colour?", "Dark."] and asked["fps"] == 3


def test_mmc4(imported):
  first, alone, eight = imported("mmc4")[0]
  assert first["sentences"] == ["One.", "A <IMAGE> word.", "Three."]
  assert first["image_sentence_index"] == [0, 2, 2]
  assert first["images"] == [sources.picture(n) for n in (1, 0, 2)]  # ties keep their order
  assert alone["image_sentence_index"] == [0]
  # The first six images in the order of the source, then by sentence.
  assert eight["image_sentence_index"] == [2, 3, 4, 5, 6, 7]
  assert eight["images"] == [sources.picture(n) for n in (5, 4, 3, 2, 1, 0)]
  assert imported("mmc4_jsonl")[0][1]["images"] == [sources.picture(1)]


def test_vflan(imported):
  shown, several, frames, text = imported("vflan")[0]
  assert text["conversations_value"] == ["Say hello.", "Hello, <IMAGE>."] and text["kind"] == "text"
  assert shown["id"] == "q1" and shown["images"] == [sources.picture(5)]
  assert shown["conversations_value"] == ["<image>What is it?", "A blur."]
  assert several["conversations_value"] == ["<image><image>What?", "A bear.", "Where?", "Here."]
  assert several["images"] == [sources.picture(6), sources.picture(7)]
  assert len(frames["images"]) == 8
  assert all(r["no_system_prompt"] == 1 for r in (shown, several, frames, text))


def test_openvid(imported):
  found = list(imported("openvid")[0])
  assert [r["id"] for r in found] == ["clip0.mp4", "clip1.mp4", "clip2.mp4"]
  assert found[1]["caption"] == 'it says "hi",\nthen goes'
  assert [r["n_frames"] for r in found] == [9, 10, 11]


def test_wids(imported):
  found = list(imported("wids")[0])
  assert [r["id"] for r in found] == ["00/a.b", "00/c", "01/c", "01/d"]
  assert [r["caption"] for r in found] == ["long caption", "only a prompt", *["An image."] * 2]
  assert found[0]["images"] == [sources.picture(0)]
  assert list(imported("wids")[0].info["notes"].values()) == [2]


def test_pairs(imported):
  found = list(imported("img2dataset")[0])
  assert [r["caption"] for r in found] == [f"caption {i}" for i in range(3)]
  assert "scores" not in found[0] and found[1]["scores"] == list(sources.SCORES.values())
  assert list(imported("img2dataset")[0].info["notes"].values()) == [1]
  assert [r["caption"] for r in imported("img2dataset_parquet")[0]] == ["one", "two", "three"]
  coyo = list(imported("coyo")[0])
  assert [(r["id"], r["caption"], r["scores"]) for r in coyo][1] == ("1", "alt text 1", [0.5])
  assert imported("coyo_parquet")[0][2]["images"] == [sources.picture(2)]
  assert [r["caption"] for r in imported("folder_parquet")[0]] == ["one", "two", "three"]


def test_tfds(imported, tmp_path):
  from vilau_jax.data.formats import tfds

  found = list(imported("tfds")[0])
  assert sorted(r["caption"] for r in found) == [f"caption {i} 0" for i in range(4)]
  assert sorted(r["id"] for r in found) == ["100", "101", "102", "103"]
  assert {
    m.format for r in found for m in [media.Image.open(media.io.BytesIO(r["images"][0]))]
  } == {"JPEG"}
  source = sources.tfds(tmp_path, "toy_labels")
  with pytest.raises(ValueError, match="WordNet numbers: give their names with --label_names"):
    tfds.plan(source)
  names = sources.put(tmp_path / "names.txt", "tench\ngoldfish\n")
  imports.run(tfds.plan(source, split="train[:75%]", label_names=names), tmp_path / "out")
  found = list(records.Records(tmp_path / "out"))
  assert len(found) == 3
  assert {r["caption"] for r in found} <= {"a photo of a tench", "a photo of a goldfish"}
  assert all(r["id"].endswith(".JPEG") for r in found)
  with pytest.raises(ValueError, match="TFDS finds no"):
    tfds.plan(tmp_path, builder="nothing_here")


def test_other_forms_of_a_format_give_the_same_records(imported):
  for one, other in {
    "llava": "llava_lines",
    "wids": "wids_without_index",
    "folder": "folder_tfrecord",
  }.items():
    pairs = zip(imported(one)[0], imported(other)[0], strict=True)
    # Entries without an id are called by their number, lines by theirs, which begin with 1.
    assert all({**a, "id": ""} == {**b, "id": ""} for a, b in pairs)
  captions = [r["caption"] for r in imported("folder_csv")[0]]
  assert captions == ['one, "really"', "two", "x"]
  assert [r["caption"] for r in imported("folder_jsonl")[0]][1] == "it is a/c.webp"


def test_made_and_packaged_sets(imported):
  found = list(imported("easy_vqa")[0])
  assert [r["caption"] for r in found] == ["a red circle", "a teal circle", "a black circle"]
  assert found[1]["conversations_value"][:2] == ["what color is the shape?", "teal"]
  assert all("moving" in r["caption"] for r in imported("emoji_videos")[0])
