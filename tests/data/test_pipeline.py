import pathlib

import grain
import ml_collections
import numpy as np
import pytest

from vilau_jax.data import forms, media, pipeline, records, sequence
from vilau_jax.data.tokenizer import Tokenizer

LLAMA = (
  pathlib.Path(__file__).parents[1] / "golden" / "a" / "checkpoint" / "llm" / "tokenizer.model"
)
TOKENIZER = Tokenizer(LLAMA)
SETTINGS = forms.SequenceSettings(
  system_prompt="", frames=2, tokens_per_image=4, cfg_dropout=0.3, max_turns=2,
  shuffle_turns=True, caption_turn=True,
)  # fmt: skip
COLORS = ("red", "green", "blue", "gray", "a very long name of a colour")


def picture(value, size=(6, 6)):
  return media.encode_png(np.full((*size, 3), value, np.uint8))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp("pipeline")
  rng = np.random.default_rng(0)
  for name, count, frames in (("pictures", 40, 1), ("videos", 12, 2)):
    with records.Writer(root / name, name, records_per_shard=16) as writer:
      for i in range(count):
        color = COLORS[i % len(COLORS)]
        record = {
          "kind": "t2v" if frames > 1 else "t2i",
          "id": f"{name}{i}",
          "caption": f"{i} {color}",
          "conversations_from": ["human", "gpt"] * 3,
          "conversations_value": ["Which?", color, "How many?", str(i), "Is it?", "yes"],
          "frames" if frames > 1 else "images": [picture(5 * i + f) for f in range(frames)],
        }
        if frames > 1:
          record["n_frames"] = frames
        records.put_codes(record, rng.integers(0, 999, (frames, 4, 3)), "tower-a")
        writer.write(record)
  return root


def config(root, forms=("t2i", "i2t"), **row):
  entries = [dict(path=str(root / "pictures"), form=f, weight=1.0 + i) for i, f in enumerate(forms)]
  entries.append(dict(path=str(root / "videos"), form="t2v", weight=0.5))
  row = {**dict(length=160, slots=24, targets=16, window=32), **row}
  return ml_collections.ConfigDict(dict(mixture=tuple(entries), row=row))


def dataset(root, **kwargs):
  arguments = dict(batch_size=4, seed=3, tower_id="tower-a", process_index=0, process_count=1)
  data = kwargs.pop("data", None) or config(root)
  return pipeline.lm_dataset(
    data, kwargs.pop("settings", SETTINGS), TOKENIZER, 3, **{**arguments, **kwargs}
  )


def same(a, b):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_batches_have_static_shapes(root):
  batch = dataset(root)[0]
  assert {n: (a.dtype.name, a.shape) for n, a in batch.items()} == {
    "tokens": ("int32", (4, 160)),
    "visual_position": ("int32", (4, 24)),
    "codes": ("uint16", (4, 24, 3)),
    "visual_target": ("bool", (4, 24)),
    "segment_ids": ("int32", (4, 160)),
    "positions": ("int32", (4, 160)),
    "text_target": ("int32", (4, 160)),
  }
  assert batch["visual_target"].any() and (batch["segment_ids"] > 0).mean() > 0.6


def test_a_step_is_a_pure_function_of_its_number(root):
  one = dataset(root)
  batches = [one[i] for i in range(9)]
  same(dataset(root)[7], batches[7])  # fresh, without reading what is before
  for i, batch in enumerate(one.to_iter_dataset(grain.ReadOptions(num_threads=4))):
    same(batch, batches[i])
    if i == 8:
      break
  resumed = iter(dataset(root)[5:].to_iter_dataset(grain.ReadOptions(num_threads=2)))
  same(next(resumed), batches[5])
  other = dataset(root, seed=4)[0]
  assert any((other[name] != batches[0][name]).any() for name in other)


def test_an_anchor_finds_the_same_rows_without_counting(root, monkeypatch):
  plain, anchored = dataset(root), dataset(root, anchor=pipeline.START)
  anchors = []
  for step in range(12):
    batch = anchored[step]
    anchors.append(tuple(int(x) for x in batch.pop("anchor")))
    same(batch, plain[step])
  assert anchors[0] == (0, 0) and anchors[11][0] >= 2
  planned = []
  plan = pipeline.PackedRows._plan_window
  monkeypatch.setattr(
    pipeline.PackedRows, "_plan_window", lambda self, w: planned.append(w) or plan(self, w)
  )
  for anchor in (anchors[11], anchors[10]):
    resumed = dataset(root, anchor=anchor, process_index=1, process_count=2)
    batch = resumed[11]
    assert tuple(batch.pop("anchor")) == anchors[11]
    same(batch, {name: value[2:] for name, value in plain[11].items()})
  assert min(planned) >= anchors[10][0] > 0  # windows before the anchor were not looked at
  assert tuple(dataset(root, anchor=anchors[11])[0]["anchor"]) == (0, 0)  # nor is it in the way


def test_the_records_of_a_batch_are_named(root):
  data, row = config(root), dict(batch_size=4, seed=3)
  for anchor in (pipeline.START, tuple(dataset(root, anchor=(0, 0))[11]["anchor"])):
    rows = pipeline.lm_records(data, SETTINGS, TOKENIZER, 3, **row, step=11, anchor=anchor)
    counts = [len(r) for r in rows]
    assert counts == dataset(root)[11]["segment_ids"].max(1).tolist()
    assert {r["id"] for row in rows for r in row} <= {f"pictures{i}" for i in range(40)} | {
      f"videos{i}" for i in range(12)
    }


def test_processes_share_a_batch(root):
  whole = dataset(root)
  parts = [dataset(root, process_index=p, process_count=2) for p in range(2)]
  for step in (0, 3):
    got = [part[step] for part in parts]
    same({n: np.concatenate([g[n] for g in got]) for n in got[0]}, whole[step])
  with pytest.raises(ValueError, match="cannot be shared by 3"):
    dataset(root, process_count=3)


def test_no_sample_of_a_window_is_lost(root):
  data = config(root)
  shape = pipeline.packing.RowShape(160, 24, 16, 3)
  sources = [
    pipeline.Source(e["path"], e["form"], TOKENIZER, SETTINGS, shape, None) for e in data.mixture
  ]
  stream = pipeline.mixture([s.usable for s in sources], [e["weight"] for e in data.mixture], 3)
  rows = pipeline.PackedRows(sources, stream, shape, 32, 3)
  rows.positions(1000)
  first = [p for row in range(rows._starts[3]) for p in rows.positions(row)]
  assert sorted(first) == list(range(96))
  draws = [stream[i][0] for i in range(7 * 20)]
  assert np.bincount(draws).tolist() == [40, 80, 20]  # weights 1, 2, 0.5
  numbers = [stream[i][1] for i in range(7 * 20) if stream[i][0] == 0]
  assert sorted(numbers) == list(range(40))  # an epoch shows every record once


def test_largest_bounds_every_draw(root):
  for path, form in (("pictures", "i2t"), ("pictures", "t2i"), ("videos", "v2t")):
    for record in records.Records(root / path):
      bound = sequence.largest(record, form, TOKENIZER, SETTINGS)
      sizes = [
        sequence.measure(record, form, TOKENIZER, SETTINGS, np.random.default_rng(s))
        for s in range(99)
      ]
      assert max(sizes) == bound


def test_samples_longer_than_a_row_are_left_out_visibly(root, caplog):
  data = config(root, forms=("t2i",), length=34)
  found = dataset(root, data=data, settings=forms.SequenceSettings(system_prompt="", frames=2))
  assert "are left out" in caplog.text
  assert ": pictures4, pictures9, pictures14," in caplog.text
  for i in range(6):
    ids = found[i]["tokens"]
    assert "very long" not in TOKENIZER.decode(ids[ids > 0])


def test_bad_input_is_refused(root, tmp_path):
  with pytest.raises(ValueError, match="smallest needs"):
    dataset(root, data=config(root, length=24, slots=8, targets=8))
  with pytest.raises(ValueError, match=r"tower-a.*vilau tokenize"):
    dataset(root, tower_id="tower-b")
  with pytest.raises(ValueError, match="4 positions"):
    dataset(root, settings=forms.SequenceSettings(frames=2, tokens_per_image=9))
  with pytest.raises(ValueError, match="unknown form 'i2i'"):
    dataset(root, data=config(root, forms=("i2i",)))
  with pytest.raises(ValueError, match="must be positive"):
    pipeline.mixture([[1]], [0], 0)
  with pytest.raises(ValueError, match="mixture is empty"):
    pipeline.mixture([], [], 0)
  with records.Writer(tmp_path / "plain", "plain") as writer:
    writer.write({"kind": "t2i", "id": "a", "caption": "x", "images": [picture(0)]})
  data = config(root)
  data.mixture = (dict(path=str(tmp_path / "plain"), form="t2i", weight=1.0),)
  with pytest.raises(ValueError, match=r"plain.*no codes: run `vilau tokenize`"):
    dataset(root, data=data)


def test_samples_are_measured_once(root, tmp_path, monkeypatch):
  want = dataset(root, cache=tmp_path)[5]
  kept = sorted(tmp_path.iterdir())
  assert len(kept) == 3  # one a source: its records, form, settings and tokenizer
  looked = []
  monkeypatch.setattr(pipeline.sequence, "largest", lambda *a: looked.append(a) or (1, 0, 0))
  same(dataset(root, cache=tmp_path)[5], want)
  assert not looked
  dataset(root, cache=tmp_path, settings=forms.SequenceSettings(system_prompt="", frames=2))
  assert looked and len(list(tmp_path.iterdir())) == 6
  monkeypatch.undo()
  whole = kept[0].read_bytes()
  kept[0].write_bytes(whole[:-9])  # damaged: looked at again, and mended
  same(dataset(root, cache=tmp_path)[5], want)
  assert len(kept[0].read_bytes()) == len(whole)
