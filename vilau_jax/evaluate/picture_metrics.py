"""How near a reconstruction is: crops of the evaluation protocols, PSNR, SSIM.

Axis letters: n pictures, S side.
"""

import functools

import numpy as np
from PIL import Image

from vilau_jax.data import media

CROPS = ("rqvae", "adm", "squash", "crop")


def crop(source: media.Source, side: int, protocol: str) -> np.ndarray:
  """A picture as an evaluation of reconstruction wants it, uint8 [S, S, 3].

  Args:
    source: see media.open_image.
    side: S.
    protocol: "rqvae" scales the short side (bilinear) and cuts out the middle, as torchvision's
      Resize and CenterCrop; "adm" halves with a box filter, then scales by bicubic and cuts out the
      middle (guided-diffusion, LlamaGen); "squash" is VILA-U's preprocessing for understanding,
      "crop" the one for generation.
  """
  if protocol == "squash":
    return media.to_square(source, side, "resize")
  if protocol == "crop":
    return media.to_square(source, side, "crop")
  image = media.open_image(source)
  if protocol == "adm":
    while min(image.size) >= 2 * side:
      image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    array = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    top, left = ((length - side) // 2 for length in array.shape[:2])
    return array[top : top + side, left : left + side]
  if protocol != "rqvae":
    raise ValueError(f"protocol must be one of {', '.join(CROPS)}; got {protocol!r}")
  short = min(image.size)
  size = tuple(side if length == short else int(side * length / short) for length in image.size)
  array = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
  top, left = (round((length - side) / 2) for length in array.shape[:2])
  return array[top : top + side, left : left + side]


def psnr(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """Of each pair of float pictures [n, S, S, 3] in 0..1, in dB [n]; infinite for equal ones."""
  error = np.square(first.astype(np.float64) - second).mean((1, 2, 3))
  with np.errstate(divide="ignore"):
    return -10 * np.log10(error)


def ssim(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """Structural similarity (Wang et al. 2004) of float pictures [n, S, S, 3] in 0..1, [n]: Gaussian
  window of 11 pixels and sigma 1.5, inside the picture only, mean over channels.

  Raises:
    ValueError: if S is below the window.
  """
  window = _window(first.shape[1])
  first, second = (np.moveaxis(x.astype(np.float64), -1, 1) for x in (first, second))
  smooth = lambda x: window @ x @ window.T  # noqa: E731
  mean1, mean2 = smooth(first), smooth(second)
  var1 = smooth(first * first) - mean1**2
  var2 = smooth(second * second) - mean2**2
  cov = smooth(first * second) - mean1 * mean2
  c1, c2 = 0.01**2, 0.03**2
  up = (2 * mean1 * mean2 + c1) * (2 * cov + c2)
  return (up / ((mean1**2 + mean2**2 + c1) * (var1 + var2 + c2))).mean((1, 2, 3))


@functools.cache
def _window(side: int) -> np.ndarray:
  """[S - 10, S]: every row is the Gaussian at another place."""
  if side < 11:
    raise ValueError(f"SSIM's window has 11 pixels, the pictures have {side}")
  weights = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
  rows = np.zeros((side - 10, side))
  for i, row in enumerate(rows):
    row[i : i + 11] = weights / weights.sum()
  return rows
