"""Zero-shot ImageNet, table 1, with SigLIP's protocol (big_vision, Zhai et al. 2023).

The released VILA-U code has no path for this; here pictures are embedded from their quantised
features through the last encoder layer and the pooling head, as in the tower's training. A class is
the mean of its sentences' embeddings; both are normalised, the largest product wins.
"""

import hashlib
import importlib.util
import pathlib
import re
import string
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from vilau_jax.evaluate import pictures_in
from vilau_jax.evaluate.parts import replacing
from vilau_jax.evaluate.task import Found, Options, Request, Scores, numbered, percent, pick
from vilau_jax.evaluate.task import read_json as _json

CLASSES_SHA256 = "571ae1c583b4be7da87519494c52bf405a46af05d5815627c7a0dee997068b60"
TEMPLATES_SHA256 = {
  "siglip": "617764ae37ca494aff67b36e2f3b3919d44fd3eeb5b4dba56f207ad6723c3d05",
  "open_clip": "4f976686fb651bb5803d4689dcd849f75efe0ef19a3c801355bc9a6f03c8a5af",
  "clip_best": "5c945b4b35da9f638c63452151f797454d084aead4c1a8a90a8b592e93ed91ba",
}
_CLIP_BEST = (73, 7, 44, 69, 35, 67, 64)  # of the 80 sentences
_CLASSES_AT_ONCE = 16


class Imagenet:
  """Data: a folder of class folders (ImageNet's synsets, sorted), or a prepared TFDS set with
  labels. Names of classes and sentences come from an installed clip-benchmark, or from --classnames
  and --templates. Protocol "siglip" adds the bare name to the 80 sentences, "open_clip" does not,
  "clip_best" takes CLIP's seven best and the bare name; all write texts in lower case and without
  punctuation, as SigLIP's tokenizer does."""

  name = "imagenet"

  def __init__(self, data: pathlib.Path, options: Options):
    options.check(self.name, ("classnames", "templates"))
    self.data, self.options = data, options
    self.protocol = pick("protocol", options.protocol, tuple(TEMPLATES_SHA256))
    self.split = options.split or "all"
    self.classes = _list(options.classnames, "en_classnames.json")
    self.templates = _list(options.templates, "en_zeroshot_classification_templates.json")
    self.templates = [template.replace("{c}", "{}") for template in self.templates]
    if options.templates is None and self.protocol == "clip_best":
      self.templates = [self.templates[i] for i in _CLIP_BEST]
    if options.templates is None and self.protocol != "open_clip":
      self.templates.append("{}")
    broken = [t for t in self.templates if t.count("{}") != 1]
    if broken:
      raise ValueError(f"a template needs one {{}} for the class, got {broken[0]!r}")
    self.settings: dict[str, Any] = {
      "classnames_sha256": list_hash(self.classes), "templates_sha256": list_hash(self.templates),
    }  # fmt: skip
    self.sources: list[pathlib.Path] = []
    self._embedded: np.ndarray | None = None
    self._lock = threading.Lock()

  def requests(self) -> list[Request]:
    pictures = pictures_in.read(self.data, self.split, labelled=True)
    if not (self.data / "features.json").is_file():
      folders = pictures_in.class_folders(self.data)
      if len(folders) != len(self.classes):
        raise ValueError(
          f"{self.data} has {len(folders)} class folders, but there are {len(self.classes)} names "
          "of classes; give --classnames=FILE in the order of the sorted folders"
        )
    most = max(p.label for p in pictures)
    if most >= len(self.classes):
      raise ValueError(f"label {most} is beyond the {len(self.classes)} names of classes")
    return numbered([Request(p.id, p, p.label) for p in pictures], str(self.data))

  def predict(
    self, model, requests: Sequence[Request], directory: pathlib.Path
  ) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    images = model.embed_images([request.content.open() for request in requests])
    best = ranked(images, self._class_embeddings(model, directory))
    return [{"best": row} for row in best], {}

  def _class_embeddings(self, model, directory: pathlib.Path) -> np.ndarray:
    """[classes, D]; kept beside the predictions, which belong to the same model and lists."""
    with self._lock:  # one replica computes them, the others wait
      return self._embed_classes(model, directory / "classes.npy")

  def _embed_classes(self, model, path: pathlib.Path) -> np.ndarray:
    if self._embedded is None and path.exists():
      self._embedded = np.load(path, allow_pickle=False)
    if self._embedded is None:
      parts = []
      for start in range(0, len(self.classes), _CLASSES_AT_ONCE):
        names = self.classes[start : start + _CLASSES_AT_ONCE]
        texts = [prompt(t, name) for name in names for t in self.templates]
        embedded = model.embed_texts(texts, canon="hf")
        parts.append(ensemble(embedded.reshape(len(names), len(self.templates), -1)))
      self._embedded = np.concatenate(parts)
      with replacing(path) as temporary:
        with open(temporary, "wb") as f:
          np.save(f, self._embedded)
    return self._embedded

  def adopt(self, rows, requests):
    raise ValueError(f"{self.name} can't be scored from a file of answers; give --model")

  def score(self, requests: Sequence[Request], found: Found) -> Scores:
    best = {r.id: found.rows[r.id]["best"] for r in requests}
    metrics = {
      "top1": percent(best[r.id][0] == r.truth for r in requests),
      "top5": percent(r.truth in best[r.id] for r in requests),
    }
    notes = []
    wanted = (CLASSES_SHA256, TEMPLATES_SHA256[self.protocol])
    if (self.settings["classnames_sha256"], self.settings["templates_sha256"]) != wanted:
      notes.append("other classes or sentences than the protocol's")
    return Scores(metrics, len(requests), notes=notes)


def canonical(text: str, keep: str = "") -> str:
  """Lower case, "_" as space, single spaces, no ASCII punctuation except the string `keep`
  (big_vision's canonicalisation)."""
  text = text.replace("_", " ")
  parts = text.split(keep) if keep else [text]
  bare = str.maketrans("", "", string.punctuation)
  text = keep.join(part.translate(bare) for part in parts).lower()
  return re.sub(r"\s+", " ", text).strip()


def prompt(template: str, name: str) -> str:
  """A class in a sentence; of several names the first."""
  first = canonical(name, ",").split(",")[0].strip()
  return canonical(template, "{}").replace("{}", first)


def ensemble(embeddings: np.ndarray) -> np.ndarray:
  """Normalised embeddings [classes, templates, D] -> normalised means [classes, D]."""
  means = embeddings.mean(1)
  return means / (np.linalg.norm(means, axis=-1, keepdims=True) + 1e-8)


def ranked(images: np.ndarray, classes: np.ndarray, count: int = 5) -> list[list[int]]:
  """The classes of each image [n, D] by their products, best first; the first of equals."""
  order = np.argsort(-(images @ classes.T), axis=-1, kind="stable")
  return order[:, :count].tolist()


def list_hash(lines: Sequence[str]) -> str:
  return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _list(file: str | None, packaged: str) -> list[str]:
  """A JSON list of texts, from the file or from clip-benchmark."""
  if file is not None:
    if not pathlib.Path(file).is_file():
      raise ValueError(f"no list at {file}")
    lines = _json(file)
  else:
    package = importlib.util.find_spec("clip_benchmark")
    if package is None:
      raise ValueError(
        "names of classes and sentences come with clip-benchmark, which is not installed: pip "
        "install clip-benchmark, or give --classnames=FILE and --templates=FILE (JSON lists)"
      )
    lines = _json(pathlib.Path(package.origin).parent / "datasets" / packaged)["imagenet1k"]
  if not isinstance(lines, list) or not lines or not all(isinstance(x, str) for x in lines):
    raise ValueError(f"{file or packaged} must be a JSON list of texts")
  return lines
