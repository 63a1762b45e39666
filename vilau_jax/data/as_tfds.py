"""Records as a data set that TensorFlow Datasets reads, by description: no byte is copied."""

import json
import os
import pathlib

from vilau_jax.data import records, shards

FOLDER, SPLIT, VERSION = "tfds", "train", "1.0.0"


def write(directory: str | os.PathLike) -> pathlib.Path:
  """Writes DIRECTORY/tfds: links to the shards, and TFDS's own description of them.

  `tfds.builder_from_directory(DIRECTORY/tfds).as_data_source("train")` then gives the records, and
  needs no TensorFlow for ArrayRecord. Texts and encoded pictures are bytes there. Features that
  some records lack are left out: TFDS has no such thing.

  Raises:
    ValueError: if directory holds no finished import.
  """
  import tensorflow_datasets as tfds  # here, because it is slow to import

  root = pathlib.Path(directory)
  content = records.read_info(root)
  if "features" not in content:
    raise ValueError(f"{root} was not written by an import: it does not say which features it has")
  writer = shards.writer_of(content["shards"][0]["file"])
  folder = root / FOLDER
  folder.mkdir(exist_ok=True)
  sizes = [shard["records"] for shard in content["shards"]]
  for index, shard in enumerate(content["shards"]):
    link = folder / f"{root_name(root)}-{SPLIT}.{writer}-{index:05}-of-{len(sizes):05}"
    link.unlink(missing_ok=True)
    link.symlink_to(pathlib.Path("..") / shard["file"])
  whole = {name for name, count in content["features"].items() if count == content["records"]}
  features = tfds.features.FeaturesDict({name: _feature(name) for name in sorted(whole)})
  features.save_config(folder)
  described = {
    "name": root_name(root),
    "version": VERSION,
    "fileFormat": writer,
    "moduleName": "vilau_jax.data.as_tfds",
    "splits": [
      {
        "name": SPLIT,
        "shardLengths": [str(size) for size in sizes],
        "numBytes": str(sum((root / s["file"]).stat().st_size for s in content["shards"])),
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
      }
    ],
  }
  (folder / "dataset_info.json").write_text(json.dumps(described, indent=2), encoding="utf-8")
  return folder


def root_name(root: pathlib.Path) -> str:
  """A name that TFDS takes: letters, digits and underscores, beginning with a letter."""
  name = "".join(c if c.isalnum() and c.isascii() else "_" for c in root.resolve().name).lower()
  return name if name[:1].isalpha() else f"d{name}"


def _feature(name: str):
  import numpy as np
  import tensorflow_datasets as tfds

  kind = records.FEATURES[name]
  types = {"int": np.int64, "float": np.float32}
  one = next((types[k] for k in types if kind.startswith(k)), None)
  feature = tfds.features.Text() if one is None else tfds.features.Scalar(one)
  return feature if not kind.endswith("s") else tfds.features.Sequence(feature)
