"""The judge of drawings: finds the sprites in a picture and compares them with what was asked.

Template matching pursuit at half resolution and slightly smoothed, where a decoder's blur costs
little: the background is the palette colour nearest to the border's median; every sprite, composed
on that background, is tried at every place; the one that explains most of the picture's energy is
taken if it explains enough of its own, its window is blanked, and so on. What no sprite explains is
not seen: a smear, an unknown object or a wrong colour inside an object does not count against a
drawing.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vilau_jax.data import media
from vilau_jax.data.formats.emoji import BACKGROUNDS, DIRECTIONS, Canvas, Placed, Scene, sprites

ACCEPT = 0.4  # share of a sprite's own energy that it must explain to be seen
LIMIT = 6  # objects looked for in a picture; scenes hold at most three
CHUNK = 64  # pictures judged at once


@dataclasses.dataclass(frozen=True)
class Found:
  """One object in a picture: `x`, `y` are its centre in pixels, `fit` in (0, 1] is the share of the
  sprite's energy that it explains."""

  name: str
  x: float
  y: float
  fit: float


@dataclasses.dataclass(frozen=True)
class Seen:
  """What a picture shows, objects from left to right."""

  background: str
  objects: tuple[Found, ...]


class Judge:
  """Looks at pictures of one size for sprites of one size.

  Args:
    sprites: name -> uint8 [P,P,4], P even.
    backgrounds: name -> red, green, blue in 0..255.
    accept: see ACCEPT.
    picture: pictures of another side are brought to this one first; 0 takes them as they are.
    step: places are tried every `step` pixels (even numbers need one template a sprite; 1 adds the
      templates that are shifted by half a pooled pixel).
  """

  def __init__(
    self,
    sprites: Mapping[str, np.ndarray],
    backgrounds: Mapping[str, Sequence[int]],
    *,
    accept: float = ACCEPT,
    picture: int = 0,
    step: int = 2,
  ):
    self.names = tuple(sprites)
    self.backgrounds = tuple(backgrounds)
    self.palette = np.array([backgrounds[name] for name in self.backgrounds], np.float32) / 255
    self.accept, self.picture = accept, picture
    stack = np.stack([sprites[name] for name in self.names]).astype(np.float32) / 255
    self.shifts = ((0, 0),) if step % 2 == 0 else ((0, 0), (0, 1), (1, 0), (1, 1))
    self.side = stack.shape[1]
    # Colour times alpha, and alpha: [shifts*sprites,h,w,4] with a margin for the smoothing.
    self._pooled = _smooth(_pool(_shifted(stack, self.shifts)))

  @classmethod
  def of(cls, canvas: Canvas) -> "Judge":
    """The judge of emoji scenes on a canvas."""
    return cls(sprites(canvas.sprite), BACKGROUNDS, picture=canvas.size, step=canvas.lattice)

  def parse(self, images: np.ndarray) -> list[Seen]:
    """Looks at pictures.

    Args:
      images: uint8 [n,S,S,3].

    Raises:
      ValueError: for another shape or type, or pictures smaller than a sprite.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
      raise ValueError(f"pictures must be uint8 [n,S,S,3], got {images.dtype} {images.shape}")
    if self.picture and images.shape[1:3] != (self.picture, self.picture):
      resized = [media.to_square(image, self.picture) for image in images]
      images = np.stack(resized) if resized else images
    if len(images) and min(images.shape[1:3]) < self.side:
      raise ValueError(f"pictures are smaller than a sprite: {images.shape[1:3]} < {self.side}")
    images = np.pad(images, ((0, 0), *((0, n % 2) for n in images.shape[1:3]), (0, 0)), "edge")
    seen = []
    for start in range(0, len(images), CHUNK):
      small = _pool(images[start : start + CHUNK].astype(np.float32) / 255)
      seen += self._parse_small(small)
    return seen

  def _parse_small(self, small: np.ndarray) -> list[Seen]:
    grounds = self._background(small)
    found: list[list[Found]] = [[] for _ in small]
    for ground in np.unique(grounds):
      rows = np.flatnonzero(grounds == ground)
      for row, objects in zip(rows, self._pursue(small[rows], self.palette[ground])):
        found[row] = objects
    return [
      Seen(self.backgrounds[ground], tuple(sorted(objects, key=lambda o: (o.x, o.y))))
      for ground, objects in zip(grounds, found)
    ]

  def _background(self, small: np.ndarray) -> np.ndarray:
    """[n,h,w,3] -> index of the palette colour nearest to the median of the border, [n]."""
    border = np.concatenate(
      [small[:, 0], small[:, -1], small[:, 1:-1, 0], small[:, 1:-1, -1]], axis=1
    )
    middle = np.median(border, axis=1)
    return np.square(middle[:, None] - self.palette).sum(-1).argmin(-1)

  def _pursue(self, small: np.ndarray, ground: np.ndarray) -> list[list[Found]]:
    templates = self._pooled[..., :3] - self._pooled[..., 3:] * ground  # [shifts*sprites,h,w,3]
    energy = np.square(templates).sum((1, 2, 3))
    height, width = templates.shape[1:3]
    kernel = templates.reshape(len(templates), -1).T
    rest = small - ground
    found: list[list[Found]] = [[] for _ in small]
    active = np.arange(len(small))
    for _ in range(LIMIT):
      smooth = _smooth(
        rest[active]
      )  # places count from the margin, that is from the picture's edge
      windows = np.lib.stride_tricks.sliding_window_view(smooth, (height, width), (1, 2))
      grid = windows.shape[1:3]
      windows = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, kernel.shape[0])
      gain = (2 * (windows @ kernel) - energy).reshape(len(active), -1)
      best = gain.argmax(-1)
      place, which = np.divmod(best, len(templates))
      fit = gain[np.arange(len(active)), best] / energy[which]
      taken = fit > self.accept
      for row, p, t, f in zip(active[taken], place[taken], which[taken], fit[taken]):
        y, x = np.divmod(p, grid[1])
        found[row].append(self._found(t, y, x, f))
        rest[row, y : y + height - 2, x : x + width - 2] = 0
      active = active[taken]
      if not len(active):
        break
    return found

  def _found(self, template: int, y: int, x: int, fit: float) -> Found:
    shift, which = divmod(int(template), len(self.names))
    dy, dx = self.shifts[shift]
    half = self.side / 2
    return Found(self.names[which], float(2 * x + dx + half), float(2 * y + dy + half), float(fit))


def _pool(x: np.ndarray) -> np.ndarray:
  """Mean of 2x2 pixels: [n,H,W,c] -> [n,H/2,W/2,c]."""
  n, height, width, channels = x.shape
  return x.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def _smooth(x: np.ndarray) -> np.ndarray:
  """Binomial 3x3 filter on black: [n,h,w,c] -> [n,h+2,w+2,c]."""
  x = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
  x = (x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]) / 4
  return (x[:, :, :-2] + 2 * x[:, :, 1:-1] + x[:, :, 2:]) / 4


def _shifted(sprites: np.ndarray, shifts) -> np.ndarray:
  """Sprites with colour multiplied by alpha, one copy a shift, padded to an even size."""
  premultiplied = np.concatenate([sprites[..., :3] * sprites[..., 3:], sprites[..., 3:]], -1)
  room = 2 if len(shifts) > 1 else 0
  return np.concatenate(
    [np.pad(premultiplied, ((0, 0), (dy, room - dy), (dx, room - dx), (0, 0))) for dy, dx in shifts]
  )


def score(seen: Seen, asked: Scene) -> dict[str, bool]:
  """Compares a picture with what was asked.

  Returns:
    background; object (exactly the kinds asked, no other); count (as many objects as asked, of
    whatever kind); pairs (only for scenes with two kinds: exactly these two, the first one left of
    the second); all of them at once.
  """
  names, wanted = _names(seen.objects), _names(asked.objects)
  right = {
    "background": seen.background == asked.background,
    "object": set(names) == set(wanted),
    "count": len(names) == len(wanted),
  }
  if asked.kind == "pair":  # both stand from left to right
    apart = all(a.x < b.x for a, b in zip(seen.objects, seen.objects[1:]))
    right["pairs"] = names == wanted and apart
  return {**right, "all": all(right.values())}


def direction(first: Seen, last: Seen, *, least: float) -> str | None:
  """Where the clearest object of the first frame is found in the last one.

  Args:
    first: what the first frame shows.
    last: the last frame.
    least: pixels by which it must have moved.

  Returns:
    A key of DIRECTIONS, or None if an object is missing or it stands still.
  """
  if not first.objects or not last.objects:
    return None
  a, b = (max(seen.objects, key=lambda o: o.fit) for seen in (first, last))
  dx, dy = b.x - a.x, b.y - a.y
  if max(abs(dx), abs(dy)) < least or abs(dx) == abs(dy):
    return None
  return max(DIRECTIONS, key=lambda name: dx * DIRECTIONS[name][0] + dy * DIRECTIONS[name][1])


def score_video(first: Seen, last: Seen, asked: Scene, *, least: float) -> dict[str, bool]:
  """background and object must be right in the first and in the last frame: exactly one object, the
  one asked for; direction: see `direction`; all: everything at once."""
  right = {
    "background": first.background == last.background == asked.background,
    "object": all(_names(s.objects) == _names(asked.objects) for s in (first, last)),
    "direction": direction(first, last, least=least) == asked.direction,
  }
  return {**right, "all": all(right.values())}


def rates(scores: Sequence[Mapping[str, bool]]) -> dict[str, float | int]:
  """Shares by attribute; `pairs` and `all_count_scenes` over the scenes they are defined for.

  Returns:
    The shares, with n, n_pairs and n_count_scenes; an attribute without a sample is 0.
  """
  shares: dict[str, float | int] = {}
  keys = dict.fromkeys(key for s in scores for key in s)
  for key in keys:
    shares[key] = _mean([s[key] for s in scores if key in s])
  singles = [s["all"] for s in scores if "pairs" not in s]
  shares.setdefault("pairs", 0.0)
  return {
    **shares,
    "all_count_scenes": _mean(singles),
    "n": len(scores),
    "n_count_scenes": len(singles),
    "n_pairs": len(scores) - len(singles),
  }


def _names(objects: Iterable[Found | Placed]) -> tuple[str, ...]:
  return tuple(o.name for o in objects)


def _mean(values: Sequence[bool]) -> float:
  return float(np.mean(values)) if len(values) else 0.0
