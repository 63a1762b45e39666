"""raw data set -> records

vilau data import FORMAT --source=.. --output=DIR
    folder        your pictures: NAME.png with NAME.txt, or captions.csv, .jsonl, .parquet
    llava         ShareGPT4V and fine-tuning sets: FILE.json, --images=FOLDER
    mmc4          documents with pictures: a folder of .pkl and .count, or .jsonl and --images
    vflan         FLAN and M3IT sets: a folder of .pkl
    openvid       OpenVid-1M's folder: data/train/OpenVid-1M.csv and video/
    wids          tars of pictures and .json, with wids-meta.json
    img2dataset   tars, or Parquet files with the pictures inside
    coyo          COYO-700M: .pkl, or Parquet files and --images
    tfds          anything of TensorFlow Datasets with a picture and a caption or label
    easy-vqa      the easy-vqa package (pip install easy-vqa), its own train and test split
    emoji         scenes and videos composed of the emoji that come with vilau_jax

Same arguments, same bytes, with any number of workers. What is finished is kept: run it again after
an interruption. What could not be taken stands with its reason in DIR/rejects.jsonl; the exit code
is 1 if a file was damaged, so that what followed in it is lost. Beyond one machine: --runner names
a runner of Apache Beam (pip install -e '.[beam]'), what follows -- are its options:
    vilau data import coyo --source=gs://.. --output=gs://.. --runner=DataflowRunner -- --project=..
"""

import difflib
import importlib
import inspect
import os
import time

from absl import flags
from etils import epath

from vilau_jax.cli.progress import Bar
from vilau_jax.data import imports, records, shards

# The formats of vilau_jax/data/imports.py; a function's arguments are the flags that it takes.
PLANS = {
  "folder": ("folder", "plan"),
  "llava": ("llava", "plan"),
  "mmc4": ("mmc4", "plan"),
  "vflan": ("vflan", "plan"),
  "openvid": ("openvid", "plan"),
  "wids": ("webdataset", "plan_wids"),
  "img2dataset": ("webdataset", "plan_img2dataset"),
  "coyo": ("coyo", "plan"),
  "tfds": ("tfds", "plan"),
  "easy-vqa": ("easy_vqa", "plans"),  # several data sets, a directory each
  "emoji": ("emoji_import", "plans"),
}

FLAGS = flags.FlagValues()
_SOURCE = flags.DEFINE_string("source", None, "where the raw data is", flag_values=FLAGS)
_OUTPUT = flags.DEFINE_string(
  "output", None, "directory for the records (required)", flag_values=FLAGS
)
_WORKERS = flags.DEFINE_integer(
  "workers", None, "processes (default: one a core)", lower_bound=1, flag_values=FLAGS
)
_WRITER = flags.DEFINE_enum(
  "writer",
  "array_record",
  sorted(shards.WRITERS),
  "kind of shards; training reads both",
  flag_values=FLAGS,
)
_PER_SHARD = flags.DEFINE_integer(
  "records_per_shard", 10_000, "at most", lower_bound=1, flag_values=FLAGS
)
_TFDS = flags.DEFINE_bool("tfds", False, "also write DIR/tfds, which TFDS reads", flag_values=FLAGS)
_RUNNER = flags.DEFINE_string(
  "runner", None, "Apache Beam's, for example DirectRunner", flag_values=FLAGS
)
# Options of formats.
flags.DEFINE_string("images", None, "folder of the pictures or videos", flag_values=FLAGS)
flags.DEFINE_integer("frames", 8, "llava, openvid: of a video", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_string("kind", None, "llava: sft or i2t; wids: t2i or pair", flag_values=FLAGS)
flags.DEFINE_bool("downsample_video", False, "vflan: four frames of eight", flag_values=FLAGS)
flags.DEFINE_string("builder", None, "tfds: its name, for example coco_captions", flag_values=FLAGS)
flags.DEFINE_string("split", "train", "tfds: split, or a part of one", flag_values=FLAGS)
flags.DEFINE_string("caption_key", None, "tfds: feature of the caption or label", flag_values=FLAGS)
flags.DEFINE_string(
  "label_names", None, "tfds: file with a name a line for the labels", flag_values=FLAGS
)
flags.DEFINE_string("template", "a photo of a {}", "tfds: a label's caption", flag_values=FLAGS)
flags.DEFINE_integer(
  "size",
  None,
  "side of the stored pictures; 0 keeps them (default: 60, folder: 0)",
  lower_bound=0,
  flag_values=FLAGS,
)
flags.DEFINE_integer("seed", 0, "emoji: what the scenes are drawn from", flag_values=FLAGS)
flags.DEFINE_integer("scenes", 8000, "emoji: training pictures", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("videos", 1500, "emoji: training videos", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("test_scenes", 520, "emoji: test pictures", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("test_videos", 240, "emoji: test videos", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer(
  "limit", 0, "easy-vqa: pictures a split, 0 = all", lower_bound=0, flag_values=FLAGS
)
OPTIONS = (
  "images", "frames", "kind", "downsample_video", "builder", "split", "caption_key", "label_names",
  "template", "size", "seed", "scenes", "videos", "test_scenes", "test_videos", "limit",
)  # fmt: skip


def main(argv: list[str]) -> int:
  if not argv or argv[0] not in PLANS or (len(argv) > 1 and _RUNNER.value is None):
    typed = " ".join(argv)
    near = difflib.get_close_matches(typed, PLANS, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"give one format of {', '.join(PLANS)}; got {typed!r}{hint}")
  if not _OUTPUT.value:
    raise ValueError("say where the records go: --output=DIR")
  began = time.time()
  with Bar("records") as line:
    parts = _import(argv[0], argv[1:], line.advance)
  for part, counts in parts.items():
    path = os.path.join(_OUTPUT.value, part).rstrip("/")
    print(f"{path}: {', '.join(f'{n} {what}' for what, n in counts.items())}")
    if epath.Path(path, records.INFO).stat().mtime < int(began):
      print(f"{path} was there, from the same source and settings; remove it to import again")
    if counts["rejected"]:
      print(f"why some were rejected: {path}/{imports.REJECTS}")
    if _TFDS.value:
      from vilau_jax.data import as_tfds

      print(f"for TFDS: {as_tfds.write(path)}")
  print(f"{time.time() - began:.1f} s; look at them with: vilau data inspect {_OUTPUT.value}")
  return 1 if any("damaged" in counts for counts in parts.values()) else 0


def _import(name: str, options: list[str], progress) -> dict[str, dict[str, int]]:
  module, function = PLANS[name]
  makes = getattr(importlib.import_module(f"vilau_jax.data.formats.{module}"), function)
  accepted = inspect.signature(makes).parameters
  given = {}
  for option in OPTIONS:
    flag = FLAGS[option]
    if option in accepted and flag.value is not None:
      given[option] = flag.value
    elif option not in accepted and flag.present:
      takes = ", ".join(f"--{o}" for o in OPTIONS if o in accepted) or "none"
      raise ValueError(f"--{option} is no option of the format {name}; its options: {takes}")
  executor = imports.in_processes(_WORKERS.value or os.cpu_count() or 1)
  if _RUNNER.value is not None:
    from vilau_jax.data import beam

    executor = beam.on_beam([f"--runner={_RUNNER.value}", *options])
  made = makes(_SOURCE.value, **given)
  return imports.run_parts(
    {"": made} if isinstance(made, imports.Plan) else made, _OUTPUT.value, executor=executor,
    writer=_WRITER.value, records_per_shard=_PER_SHARD.value, progress=progress,
  )  # fmt: skip
