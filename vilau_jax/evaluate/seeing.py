"""Figures of the tower: reconstruction by depth, codebook use, the judge's ceiling, retrieval.

Axis letters: n pictures, S side, h, w grid, R residual depth, E entries, D embedding width.
"""

from typing import Any

import numpy as np

from vilau_jax.evaluate import scenes
from vilau_jax.evaluate.scenes import Judge
from vilau_jax.evaluate.sets import Sets, TestSet

Found = tuple[dict[str, Any], dict[str, np.ndarray]]


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Peak signal-to-noise ratio of each pair of uint8 pictures [n,S,S,3], dB [n]; equal pictures
  count as 60 dB."""
  error = np.square(a.astype(np.float64) - b.astype(np.float64)).mean((1, 2, 3))
  return 10 * np.log10(255**2 / np.maximum(error, 255**2 / 1e6))


def pictures(model, sets: Sets, judge: Judge, *, shown: int = 6, most: int = 400) -> Found:
  """Reconstructs held-out scenes, easy-VQA test pictures and frames of videos."""
  values: dict[str, Any] = {"psnr": {}, "psnr_by_depth": {}}
  arrays = {}
  videos = sets.videos.first(most // 4).images
  for name, images in (
    ("scenes", sets.scenes.first(most).images),
    ("easy_vqa", sets.easy_vqa.first(most).images),
    ("video", videos.reshape(-1, *videos.shape[2:])),
  ):
    codes = model.encode_images(images)
    depths = range(1, codes.shape[-1] + 1) if name != "video" else [codes.shape[-1]]
    steps = [model.decode_codes(codes[..., :r]) for r in depths]
    by_depth = [float(psnr(images, step).mean()) for step in steps]
    values["psnr"][name] = {"value": by_depth[-1], "n": len(images)}
    values["psnr_by_depth"][name] = by_depth
    arrays[name] = images[:shown]
    arrays[f"{name}_by_depth"] = np.stack([step[:shown] for step in steps], axis=1)
    if name == "scenes":
      entries = model.config.tower.quantizer.entries
      values["codes"] = usage(codes, entries)
      values["judge"] = _judge_rates(judge, sets.scenes.first(most), steps[-1])
  return values, arrays


def usage(codes: np.ndarray, entries: int) -> dict[str, Any]:
  """Entries in use and perplexity by depth of codes [...,R]."""
  flat = codes.reshape(-1, codes.shape[-1])
  shares = np.stack([np.bincount(c, minlength=entries) for c in flat.T]) / len(flat)
  entropy = -(shares * np.log(np.maximum(shares, 1e-12))).sum(-1)
  return {
    "entries": entries,
    "positions": len(flat),
    "used": (shares > 0).sum(-1).tolist(),
    "perplexity": np.exp(entropy).round(4).tolist(),
  }


def retrieval(model, test: TestSet, *, most: int = 150) -> Found:
  """Each picture looks for its caption among unique captions by the contrastive route, from the
  quantised features."""
  first = {caption: i for i, caption in reversed(list(enumerate(test.captions)))}
  chosen = sorted(first.values())[:most]
  images = model.embed_images(test.images[chosen])
  texts = model.embed_texts([test.captions[i] for i in chosen])
  similarity = images @ texts.T  # [n,n]
  own = np.diag(similarity)[:, None]
  # Ties count against the picture, so that a collapsed tower does not look good.
  rank = (similarity >= own).sum(-1) - 1
  n = len(chosen)
  return {"at_1": float((rank < 1).mean()), "at_5": float((rank < 5).mean()), "n": n}, {}


def _judge_rates(judge: Judge, test: TestSet, reconstructed: np.ndarray) -> dict[str, Any]:
  truth = judge.parse(test.images)
  mended = judge.parse(reconstructed)
  score = lambda seen: scenes.rates(list(map(scenes.score, seen, test.scenes)))  # noqa: E731
  return {
    "ground_truth": score(truth),
    "ceiling": score(mended),
    "shuffled": score([truth[i] for i in test.other()]),
  }
