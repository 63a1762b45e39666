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
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vilau_jax.data import media, records
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


def pictures(count: int, split: str, seed: int, canvas: Canvas = Canvas()) -> Iterator[Scene]:
  """Still scenes of a split. Training scenes are drawn at random; test scenes go round all held-out
  combinations, so that prompts repeat only when every one has come up."""
  kinds = {
    "count": [(name, number) for name in OBJECTS for number in (1, 2, 3)],
    "pair": [(a, b) for a in OBJECTS for b in OBJECTS if a != b],
  }
  pools = {kind: _pool(kind, combos, split, seed, canvas) for kind, combos in kinds.items()}
  used = dict.fromkeys(kinds, 0)
  for index in range(count):
    rng = np.random.default_rng((seed, _hash(split) % 2**32, index))
    kind = "pair" if rng.random() < PAIRS else "count"
    place = used[kind] if split == "test" else int(rng.integers(len(pools[kind])))
    used[kind] += 1
    ground, combo = pools[kind][place % len(pools[kind])]
    yield _compose(kind, ground, combo, canvas, rng)


def videos(count: int, split: str, seed: int, canvas: Canvas = Canvas()) -> Iterator[Scene]:
  """Videos of a split, drawn like the pictures."""
  combos = [(name, direction) for name in OBJECTS for direction in DIRECTIONS]
  pool = _pool("video", combos, split, seed, canvas)
  for index in range(count):
    rng = np.random.default_rng((seed, _hash("video" + split) % 2**32, index))
    place = index if split == "test" else int(rng.integers(len(pool)))
    ground, combo = pool[place % len(pool)]
    yield _compose("video", ground, combo, canvas, rng)


def _pool(kind, combos, split, seed, canvas) -> list[tuple[str, Any]]:
  """(background, combination) of a split, in an order drawn from the seed."""
  rng = np.random.default_rng((seed, _hash(kind) % 2**32))
  every = [(ground, combo) for ground in BACKGROUNDS for combo in combos]
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


def to_record(scene: Scene, name: str, source: str = "emoji") -> dict[str, Any]:
  """A scene as it is stored: caption, PNG pictures, all questions, and the scene itself."""
  asked = questions(scene)
  record = {
    "kind": "i2t",
    "id": name,
    "source": source,
    "caption": caption(scene),
    "conversations_from": ["human", "gpt"] * len(asked),
    "conversations_value": [text for q in asked for text in (q.text, q.answer)],
    "scene": scene.to_json(),
  }
  shown = video(scene) if scene.kind == "video" else render(scene)[None]
  encoded = [media.encode_png(image) for image in shown]
  record["width"] = record["height"] = [scene.canvas.size] * len(encoded)
  if scene.kind != "video":
    return {**record, "images": encoded}
  count = len(encoded)
  moving = dict(kind="t2v", frames=encoded, frame_index=list(range(count)), n_frames=count, fps=4.0)
  return {**record, **moving}


def convert(
  source: None,
  output: str | os.PathLike,
  *,
  scenes: int = 8000,
  videos: int = 1500,
  test_scenes: int = 400,
  test_videos: int = 120,
  seed: int = 0,
  canvas: Canvas = Canvas(),
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:
  """Writes train_scenes, train_videos, test_scenes and test_videos into `output`.

  A part that is there already is kept, so an interrupted import goes on; the same arguments give
  byte-identical shards.

  Args:
    source: None; the sprites come with the package.
    progress: called with the number of finished records and of all.

  Returns:
    records by part.

  Raises:
    ValueError: if output holds something else, or a count is below 1.
  """
  counts = dict(
    train_scenes=scenes, train_videos=videos, test_scenes=test_scenes, test_videos=test_videos
  )
  total, done = sum(counts.values()), 0
  for part, count in counts.items():
    if count < 1:
      raise ValueError(f"--{part.removeprefix('train_')} must be at least 1, got {count}")
    split, what = part.split("_")
    draw = _PARTS[what](count, split, seed, canvas)
    settings = dict(count=count, seed=seed, canvas=dataclasses.asdict(canvas))
    info = {"format": "emoji", "part": part, **settings}
    path = pathlib.Path(output) / part
    if records.is_finished(path, info):
      done += count
      progress(done, total)
      continue
    with records.Writer(path, part, info=info) as writer:
      for number, scene in enumerate(draw):
        writer.write(to_record(scene, f"{part}/{number:06}"))
        done += 1
        progress(done, total)
  return counts


_PARTS = {"scenes": pictures, "videos": videos}
