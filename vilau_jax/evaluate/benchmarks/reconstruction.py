"""Reconstruction by the tower, table 1: FID, PSNR, SSIM, LPIPS, and how the codebook is used.

Original and reconstruction are compared after the same crop, as floats: nothing is rounded on the
way. The paper's baselines are the RQ-VAE paper's, so its protocol is the default.
"""

import functools
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vilau_jax.evaluate import fid, picture_metrics, pictures_in
from vilau_jax.evaluate.replicas import PerDevice
from vilau_jax.evaluate.task import Found, Options, Request, Scores, mean, numbered, pick
from vilau_jax.models.inception import load_inception

RESIZE = {"rqvae": "pytorch_fid", "adm": "tf1", "squash": "pytorch_fid", "crop": "pytorch_fid"}


class Reconstruction:
  """Data: a folder of pictures (also nested), or a prepared TFDS set."""

  name = "reconstruction"

  def __init__(self, data: pathlib.Path, options: Options):
    options.check(self.name, ("inception", "lpips", "resize"))
    self.data, self.options = data, options
    self.protocol = pick("protocol", options.protocol, picture_metrics.CROPS)
    self.split = options.split or "all"
    resize = pick("resize", options.resize or RESIZE[self.protocol], fid.MODES)
    self.settings: dict[str, Any] = {
      "resize": resize if options.inception else None,
      "inception_sha256": file_hash(options.inception),
      "lpips_sha256": file_hash(options.lpips),
    }
    self.sources: list[pathlib.Path] = []
    self._inception = PerDevice(lambda: load_inception(options.inception))
    self._perceptual = PerDevice(self._load_perceptual)

  def requests(self) -> list[Request]:
    pictures = pictures_in.read(self.data, self.split)
    return numbered([Request(p.id, p) for p in pictures], str(self.data))

  def predict(
    self, model, requests: Sequence[Request], directory: pathlib.Path
  ) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    if model.config.tower is None:
      raise ValueError(f"{model.path} has no vision tower to reconstruct with")
    side = model.config.tower.image_size
    crops = []
    for request in requests:
      try:
        crops.append(picture_metrics.crop(request.content.open(), side, self.protocol))
      except ValueError as error:
        raise ValueError(f"picture {request.id}: {error}") from error
    squares = np.stack(crops)
    codes = model.encode_images(squares)
    drawn = (model.decode_codes(codes, floats=True) + 1) / 2
    true = squares.astype(np.float32) / 255
    found = {"psnr": picture_metrics.psnr(true, drawn), "ssim": picture_metrics.ssim(true, drawn)}
    if self.options.lpips:
      found["lpips"] = self._lpips(true, drawn)
    entries = model.config.tower.quantizer.entries
    flat = codes.reshape(len(codes), -1, codes.shape[-1])
    arrays = {"codes": flat, "entries": np.full(len(codes), entries)}
    if self.options.inception:
      of = functools.partial(fid.features, self._inception.get(), mode=self.settings["resize"])
      arrays |= {"true": of(images=true * 255), "drawn": of(images=drawn * 255)}
    rows = [{k: float(v[i]) for k, v in found.items()} for i in range(len(requests))]
    return rows, arrays

  def _load_perceptual(self):
    import jax

    from vilau_jax.models.perceptual import Lpips, load_lpips

    variables = load_lpips(self.options.lpips)
    widths = tuple(len(variables["params"][f"lin_{i}"]) for i in range(5))
    return jax.jit(functools.partial(Lpips(widths).apply, variables))

  def _lpips(self, true: np.ndarray, drawn: np.ndarray, batch: int = 16) -> np.ndarray:
    parts, perceptual = [], self._perceptual.get()
    for start in range(0, len(true), batch):
      pair = [x[start : start + batch] * 2 - 1 for x in (true, drawn)]
      count, missing = len(pair[0]), min(batch, len(true)) - len(pair[0])
      pair = [np.concatenate([x, np.zeros((missing, *x.shape[1:]), np.float32)]) for x in pair]
      parts.append(np.asarray(perceptual(*pair))[:count])
    return np.concatenate(parts)

  def adopt(self, rows, requests):
    raise ValueError(f"{self.name} can't be scored from a file of answers; give --model")

  def score(self, requests: Sequence[Request], found: Found) -> Scores:
    metrics = {
      name: mean(found.rows[r.id][name] for r in requests)
      for name in ("psnr", "ssim", *(["lpips"] if self.options.lpips else []))
    }
    counts, sides = None, (fid.Statistics(), fid.Statistics())
    waiting: list[dict[str, np.ndarray]] = []

    def take() -> None:
      for side, name in zip(sides, ("true", "drawn")):
        if waiting and name in waiting[0]:
          side.add(np.stack([arrays[name] for arrays in waiting]))
      waiting.clear()

    for arrays in found.arrays(requests):
      codes, entries = arrays["codes"], int(arrays["entries"])
      here = np.stack([np.bincount(c, minlength=entries) for c in codes.T])
      counts = here if counts is None else counts + here
      waiting.append(arrays)
      if len(waiting) == 1024:
        take()
    take()
    notes = []
    if self.options.inception:
      metrics = {"fid": fid.fid(*sides)} | metrics
      if len(requests) < fid.FEW:
        notes.append(
          f"FID of {len(requests)} pictures is far from that of many ({fid.FEW} at least)"
        )
    else:
      notes.append("no FID: give --inception=FILE (pytorch-fid's weights)")
    use = usage(counts)
    metrics |= {"perplexity": mean(use["perplexity"].values())}
    return Scores(metrics, len(requests), categories=use, notes=notes)


def usage(counts: np.ndarray) -> dict[str, dict[str, float]]:
  """Share of entries in use, and perplexity, by depth, of counts [R, E]."""
  shares = counts / counts.sum(-1, keepdims=True)
  logs = np.log(np.where(shares > 0, shares, 1))
  perplexity = np.exp(-(shares * logs).sum(-1))
  used = (counts > 0).mean(-1)
  name = lambda values: {f"depth {i}": float(v) for i, v in enumerate(values, 1)}  # noqa: E731
  return {"used": name(used), "perplexity": name(perplexity)}


def file_hash(path: str | None) -> str | None:
  """SHA-256 of a file of weights. Raises ValueError if it is not there."""
  if path is None:
    return None
  if not pathlib.Path(path).is_file():
    raise ValueError(f"no file of weights at {path}")
  with open(path, "rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()
