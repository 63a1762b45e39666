r"""How fast and how full the data pipeline is on this machine, one core each.

python -m vilau_jax.bench.data [--only=packing] [--json_file=FILE] [--small]

rows      how full rows are in the mixtures of the paper's two stages at 256 px, by lengths alone
packing   positions a second from codes to batches, and how full the rows are: samples with the
          lengths of the paper's pre-training at 256 px in its proportions
import    JPEGs imported into records, against Pillow alone decoding the same files in the same run
codes     reading records of codes, against decoding the pictures that they stand for
json      a JSON array of 1.5 GB (15 MB with --small) cut into pieces: speed and memory
memory    resident memory while a million small records are imported and read (10,000 with --small)
"""

import io
import json
import pathlib
import resource
import shutil
import statistics
import tempfile
import time

import numpy as np
from absl import app, flags
from etils import epath
from PIL import Image

from vilau_jax.data import forms, imports, media, packing, pipeline, records
from vilau_jax.data.formats import ranges
from vilau_jax.data.pieces import Piece
from vilau_jax.data.tokenizer import Tokenizer, train_tokenizer

NAMES = ("rows", "packing", "import", "codes", "json", "memory")
_ONLY = flags.DEFINE_list("only", [*NAMES], "which to run")
_JSON = flags.DEFINE_string("json_file", None, "file for the figures", allow_override=True)
_SMALL = flags.DEFINE_bool("small", False, "little data: whether it runs, not how fast")

WORDS = ("a", "big", "red", "fox", "on", "the", "green", "hill", "near", "water", "and", "sky")
# form -> (text positions about, images, millions of samples): SPEC of the published mixture.
MIXTURE = {
  "t2i": (20, 1, 15.0),
  "interleaved": (700, 4, 6.0),
  "i2t": (200, 1, 1.2),
  "t2v": (80, 8, 1.0),
}
ROW = dict(length=4096, slots=3840, targets=3072, window=2048)  # as configs/*_7b_256.py
TOKENS, DEPTH = 256, 4


# stage -> source -> (millions of samples, text positions about, pictures or frames, drawn?)
STAGES = {
  "pretrain": {
    "internal_generation": (15.0, 60, 1, True),
    "mmc4_core": (6.0, 700, 4, False),
    "sharegpt4v_pretrain": (1.25, 250, 1, False),
    "openvid": (1.0, 120, 8, True),
  },
  "sft": {
    "internal_generation": (15.0, 60, 1, True),
    "vflan, text": (1.0, 350, 0, False),
    "vflan, pictures": (1.4, 150, 1, False),
    "openvid": (1.0, 120, 8, True),
    "sharegpt4v_sft": (0.66, 350, 1, False),
    "wit_subset": (0.54, 150, 1, False),
    "sherlock": (0.32, 80, 1, False),
    "videos": (0.43, 200, 8, False),
    "scienceqa": (0.012, 120, 1, False),
  },
}


def rows(root: pathlib.Path, small: bool) -> dict[str, float]:
  """Filled share of the rows that a window of 8192 samples is planned into, by stage."""
  shape = packing.RowShape(ROW["length"], ROW["slots"], ROW["targets"], DEPTH)
  found = {}
  for stage, mix in STAGES.items():
    rng = np.random.default_rng(0)
    weights, words, images, drawn = (np.array(column) for column in zip(*mix.values()))
    which = rng.choice(len(mix), 2048 if small else 8192, p=weights / weights.sum())
    text = np.maximum(30, rng.gamma(4.0, words[which] / 4.0)).astype(int)
    slots = TOKENS * images[which]
    sizes = np.stack([text + slots, slots, slots * drawn[which]], -1)
    fits = packing.fits(sizes, shape)
    planned = packing.plan(sizes[fits], shape)
    found[f"filled_{stage}"] = float(sizes[fits, 0].sum() / (len(planned) * shape.length))
    found[f"left_out_{stage}"] = float((~fits).sum())
  return found


def _record(form: str, number: int, rng: np.random.Generator) -> dict:
  words, images, _ = MIXTURE[form]
  text = " ".join(rng.choice(WORDS, max(4, int(rng.gamma(4.0, words / 4.0)))))
  record = {"kind": form, "id": f"{form}{number}", "source": "bench"}
  if form == "interleaved":
    sentences = text.split(" the ")
    places = sorted(int(i) for i in rng.integers(0, len(sentences), images))
    record |= {"sentences": sentences, "image_sentence_index": places}
  elif form == "i2t":
    said = {"conversations_from": ["human", "gpt"], "conversations_value": ["What is it?", text]}
    record |= said
  else:
    record |= {"caption": text} | ({"n_frames": images} if form == "t2v" else {})
  codes = rng.integers(0, 2**14, (images, TOKENS, DEPTH))
  records.put_codes(record, codes, "bench")
  return record


def packed(root: pathlib.Path, small: bool) -> dict[str, float]:
  """Positions a second and the share of filled positions."""
  root.mkdir(parents=True)
  rng = np.random.default_rng(0)
  count = 60 if small else 600
  texts = [" ".join(rng.choice(WORDS, 30)) for _ in range(200)]
  tokenizer = Tokenizer(train_tokenizer(texts, root / "tokenizer.model"))
  entries = []
  for form, (_, _, weight) in MIXTURE.items():
    with records.Writer(root / form, form) as writer:
      for number in range(count):
        writer.write(_record(form, number, rng))
    entries.append(dict(path=str(root / form), form=form, weight=weight))
  settings = forms.SequenceSettings(cfg_dropout=0.1)
  dataset = pipeline.lm_dataset(
    dict(mixture=entries, row=ROW), settings, tokenizer, DEPTH, batch_size=4, seed=0,
    process_index=0, process_count=1,
  )  # fmt: skip
  dataset[0]  # the first window is planned
  steps, filled, began = 8 if small else 80, 0, time.process_time()
  for step in range(1, 1 + steps):
    filled += int((dataset[step]["segment_ids"] > 0).sum())
  seconds = time.process_time() - began
  return {
    "positions_per_s_per_core": filled / seconds,
    "filled": filled / (steps * 4 * ROW["length"]),
  }


def _photographs(root: pathlib.Path, count: int) -> list[pathlib.Path]:
  """JPEGs of 640 x 480 and about 160 kB each, as COCO's are."""
  root.mkdir(parents=True)
  rng = np.random.default_rng(1)
  paths = []
  for number in range(count):
    image = np.zeros((480, 640, 3))
    for side, strength in ((8, 90), (40, 40), (160, 15)):
      rough = Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))
      image += (
        (np.asarray(rough.resize((640, 480), Image.Resampling.BICUBIC)) - 128.0) * strength / 90
      )
    image += rng.normal(0, 26, image.shape)  # the fine grain that makes their size
    path = root / f"{number:05}.jpg"
    Image.fromarray((image / 2 + 128).clip(0, 255).astype(np.uint8)).save(path, quality=90)
    paths.append(path)
  rows = [{"file": path.name, "caption": f"a picture of {path.stem}"} for path in paths]
  (root / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
  return paths


def importing(root: pathlib.Path, small: bool) -> dict[str, float]:
  """Pictures a second by CPU time, of the import and of Pillow alone; they take turns, and medians
  are compared."""
  from vilau_jax.data.formats import folder

  paths = _photographs(root / "pictures", 40 if small else 300)
  alone, whole = [], []
  for turn in range(4 if small else 8):
    began = time.process_time()
    for path in paths:
      with Image.open(io.BytesIO(path.read_bytes())) as image:
        image.load()
    alone.append(time.process_time() - began)
    began = time.process_time()
    imports.run(folder.plan(root / "pictures"), root / f"out{turn}")
    whole.append(time.process_time() - began)
    shutil.rmtree(root / f"out{turn}")  # a long import too writes into pages that were freed
  del alone[0], whole[0]  # modules and memory come with the first
  return {
    "pillow_per_s": len(paths) / statistics.median(alone),
    "import_per_s": len(paths) / statistics.median(whole),
    "ratio": statistics.median(alone) / statistics.median(whole),
    "ratio_of_a_turn_lowest": min(a / w for a, w in zip(alone, whole)),
    "ratio_of_a_turn_highest": max(a / w for a, w in zip(alone, whole)),
  }


def reading_codes(root: pathlib.Path, small: bool) -> dict[str, float]:
  """Pictures a second from codes, and decoded and resized to 256 pixels."""
  paths = _photographs(root / "pictures", 40 if small else 300)
  rng = np.random.default_rng(0)
  with records.Writer(root / "codes", "codes") as writer:
    for number in range(len(paths)):
      writer.write(_record("t2i", number, rng))
  found = records.Records(root / "codes")
  decodings, readings = [], []
  for _ in range(5):  # in turns, and medians: a pause of a shared machine says nothing
    began = time.perf_counter()
    for path in paths:
      media.to_square(path.read_bytes(), 256)
    decodings.append(time.perf_counter() - began)
    began = time.perf_counter()
    for record in found:
      records.get_codes(record)
    readings.append(time.perf_counter() - began)
  decoding, reading = statistics.median(decodings), statistics.median(readings)
  return {
    "decoded_per_s": len(paths) / decoding,
    "codes_per_s": len(found) / reading,
    "ratio": decoding / reading,
  }


def big_json(root: pathlib.Path, small: bool) -> dict[str, float]:
  """Megabytes a second, and by how much memory grows meanwhile."""
  root.mkdir(parents=True)
  path, size = root / "big.json", (15 if small else 1500) * 10**6
  turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "x y " * 250}]
  row = json.dumps({"id": "000", "image": "coco/a.jpg", "conversations": turns})
  count = size // (len(row) + 2)
  with open(path, "w") as f:
    f.write("[" + row)
    for _ in range(count - 1):
      f.write(",\n" + row)
    f.write("]")
  before, most, began = _resident(), 0.0, time.process_time()
  part = None
  for found in ranges.split_json(epath.Path(path)):
    part = found
    most = max(most, _resident())
  seconds = time.process_time() - began
  entries = sum(1 for _ in ranges.read_range(part)) + part.first
  return {
    "mb": path.stat().st_size / 1e6,
    "mb_per_s": path.stat().st_size / 1e6 / seconds,
    "growth_mib": most - before,
    "entries_missing": float(count - entries),
  }


def _small_records(payload: tuple[int, int]):
  for number in range(*payload):
    yield {"kind": "text", "id": str(number), "caption": f"record {number}"}


def memory(root: pathlib.Path, small: bool) -> dict[str, float]:
  """Resident MiB after a tenth of the records and after all of them, imported, then read."""
  count = 10_000 if small else 1_000_000
  size = count // 100

  def pieces():
    for start in range(0, count, size):
      yield Piece(f"from {start}", (start, start + size), size / count)

  marks: list[float] = []

  def progress(share, _):
    marks.append(_resident())

  plan = imports.Plan("bench", {}, "bench", {}, pieces, _small_records)
  began = time.perf_counter()
  imports.run(plan, root / "many", progress=progress)
  seconds = time.perf_counter() - began
  found = records.Records(root / "many")
  before = _resident()
  for _ in found:
    pass
  return {
    "records": count,
    "import_per_s": count / seconds,
    "after_a_tenth_mib": marks[9],
    "after_all_mib": marks[-1],
    "before_reading_mib": before,
    "after_reading_mib": _resident(),
    "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
  }


def _resident() -> float:
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * resource.getpagesize() / 2**20


BENCHES = {
  "rows": rows,
  "packing": packed,
  "import": importing,
  "codes": reading_codes,
  "json": big_json,
  "memory": memory,
}


def measure(names, small: bool) -> dict[str, dict[str, float]]:
  """Runs benches by name.

  Raises:
    ValueError: for an unknown name.
  """
  unknown = [name for name in names if name not in BENCHES]
  if unknown:
    raise ValueError(f"unknown benches {unknown}; known: {list(BENCHES)}")
  found = {}
  for name in names:
    with tempfile.TemporaryDirectory() as folder:
      found[name] = BENCHES[name](pathlib.Path(folder) / name, small)
    print(name, {key: round(value, 3) for key, value in found[name].items()}, flush=True)
  return found


def main(argv: list[str]) -> None:
  found = measure(_ONLY.value, _SMALL.value)
  if _JSON.value:
    pathlib.Path(_JSON.value).write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
  app.run(main)
