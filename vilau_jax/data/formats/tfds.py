"""Data sets of TensorFlow Datasets with a picture and a caption or label, without TensorFlow.

They must be prepared as ArrayRecord: `tfds build NAME --file_format=array_record`, or
`tfds.builder(NAME, file_format="array_record").download_and_prepare()`.

    vilau data import tfds --source=DATA_DIR --builder=coco_captions --split=train --output=..
    vilau data import tfds --source=DATA_DIR --builder=imagenet2012 --split=validation
        --label_names=names.txt --output=..

Of several captions the first is taken (coco_captions has five). A label becomes "a photo of a
NAME"; ImageNet's names in TFDS are WordNet numbers, so give --label_names, a file with a name a
line in the order of the labels.
"""

import functools
import os
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from vilau_jax.data import imports, pieces
from vilau_jax.data.formats import entries
from vilau_jax.data.formats.ranges import Entry
from vilau_jax.data.pieces import Piece

RECORDS = 500  # of a piece
CAPTIONS = ("caption", "captions", "text", "label")  # features looked for, in this order
IDS = ("image/id", "image/filename", "file_name", "id")


class Fields(NamedTuple):
  """Features to read, and the names of the labels if the caption is one."""

  image: str
  caption: str
  names: tuple[str, ...]
  template: str


def plan(
  source: str | os.PathLike | None,
  *,
  builder: str | None = None,
  split: str = "train",
  caption_key: str | None = None,
  label_names: str | os.PathLike | None = None,
  template: str = "a photo of a {}",
) -> imports.Plan:
  """Records of kind "pair".

  Args:
    source: TFDS's data_dir with `builder`, or without it the directory of one prepared version.
    builder: name[/config][:version].
    split: also a part, such as "train[:25%]".
    caption_key: feature that holds caption or label; None looks for one.
    label_names: file of names of the labels.
    template: what a label's name is put into.

  Raises:
    ValueError: if the data set is not prepared, or has no picture or caption.
  """
  import tensorflow_datasets as tfds  # here, because it is slow to import

  root = entries.folder(source, "TFDS's data_dir, or the directory of a prepared version")
  try:
    if builder is None:
      found = tfds.builder_from_directory(root)
    else:
      found = tfds.builder(builder, data_dir=root)
    count = found.info.splits[split].num_examples
  except (tfds.core.DatasetNotFoundError, FileNotFoundError, KeyError, ValueError) as error:
    raise ValueError(
      f"TFDS finds no {builder or 'data set'} ({split}) in {root}: {error}"
    ) from error
  fields = _fields(found.info.features, caption_key, label_names, template)
  path = epath.Path(found.data_path)
  files = [p for p in path.iterdir() if p.is_file()]
  return imports.Plan(
    format="tfds",
    settings={"split": split, "fields": list(fields)},
    source=found.info.full_name,
    files=pieces.fingerprint(path, files),
    pieces=functools.partial(_pieces, str(path), split, count),
    convert=functools.partial(_convert, fields),
  )


def _fields(features, caption_key, label_names, template: str) -> Fields:
  import tensorflow_datasets as tfds

  pictures = [name for name, f in features.items() if isinstance(f, tfds.features.Image)]
  if not pictures:
    raise ValueError(f"the data set has no picture; its features: {sorted(features)}")
  image = "image" if "image" in pictures else pictures[0]
  key = caption_key or next((name for name in CAPTIONS if name in features), None)
  if key not in features:
    raise ValueError(
      f"the data set has no feature {key or ' or '.join(CAPTIONS)}; give --caption_key, one of "
      f"{sorted(features)}"
    )
  feature = features[key]
  if not isinstance(feature, tfds.features.ClassLabel):
    return Fields(image, key, (), "{}")
  names = feature.names
  if label_names is not None:
    names = epath.Path(label_names).read_text().splitlines()
    if len(names) != feature.num_classes:
      raise ValueError(
        f"{label_names} holds {len(names)} names, the data set has {feature.num_classes} labels"
      )
  elif re.fullmatch(r"n\d{8}", names[0]):
    raise ValueError("its labels are WordNet numbers: give their names with --label_names=FILE")
  return Fields(image, key, tuple(names), template)


def _pieces(path: str, split: str, count: int) -> Iterator[Piece]:
  for start in range(0, count, RECORDS):
    stop = min(start + RECORDS, count)
    yield Piece(f"{split}, from {start}", (path, split, start, stop), (stop - start) / count)


def _convert(fields: Fields, payload: tuple[str, str, int, int]) -> Iterator[pieces.Converted]:
  path, split, start, stop = payload
  source = _source(path, split, fields.image)
  found = (Entry(f"{split}, example {i}", i, source[i]) for i in range(start, stop))
  return entries.convert(found, functools.partial(_record, fields, split))


@functools.lru_cache(maxsize=4)
def _source(path: str, split: str, image: str):
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(path)
  return builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})


def _record(fields: Fields, split: str, value: dict[str, Any], number: int) -> dict[str, Any]:
  given = next((value[name] for name in IDS if name in value), None)
  given = given.decode() if isinstance(given, bytes) else given
  return {
    "kind": "pair",
    "id": f"{split}/{number}" if given is None else str(given),
    "source": "tfds",
    "caption": _caption(fields, value[fields.caption]),
    **entries.images([value[fields.image]]),
  }


def _caption(fields: Fields, value: Any) -> str:
  if fields.names:
    if not 0 <= int(value) < len(fields.names):
      raise ValueError(f"it has no label ({value}), as in an unlabelled test split")
    return fields.template.format(fields.names[int(value)])
  if isinstance(value, dict):  # coco_captions: {"id": [..], "text": [..]}
    value = value.get("text")
  if isinstance(value, list | tuple | np.ndarray):
    if not len(value):
      raise ValueError("it has no caption")
    value = value[0]
    value = value.get("text") if isinstance(value, dict) else value
  value = value.item() if isinstance(value, np.generic | np.ndarray) else value
  return entries.text(value.decode() if isinstance(value, bytes) else value)
