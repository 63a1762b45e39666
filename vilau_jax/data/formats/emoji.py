"""Scenes composed of Fluent emoji: pictures, captions, questions and short videos from a seed.

A simplification that every figure measured on these scenes depends on: sprites of 24 pixels stand
on a lattice of 12 pixels, so that with patches of 12 pixels each covers exactly 2x2 patches, and a
video moves by one lattice step a frame. `Canvas` makes other sizes.

60 % of the pictures show one to three copies of one object, 40 % two different objects side by
side. Whole combinations are held out, about a tenth of each kind: (object, background, count), (two
objects in either order, background), (object, background, direction); a video whose still picture
is held out is held out too. Every word of the test captions occurs in training.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vilau_jax.data.formats.sprites import sprite

OBJECTS = {  # name -> (label in the atlas, plural)
  "fox": ("fox", "foxes"),
  "frog": ("frog", "frogs"),
  "panda": ("panda", "pandas"),
  "penguin": ("penguin", "penguins"),
  "pig": ("pig face", "pigs"),
  "fish": ("fish", "fish"),
  "crab": ("crab", "crabs"),
  "butterfly": ("butterfly", "butterflies"),
  "owl": ("owl", "owls"),
  "apple": ("red apple", "apples"),
  "doughnut": ("doughnut", "doughnuts"),
  "hamburger": ("hamburger", "hamburgers"),
  "eggplant": ("eggplant", "eggplants"),
  "tree": ("deciduous tree", "trees"),
  "bus": ("bus", "buses"),
  "robot": ("robot", "robots"),
}
BACKGROUNDS = {
  "blue": (183, 212, 255),
  "green": (190, 236, 190),
  "yellow": (255, 238, 160),
  "pink": (255, 200, 224),
  "white": (255, 255, 255),
}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
NUMBERS = ("zero", "one", "two", "three")
HELD_OUT = 10  # one combination in ten
PAIRS = 0.4  # share of pictures with two different objects


@dataclasses.dataclass(frozen=True)
class Canvas:
  """Sizes in pixels: side of a picture, side of a sprite, distance of the places where sprites may
  stand, and frames of a video (one lattice step apart).

  Raises:
    ValueError: if three sprites do not fit beside each other, or a video leaves the picture.
  """

  size: int = 60
  sprite: int = 24
  lattice: int = 12
  frames: int = 4

  def __post_init__(self):
    if min(self.sprite, self.lattice, self.frames) < 1:
      raise ValueError(f"the sizes of a canvas must be positive: {self}")
    last = (self.size - self.sprite) // self.lattice * self.lattice
    if last < self.sprite:
      raise ValueError(f"two sprites must fit side by side: {self}")
    if (self.frames - 1) * self.lattice > last:
      raise ValueError(f"a sprite moving {self.frames} frames leaves the picture: {self}")

  @classmethod
  def of_size(cls, size: int) -> "Canvas":
    """The default canvas scaled to another side, which must be a multiple of 5.

    Raises:
      ValueError: for another size.
    """
    if size < 10 or size % 5:
      raise ValueError(f"the side of an emoji picture must be a multiple of 5, got {size}")
    return cls(size=size, sprite=2 * size // 5, lattice=size // 5)

  @property
  def places(self) -> range:
    """Where a sprite's left or upper edge may be."""
    return range(0, self.size - self.sprite + 1, self.lattice)


class Placed(NamedTuple):
  """An object and its upper left corner in pixels."""

  name: str
  x: int
  y: int


class Question(NamedTuple):
  """kind is "what", "count", "background", "side", "exists", "relation" or "direction"."""

  kind: str
  text: str
  answer: str


@dataclasses.dataclass(frozen=True)
class Scene:
  """What a picture or video shows. In a pair the left object stands first; a video has a direction
  and shows its first frame's place."""

  background: str
  objects: tuple[Placed, ...]
  direction: str = ""
  canvas: Canvas = Canvas()

  @property
  def kind(self) -> str:
    if self.direction:
      return "video"
    return "count" if len({o.name for o in self.objects}) == 1 else "pair"

  def to_json(self) -> str:
    return json.dumps({"kind": self.kind, **dataclasses.asdict(self)}, sort_keys=True)

  @classmethod
  def from_json(cls, text: str) -> "Scene":
    values = json.loads(text)
    return cls(
      background=values["background"],
      objects=tuple(Placed(*o) for o in values["objects"]),
      direction=values["direction"],
      canvas=Canvas(**values["canvas"]),
    )


def sprites(size: int) -> dict[str, np.ndarray]:
  """name -> uint8 [size,size,4] of every object.

  Raises:
    ValueError: if the atlas lacks one.
  """
  return {name: sprite(label, size) for name, (label, _) in OBJECTS.items()}


def render(scene: Scene, size: int | None = None) -> np.ndarray:
  """The picture of a scene (a video's first frame), uint8 [S,S,3]; other sizes scale it."""
  return _draw(scene, 0, size or scene.canvas.size)


def video(scene: Scene, size: int | None = None) -> np.ndarray:
  """The frames of a video, uint8 [F,S,S,3].

  Raises:
    ValueError: if the scene has no direction.
  """
  if scene.kind != "video":
    raise ValueError(f"a video needs a direction, this is a {scene.kind} scene")
  frames = range(scene.canvas.frames)
  return np.stack([_draw(scene, frame, size or scene.canvas.size) for frame in frames])


def _draw(scene: Scene, frame: int, size: int) -> np.ndarray:
  canvas = scene.canvas
  scale = size / canvas.size
  dx, dy = DIRECTIONS.get(scene.direction, (0, 0))
  image = Image.new("RGBA", (size, size), (*BACKGROUNDS[scene.background], 255))
  for name, x, y in scene.objects:
    drawn = Image.fromarray(sprite(OBJECTS[name][0], round(canvas.sprite * scale)))
    x, y = x + frame * dx * canvas.lattice, y + frame * dy * canvas.lattice
    image.alpha_composite(drawn, (round(x * scale), round(y * scale)))
  return np.asarray(image.convert("RGB"))


def one(name: str) -> str:
  """ "a fox", "an owl"."""
  return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def caption(scene: Scene) -> str:
  """What a person would ask for to get this scene."""
  names = [o.name for o in scene.objects]
  if scene.kind == "video":
    way = f"to the {scene.direction}" if scene.direction in ("left", "right") else scene.direction
    shown = f"{one(names[0])} moving {way}"
  elif scene.kind == "pair":
    shown = f"{one(names[0])} to the left of {one(names[1])}"
  elif len(names) == 1:
    shown = one(names[0])
  else:
    shown = f"{NUMBERS[len(names)]} {OBJECTS[names[0]][1]}"
  return f"{shown} on a {scene.background} background"


def wrong_captions(scene: Scene) -> list[str]:
  """Captions of scenes that differ in one thing: a pair's order, one of its objects, or the number
  of one kind. Those of the other split are left out. A video has none: its single frames show no
  direction."""
  if scene.kind == "video":
    return []
  if scene.kind == "pair":
    first, second = scene.objects
    absent = [name for name in OBJECTS if name not in (first.name, second.name)]
    drawn = np.random.default_rng(_hash(f"wrong {scene.to_json()}")).choice(absent, 2)
    arrangements = [  # the order every second time: it is the hardest to tell
      (second, first),
      (first._replace(name=str(drawn[0])), second),
      (second, first),
      (first, second._replace(name=str(drawn[1]))),
    ]
  else:
    numbers = (n for n in range(1, len(NUMBERS)) if n != len(scene.objects))
    arrangements = [scene.objects[:1] * n for n in numbers]
  others = [dataclasses.replace(scene, objects=objects) for objects in arrangements]
  return [caption(other) for other in others if split_of(other) == split_of(scene)]


def questions(scene: Scene) -> list[Question]:
  """Independent questions about a scene; as many answers are yes as no. A function of the scene."""
  rng = np.random.default_rng(_hash(scene.to_json()))
  names = [o.name for o in scene.objects]
  single, plural = one(names[0]), OBJECTS[names[0]][1]
  background = Question("background", "What color is the background?", scene.background)
  if scene.kind == "video":
    return [
      Question("direction", "In which direction does it move?", scene.direction),
      Question("what", "What is moving?", single),
      background,
    ]
  absent = [name for name in OBJECTS if name not in names]
  there, missing = names[rng.integers(len(names))], absent[rng.integers(len(absent))]
  asked = [
    Question("exists", f"Is there {one(there)}?", "yes"),
    Question("exists", f"Is there {one(missing)}?", "no"),
    background,
  ]
  if scene.kind == "count":
    return [
      Question("what", "What is in the picture?", single if len(names) == 1 else plural),
      Question("count", f"How many {plural} are there?", NUMBERS[len(names)]),
      *asked,
    ]
  flip = bool(rng.integers(2))
  first, second = reversed(names) if flip else names
  relation = f"Is the {first} to the left of the {second}?"
  return [
    Question("what", "What is in the picture?", f"{single} and {one(names[1])}"),
    Question("side", "What is on the left?", single),
    Question("side", "What is on the right?", one(names[1])),
    Question("relation", relation, "no" if flip else "yes"),
    *asked,
  ]


def split_of(scene: Scene) -> str:
  """ "train" or "test", by the scene's combination; the same for every seed and canvas."""
  names = sorted(o.name for o in scene.objects)
  ground = scene.background
  if scene.kind == "pair":
    return _split("pair", *names, ground)
  still = _split("count", names[0], ground, str(len(names)))
  if scene.kind == "video" and still == "train":
    return _split("video", names[0], ground, scene.direction)
  return still


def _split(*combination: str) -> str:
  return "test" if _hash(" ".join(combination)) % HELD_OUT == 0 else "train"


def _hash(text: str) -> int:
  return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def pictures(
  count: int, split: str, seed: int, canvas: Canvas = Canvas(), start: int = 0
) -> Iterator[Scene]:
  """Still scenes number start .. count - 1 of a split. Training scenes are drawn at random; test
  scenes go round all held-out combinations, so that prompts repeat only when every one has come
  up."""
  pools = {kind: _pool(kind, split, seed, canvas) for kind in ("count", "pair")}
  used = dict.fromkeys(pools, 0)
  for index in range(0 if split == "test" else start, count):
    rng = np.random.default_rng((seed, _hash(split) % 2**32, index))
    kind = "pair" if rng.random() < PAIRS else "count"
    place = used[kind] if split == "test" else int(rng.integers(len(pools[kind])))
    used[kind] += 1
    if index >= start:
      ground, combo = pools[kind][place % len(pools[kind])]
      yield _compose(kind, ground, combo, canvas, rng)


def videos(
  count: int, split: str, seed: int, canvas: Canvas = Canvas(), start: int = 0
) -> Iterator[Scene]:
  """Videos of a split, drawn like the pictures."""
  pool = _pool("video", split, seed, canvas)
  for index in range(start, count):
    rng = np.random.default_rng((seed, _hash("video" + split) % 2**32, index))
    place = index if split == "test" else int(rng.integers(len(pool)))
    ground, combo = pool[place % len(pool)]
    yield _compose("video", ground, combo, canvas, rng)


_COMBINATIONS = {
  "count": [(name, number) for name in OBJECTS for number in (1, 2, 3)],
  "pair": [(a, b) for a in OBJECTS for b in OBJECTS if a != b],
  "video": [(name, direction) for name in OBJECTS for direction in DIRECTIONS],
}


@functools.lru_cache(maxsize=8)
def _pool(kind: str, split: str, seed: int, canvas: Canvas) -> list[tuple[str, Any]]:
  """(background, combination) of a split, in an order drawn from the seed."""
  rng = np.random.default_rng((seed, _hash(kind) % 2**32))
  every = [(ground, combo) for ground in BACKGROUNDS for combo in _COMBINATIONS[kind]]
  fixed = np.random.default_rng(0)
  pool = [c for c in every if split_of(_compose(kind, *c, canvas, fixed)) == split]
  return [pool[i] for i in rng.permutation(len(pool))]


def _compose(kind: str, ground: str, combo, canvas: Canvas, rng: np.random.Generator) -> Scene:
  places = np.array(canvas.places)
  if kind == "video":
    name, direction = combo
    travel = (canvas.frames - 1) * canvas.lattice
    x, y = (int(v) for v in rng.choice(places, 2))
    dx, dy = DIRECTIONS[direction]
    allowed = places[places + travel <= places[-1]]
    x = x if not dx else int(rng.choice(allowed)) + (travel if dx < 0 else 0)
    y = y if not dy else int(rng.choice(allowed)) + (travel if dy < 0 else 0)
    return Scene(ground, (Placed(name, x, y),), direction, canvas)
  if kind == "pair":
    left = int(rng.choice(places[places + canvas.sprite <= places[-1]]))
    right = int(rng.choice(places[places >= left + canvas.sprite]))
    heights = rng.choice(places, 2)
    placed = [Placed(n, x, int(y)) for n, x, y in zip(combo, (left, right), heights)]
    return Scene(ground, tuple(placed), "", canvas)
  name, number = combo
  while True:  # rejection is fast: three sprites cover a third of the default canvas
    spots = rng.choice(places, (number, 2))
    gaps = np.abs(spots[:, None] - spots[None]).max(-1)
    if (gaps[~np.eye(number, dtype=bool)] >= canvas.sprite).all():
      return Scene(ground, tuple(Placed(name, int(x), int(y)) for x, y in spots), "", canvas)
