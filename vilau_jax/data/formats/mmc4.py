"""MMC4: documents with pictures between their sentences.

NAME.pkl with NAME.count, as VILA writes them (pictures inside, base64), or the original .jsonl
with the pictures in a folder. An entry: text_list, image_info (each with image_base64 or
image_name, and matched_text_index). The first six images are kept and ordered by their sentences.
"""

import functools
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from vilau_jax.data import imports, pieces
from vilau_jax.data.conversation import PLACEHOLDER
from vilau_jax.data.formats import entries, pickles, ranges

MAX_IMAGES = 6


def plan(
  source: str | os.PathLike | None, *, images: str | os.PathLike | None = None
) -> imports.Plan:
  """Records of kind "interleaved". A document with a picture that is missing or broken is rejected
  whole, as VILA does.

  Args:
    source: folder of .pkl or .jsonl files, or one such file.
    images: folder of the pictures of .jsonl files.

  Raises:
    ValueError: if there are no such files.
  """
  root = epath.Path(source) if source is not None else None
  if root is None or not root.is_file():
    root = entries.folder(source, "FOLDER with .pkl and .count, or .jsonl files")
    paths = entries.found(root, "*.pkl", "*.jsonl")
  else:
    paths = [root]
  if images is not None and not epath.Path(images).is_dir():
    raise ValueError(f"no folder at {images}; --images=FOLDER of the documents' pictures")
  return imports.Plan(
    format="mmc4",
    settings=entries.beside(images),
    source=root.name,
    files=pieces.fingerprint(root, paths),
    pieces=functools.partial(_pieces, paths),
    convert=functools.partial(_convert, None if images is None else str(images)),
  )


def _pieces(paths: list[epath.Path]) -> Iterator[pieces.Piece]:
  for whole in entries.file_pieces(paths):
    path = epath.Path(whole.payload)
    if path.suffix == ".pkl":
      yield whole
    else:
      for part in entries.json_pieces(path):
        yield part._replace(share=part.share * whole.share)


def _convert(images: str | None, payload: str | ranges.Range) -> Iterator[pieces.Converted]:
  if isinstance(payload, str):
    path = epath.Path(payload)
    found = entries.listed(path, pickles.load_list(path))
  else:
    path = epath.Path(payload.path)
    found = ranges.read_range(payload)
  return entries.convert(found, functools.partial(_record, images, path.stem), key="url")


def _record(images: str | None, name: str, value: dict[str, Any], number: int) -> dict[str, Any]:
  sentences, infos = value.get("text_list"), value.get("image_info")
  if not isinstance(sentences, list) or not sentences:
    raise ValueError(f"'text_list' must be a list of sentences, got {sentences!r:.60}")
  for place, sentence in enumerate(sentences):
    if not isinstance(sentence, str):
      raise ValueError(f"sentence {place} is not a string: {sentence!r:.60}")
  if not isinstance(infos, list) or not infos:
    raise ValueError("the document has no images ('image_info')")
  places = []
  for info in infos[:MAX_IMAGES]:
    place = info.get("matched_text_index") if isinstance(info, dict) else None
    if not isinstance(place, int) or not 0 <= place < len(sentences):
      raise ValueError(f"an image is matched to sentence {place!r:.200} of {len(sentences)}")
    places.append(place)
  order = sorted(range(len(places)), key=places.__getitem__)  # stable: ties keep their order
  return {
    "kind": "interleaved",
    "id": f"{name}#{number}",
    "source": "mmc4",
    "sentences": [s.replace(PLACEHOLDER, PLACEHOLDER.upper()) for s in sentences],
    "image_sentence_index": [places[i] for i in order],
    **entries.images([_image(images, infos[i]) for i in order]),
  }


def _image(images: str | None, info: dict[str, Any]) -> bytes:
  if info.get("image_base64") is not None:
    return entries.from_base64(info["image_base64"])
  if images is None:
    raise ValueError("the document's pictures are not in it: give their folder with --images")
  return entries.read(images, info.get("image_name"))
