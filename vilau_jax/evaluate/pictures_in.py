"""Pictures to evaluate on: a folder, or a prepared TFDS set."""

import dataclasses
import pathlib

from vilau_jax.data import media


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
  """One picture.

  Attributes:
    id: path below the folder, or the number in the set.
    source: what media.open_image takes, or how to get it (`open`).
    label: of its class, or None.
  """

  id: str
  source: object
  label: int | None = None

  @property
  def fingerprint(self) -> str:
    """What tells another file of the same name apart, without reading it."""
    return str(self.source.stat().st_size) if isinstance(self.source, pathlib.Path) else ""

  def open(self) -> media.Source:
    return self.source() if callable(self.source) else self.source


def read(root: pathlib.Path, split: str, labelled: bool = False) -> list[Picture]:
  """All pictures, in a fixed order.

  Args:
    root: a folder with pictures in it or below it, or the directory of a prepared TFDS set (the one
      with features.json).
    split: of a TFDS set; "all" for folders.
    labelled: pictures must have classes: the folders right below root in sorted order (synsets), or
      the TFDS feature "label".

  Raises:
    ValueError: if there is no picture, or no class where one is wanted.
  """
  if (root / "features.json").is_file():
    return _tfds(root, split, labelled)
  if split != "all":
    raise ValueError(f"--split={split} is for TFDS sets (a directory with features.json); {root} "
                     "is a folder of pictures")  # fmt: skip
  paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in media.IMAGE_SUFFIXES)
  if not paths:
    raise ValueError(f"no pictures below {root}")
  names = [path.relative_to(root).as_posix() for path in paths]
  if not labelled:
    return [Picture(name, path) for name, path in zip(names, paths)]
  classes = class_folders(root)
  loose = next((name for name in names if "/" not in name), None)
  if loose is not None:
    raise ValueError(f"{root / loose} lies in no class's folder; classes are folders of {root}")
  number = {name: i for i, name in enumerate(classes)}
  return [Picture(n, p, number[n.split("/")[0]]) for n, p in zip(names, paths)]


def class_folders(root: pathlib.Path) -> list[str]:
  return sorted(p.name for p in root.iterdir() if p.is_dir())


def _tfds(root: pathlib.Path, split: str, labelled: bool) -> list[Picture]:
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(root)
  name = "validation" if split == "all" else split
  if name not in builder.info.splits:
    raise ValueError(f"{root} has no split {name!r}; it has {', '.join(builder.info.splits)}")
  for feature in ("image", "label") if labelled else ("image",):
    if feature not in builder.info.features:
      raise ValueError(f"{root} has no feature {feature!r}, but {list(builder.info.features)}")
  # Undecoded: the labels are read now, each picture when it is wanted.
  source = builder.as_data_source(split=name, decoders={"image": tfds.decode.SkipDecoding()})
  pictures = []
  for i in range(len(source)):
    label = int(source[i]["label"]) if labelled else None
    pictures.append(Picture(str(i), lambda i=i: source[i]["image"], label))
  return pictures
