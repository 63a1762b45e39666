"""Samples in tar files: neighbours of the same name but for the last suffix."""

import os
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from etils import epath

from vilau_jax.data.pieces import Reject

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tiff")  # the first that is there is taken
# What damaged headers make tarfile raise beside its own errors.
_BREAKS = (EOFError, OSError, ValueError, LookupError, OverflowError, RecursionError)


class Sample(NamedTuple):
  """Attributes: key (the stem, folders included), where (file and byte), parts (suffix -> data)."""

  key: str
  where: str
  parts: dict[str, bytes]

  def image(self) -> bytes:
    """Raises: ValueError if there is none."""
    for suffix in IMAGES:
      if suffix in self.parts:
        return self.parts[suffix]
    raise ValueError(f"no image: the sample has {sorted(self.parts)}")


def samples(path: epath.Path) -> Iterator[Sample | Reject]:
  """The samples of a tar in their order; where it is cut off, a Reject comes last and the sample
  that was begun is left out.

  Raises:
    ValueError: if it is no tar.
  """
  with path.open("rb") as f:
    try:
      archive = tarfile.open(fileobj=f, mode="r:")
    except (tarfile.TarError, *_BREAKS) as error:
      raise ValueError(f"{path} is not a tar file: {error!s:.200}") from error
    with archive:
      yield from _grouped(path, archive)


def _grouped(path: epath.Path, archive: tarfile.TarFile) -> Iterator[Sample | Reject]:
  current: Sample | None = None
  problem, member = "", None
  size = path.stat().length
  while not problem:
    try:
      if (member := archive.next()) is None:
        break
      # A sparse member is as long as it says; others end with the file.
      if member.issparse() or member.offset_data + member.size > size:
        problem = f"the tar is damaged from here on: {member.name!r:.80} has {member.size} bytes"
        break
      data = archive.extractfile(member).read() if member.isfile() else None
    except (tarfile.TarError, *_BREAKS) as error:
      problem = f"the tar is damaged from here on: {error!s:.200}"
      break
    if data is None or os.path.basename(member.name).startswith("."):
      continue
    key, suffix = os.path.splitext(member.name)
    if current is None or current.key != key:
      if current is not None:
        yield current
      current = Sample(key, f"{path.name}, byte {member.offset}", {})
    current.parts[suffix.lower()] = data
  if not problem:
    # tarfile takes anything that is no header for the end, which is marked by zeros.
    archive.fileobj.seek(archive.offset - archive.offset % tarfile.BLOCKSIZE)
    mark = archive.fileobj.read(tarfile.BLOCKSIZE)
    if len(mark) < tarfile.BLOCKSIZE or any(mark):
      problem = "the tar goes on as no tar or ends without its end mark: what followed is lost"
  if current is not None and (not problem or _whole(current)):
    yield current
  elif current is not None:
    yield Reject(current.key, "the tar is damaged within this sample", current.where)
  if problem:
    yield Reject("", problem, f"{path.name}, byte {archive.offset}", damaged=True)


def _whole(sample: Sample) -> bool:
  """Whether a sample is not half of one: it has a picture and something said about it."""
  return any(s in sample.parts for s in IMAGES) and bool({".json", ".txt"} & set(sample.parts))
