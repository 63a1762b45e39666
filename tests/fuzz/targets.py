"""The readers of text and binary files of data sets and prompts, and what they are fed."""

import functools
import io
import json
import pathlib
import pickle
from collections.abc import Callable, Sequence

from etils import epath

from tests.data import sources
from tests.fuzz.model_targets import MODELS
from tests.fuzz.run import Target
from vilau_jax.data import containers, imports, mp4_index, pieces, records, shards
from vilau_jax.data.formats import (
  coyo,
  easy_vqa,
  folder,
  llava,
  mmc4,
  openvid,
  pickles,
  vflan,
  webdataset,
)
from vilau_jax.data.pieces import Note, Reject
from vilau_jax.generate.orders import PromptFile

Read = Callable[[bytes, pathlib.Path], object]
TINY = dict(size=(5, 4), form="PNG")  # most of the time would go into decoding larger ones


def record(number: int) -> dict:
  return {
    "kind": "sft", "id": f"r{number}", "source": "fuzz", "caption": "a fox", "fps": 8.0,
    "images": [sources.picture(number, **TINY)], "width": [5], "height": [4], "scores": [0.5],
    "conversations_from": ["human", "gpt"], "conversations_value": ["What?\n<image>", "A fox."],
    "codes": bytes(range(24)), "codes_shape": [1, 4, 3], "tower_id": "0" * 16,
  }  # fmt: skip


def stored(folder: pathlib.Path, name: str, data: bytes) -> epath.Path:
  path = folder / name
  path.write_bytes(data)
  return epath.Path(path)


def converted(plan: imports.Plan) -> int:
  """Carries a plan out as an import does, without its files; returns how many records there were.
  An accepted record must come back from its bytes."""
  count = 0
  for piece in plan.pieces():
    try:
      for item in plan.convert(piece.payload):
        if isinstance(item, Reject):
          json.dumps(pieces.listed(item), ensure_ascii=False).encode()
        elif not isinstance(item, Note):
          records.decode(records.encode_checked(item))
          count += 1
    except ValueError as error:
      if not _ours(error):
        raise
  return count


def _ours(error: ValueError) -> bool:
  """An import counts a ValueError as damage of one piece, wherever it comes from; here it must be
  one of ours."""
  from tests.fuzz import run

  return not run.refusal(error, Target("", lambda f: [], lambda d, f: None))


# Records


def _record_seeds(folder: pathlib.Path) -> list[bytes]:
  return [records.encode(record(n)) for n in range(3)] + [
    records.encode({"kind": "text", "id": "x", "caption": "only words"})
  ]


def _read_record(data: bytes, folder: pathlib.Path) -> object:
  found = records.decode(data)
  return records.get_codes(found) if "codes" in found else found


def _shard_seeds(kind: str, folder: pathlib.Path) -> list[bytes]:
  path = folder / f"seed.{kind}"
  for count in (1, 5):
    records.write_shard(path, [records.encode(record(n)) for n in range(count)])
    yield path.read_bytes()


def _read_shard(kind: str, data: bytes, folder: pathlib.Path) -> object:
  path = stored(folder, f"x.{kind}", data)
  return [records.decode(one) for one in shards.read_shard(path, kind)]


def _info_seeds(folder: pathlib.Path) -> list[bytes]:
  with records.Writer(folder / "info", "x") as writer:
    writer.write(record(0))
  return [(folder / "info" / records.INFO).read_bytes()]


def _read_info(data: bytes, folder: pathlib.Path) -> object:
  stored(folder / "info", records.INFO, data)
  return records.shard_files(epath.Path(folder / "info"), records.read_info(folder / "info"))


# Formats of data sets


def built(make: Callable, glob: str, at: str, plan: Callable) -> tuple[Callable, Read]:
  """Seeds: the files that match `glob` of a source that `make` writes. Reading: the input takes the
  place of the file `at`, in a folder that has everything else of the source."""

  def seeds(folder: pathlib.Path) -> list[bytes]:
    make(folder / "source")
    found = [path.read_bytes() for path in sorted((folder / "source").glob(glob))]
    for path in (folder / "source").glob(glob):
      path.unlink()
    return found

  def read(data: bytes, folder: pathlib.Path) -> object:
    (folder / "source" / at).write_bytes(data)
    return sum(converted(one) for one in _several(plan(folder / "source")))

  return seeds, read


def _several(plans: imports.Plan | list[imports.Plan]) -> list[imports.Plan]:
  return plans if isinstance(plans, list) else [plans]


def _small(make: Callable) -> Callable:
  """The source with pictures of a few pixels and without its videos, which are fuzzed alone."""

  def made(root: pathlib.Path) -> object:
    whole, movie = sources.picture, sources.movie
    sources.picture = functools.partial(_tiny, whole)
    sources.movie = lambda path, number, frames=0: sources.put(path, b"no video")
    try:
      return make(root)
    finally:
      sources.picture, sources.movie = whole, movie

  return made


def _tiny(whole: Callable, number: int, size=None, form: str = "PNG") -> bytes:
  return whole(number, size=(5, 4), form=form)


def _csv(root: pathlib.Path) -> None:
  sources.folder_csv(root)
  rows = '"b.jpg","two\nlines",x\nd.bmp,"","y"\n'
  sources.put(root / "second.csv", "\ufefffile,caption,more\n" + rows)


def _parquet(root: pathlib.Path) -> None:
  sources.img2dataset_parquet(root)
  sources.coyo_parquet(root / "more")
  (root / "more/meta.parquet").rename(root / "meta.parquet")


def _openvid(root: pathlib.Path) -> None:
  sources.openvid(root)
  (root / "source.csv").write_bytes((root / openvid.CSV).read_bytes())


def _pickle_seeds(folder: pathlib.Path) -> list[bytes]:
  rows = [
    {"id": 1, "text": "a fox", "image": sources.base64_of(0, **TINY), "clip_sim": 0.5},
    {"question": "Q", "answer": "A", "image": [b"raw", "x"], "set": {1, 2}, "n": 2**70},
  ]
  return [pickle.dumps(rows, protocol) for protocol in range(6)]


def _read_pickle(data: bytes, folder: pathlib.Path) -> object:
  path = stored(folder, "x.pkl", data)
  values = pickles.load(path)
  for make in (coyo.plan, vflan.plan, mmc4.plan):
    converted(make(folder))
  return len(repr(values)) if isinstance(values, str) else None


def _format(name, make: Callable, glob, at, plan: Callable, rejected=False, **kwargs) -> Target:
  """rejected: the source without its videos gives no record."""
  seeds, read = built(_small(make), glob, at, plan)
  if rejected:
    return Target(name, seeds, lambda d, f: (read(d, f), None), **kwargs)
  return Target(name, seeds, read, **kwargs)


def _easy_vqa(root: pathlib.Path) -> imports.Plan:
  easy_vqa._questions.cache_clear()  # it remembers files by their names
  return easy_vqa.plans(root)["train"]


# Containers of videos: what is read before the decoder sees them


def _video_seeds(folder: pathlib.Path) -> list[bytes]:
  from tests.fuzz.media_targets import videos

  return [data for _, data in videos(folder)]


def _read_index(data: bytes, folder: pathlib.Path) -> object:
  place = max(data.find(b"moov") - 4, 0)
  return mp4_index.end_of_video(data[place:]), containers.check_whole(io.BytesIO(data), "x.mp4")


# Prompts


PROMPTS: Sequence[tuple[str, bytes]] = (
  ("x.jsonl", b'{"prompt": "a fox", "name": "a/b", "seed": 3}\n"words alone"\n'
              b'{"prompt": ["say", {"image": "f.png"}, {"video": "v.mp4"}]}\n'),
  ("x.json", b'{"0001": {"prompt": "a fox", "category": "animals"}, "2": {"prompt": "b"}}'),
  ("x.txt", b"a fox\n\nan owl \xf0\x9f\xa6\x89\n"),
)  # fmt: skip


def _read_prompts(data: bytes, folder: pathlib.Path) -> object:
  count = 0
  for name in ("x.jsonl", "x.json", "x.txt"):
    try:
      for order in PromptFile.open(stored(folder, name, data)).orders():
        assert not order.name.startswith("/") and ".." not in order.name.split("/")
        count += 1
    except ValueError as error:
      if not _ours(error):
        raise
  return count


PLAIN = (
  Target("record", _record_seeds, _read_record),
  Target("array_record", lambda f: [*_shard_seeds("array_record", f)],
         functools.partial(_read_shard, "array_record")),
  Target("tfrecord", lambda f: [*_shard_seeds("tfrecord", f)],
         functools.partial(_read_shard, "tfrecord")),
  Target("dataset_info", _info_seeds, _read_info, tree=True),
  _format("llava_json", sources.llava, "*.json", "x.json",
          lambda root: llava.plan(root / "x.json", images=root / "images"), tree=True),
  _format("llava_lines", sources.llava_lines, "*.jsonl", "x.jsonl",
          lambda root: llava.plan(root / "x.jsonl", images=root / "images"), tree=True),
  _format("mmc4_lines", sources.mmc4_jsonl, "*.jsonl", "x.jsonl",
          lambda root: mmc4.plan(root / "x.jsonl", images=root / "images"), tree=True),
  _format("folder_lines", sources.folder_jsonl, "*.jsonl", "captions.jsonl", folder.plan,
          tree=True),
  _format("csv", _csv, "*.csv", "captions.csv", folder.plan),
  _format("openvid", _openvid, "*.csv", "x.csv",
          lambda root: openvid.plan(root / "x.csv", images=root / "video"), rejected=True),
  _format("parquet", _parquet, "*.parquet", "00000.parquet",
          lambda root: [webdataset.plan_img2dataset(root),
                        coyo.plan(root, images=root / "more/images")]),
  _format("wids", sources.wids, "*.tar", "00.tar",
          lambda root: webdataset.plan_wids(root / "wids-meta.json")),
  _format("wids_index", sources.wids, "*.json", "wids-meta.json",
          lambda root: webdataset.plan_wids(root / "wids-meta.json"), tree=True),
  _format("img2dataset", sources.img2dataset, "*.tar", "00000.tar", webdataset.plan_img2dataset),
  _format("easy_vqa", sources.easy_vqa, "train/questions.json", "train/questions.json",
          _easy_vqa, tree=True),
  Target("pickle", _pickle_seeds, _read_pickle),
  Target("mp4_index", _video_seeds, _read_index),
  Target("prompts", lambda f: [data for _, data in PROMPTS], _read_prompts, tree=True),
  *MODELS,
)  # fmt: skip
