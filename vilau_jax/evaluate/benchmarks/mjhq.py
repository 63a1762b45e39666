"""MJHQ-30K (Li et al. 2024), tables 4, 8 and 9: FID between drawings and pictures for the same
prompts, over all and by category.

The paper does not say how its FID was computed; SDXL's number in its table is that of the data
set's card, which uses clean-fid on pictures of their own sizes, so that is the default.
"""

import functools
import hashlib
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vilau_jax.data import media
from vilau_jax.evaluate import drawing_tasks, fid
from vilau_jax.evaluate.benchmarks.reconstruction import file_hash
from vilau_jax.evaluate.drawing_tasks import Wish
from vilau_jax.evaluate.parts import replacing
from vilau_jax.evaluate.task import (
  Found,
  Options,
  Request,
  Scores,
  field,
  find_file,
  numbered,
  pick,
  read_json,
)
from vilau_jax.models.inception import load_inception

_AT_ONCE = 256  # pictures whose features are one file


class Mjhq:
  """Data: meta_data.json, and CATEGORY/ID.jpg as references (or --reference=FOLDER). Drawings go to
  images/CATEGORY/ID.png. Without --inception the folder is there for another tool to score."""

  name = "mjhq-30k"

  def __init__(self, data: pathlib.Path, options: Options):
    options.check(self.name, ("inception", "resize", "reference", "cfg_scales"))
    self.data, self.options = data, options
    self.resize = pick("resize", options.resize, fid.MODES)
    self.protocol = pick("protocol", options.protocol, fid.MODES) if options.protocol else (
      self.resize
    )  # fmt: skip
    if options.protocol and options.resize and self.protocol != self.resize:
      raise ValueError(f"--protocol={self.protocol} and --resize={self.resize}: give one of them")
    self.split = pick("split", options.split, ("all",))
    self.scales: tuple[float | None, ...] = options.cfg_scales or self.default_scales
    self.settings: dict[str, Any] = {"cfg_scales": list(self.scales)}
    self.sources: list[pathlib.Path] = []
    file_hash(options.inception)  # is it there?

  default_scales: tuple[float | None, ...] = (None,)

  def requests(self) -> list[Request]:
    if len(self.scales) != 1:
      raise ValueError(f"{self.name} draws with one --cfg_scales; use cfg-sweep for several")
    return numbered(self._requests(self.scales[0], "images"), str(self.data))

  def _requests(self, scale: float | None, folder: str, prefix: str = "") -> list[Request]:
    path = find_file(self.data, "meta_data.json")
    if path not in self.sources:
      self.sources.append(path)
    requests = []
    for i, (name, row) in enumerate(read_json(path).items()):
      category, prompt = (field(row, k, f"{path}, {name}") for k in ("category", "prompt"))
      wish = Wish(prompt, f"{folder}/{category}/{name}.png", self.options.seed + i, scale)
      requests.append(Request(f"{prefix}{name}", wish, (category, name)))
    return requests

  def predict(
    self, model, requests: Sequence[Request], directory: pathlib.Path
  ) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    rows = drawing_tasks.draw(
      model, requests, directory, self.options.batch_size, video=False, write=media.write_image
    )
    return rows, {}

  def adopt(self, rows, requests):
    raise ValueError(f"{self.name} can't be scored from a file of answers; give --model")

  def score(self, requests: Sequence[Request], found: Found) -> Scores:
    if self.options.inception is None:
      note = f"no FID: give --inception=FILE, or score {found.directory / 'images'} with clean-fid"
      return Scores({}, len(requests), partial=note)
    overall, categories = self._fids(requests, found)
    notes = []
    if len(requests) < fid.FEW:
      notes.append(f"FID of {len(requests)} pictures is far from that of many ({fid.FEW} at least)")
    details = {"inception_sha256": file_hash(self.options.inception), "resize": self.protocol}
    return Scores({"fid": overall}, len(requests), categories={"category": categories},
                  details=details, notes=notes)  # fmt: skip

  def _fids(self, requests: Sequence[Request], found: Found) -> tuple[float, dict[str, float]]:
    """Over all, and by category where there are two pictures at least."""
    whole = (fid.Statistics(), fid.Statistics())
    parts: dict[str, tuple[fid.Statistics, fid.Statistics]] = {}
    cache = found.directory / "features"
    cache.mkdir(exist_ok=True)
    drawn = [found.directory / r.content.file for r in requests]
    for side, paths in ((0, [self._reference(r) for r in requests]), (1, drawn)):
      for start, values in self._features(paths, cache):
        whole[side].add(values)
        for request, value in zip(requests[start:], values):
          pair = parts.setdefault(request.truth[0], (fid.Statistics(), fid.Statistics()))
          pair[side].add(value[None])
    categories = {name: fid.fid(*pair) for name, pair in sorted(parts.items()) if pair[0].n > 1}
    return fid.fid(*whole), categories

  def _reference(self, request: Request) -> pathlib.Path:
    root = pathlib.Path(self.options.reference or self.data)
    category, name = request.truth
    for suffix in (".jpg", ".png", ".jpeg"):
      path = root / category / f"{name}{suffix}"
      if path.is_file():
        return path
    raise ValueError(f"no reference picture {category}/{name}.jpg in {root}")

  def _features(
    self, paths: Sequence[pathlib.Path], cache: pathlib.Path
  ) -> Iterable[tuple[int, np.ndarray]]:
    """(first index, features) of some pictures at a time; computed once, then read."""
    weights = file_hash(self.options.inception)
    for start in range(0, len(paths), _AT_ONCE):
      here = paths[start : start + _AT_ONCE]
      stamp = [weights, self.protocol, *(f"{p} {p.stat().st_size}" for p in here)]
      path = cache / f"{hashlib.sha256(chr(10).join(stamp).encode()).hexdigest()[:24]}.npy"
      if not path.exists():
        pictures = (np.asarray(media.open_image(p)) for p in here)
        values = fid.features(self._inception, pictures, self.protocol)
        with replacing(path) as temporary:
          with open(temporary, "wb") as f:
            np.save(f, values)
      yield start, np.load(path, allow_pickle=False)

  @functools.cached_property
  def _inception(self):
    return load_inception(self.options.inception)


class CfgSweep(Mjhq):
  """MJHQ-30K at several guidance scales (the paper's are 1, 2, 3 and 5), same seeds for each."""

  name = "cfg-sweep"
  default_scales = (1.0, 2.0, 3.0, 5.0)

  def requests(self) -> list[Request]:
    if len(set(self.scales)) != len(self.scales):
      raise ValueError(f"--cfg_scales names a scale twice: {self.scales}")
    requests = []
    for scale in self.scales:
      requests += self._requests(scale, f"images/cfg-{scale:g}", f"cfg-{scale:g}/")
    return numbered(requests, str(self.data))

  def score(self, requests: Sequence[Request], found: Found) -> Scores:
    if self.options.inception is None:
      return super().score(requests, found)
    metrics = {}
    for scale in self.scales:
      here = [r for r in requests if r.content.cfg_scale == scale]
      if len(here) > 1:
        metrics[f"fid_cfg_{scale:g}"] = self._fids(here, found)[0]
    curve = {name.removeprefix("fid_cfg_"): value for name, value in metrics.items()}
    details = {"inception_sha256": file_hash(self.options.inception), "resize": self.protocol}
    return Scores(metrics, len(requests), categories={"cfg_scale": curve}, details=details)
