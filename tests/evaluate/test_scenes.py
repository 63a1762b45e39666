"""The judge of drawings: right about true pictures, robust to blur, not fooled by others."""

import dataclasses
import functools

import numpy as np
import pytest
from PIL import Image, ImageFilter

from vilau_jax.data.formats import emoji
from vilau_jax.data.formats.emoji import Placed, Scene
from vilau_jax.evaluate import scenes

ATTRIBUTES = ("background", "object", "count", "pairs", "all", "all_count_scenes")


@functools.cache
def judge():
  return scenes.Judge.of(emoji.Canvas())


@functools.cache
def truth():
  """Held-out and training scenes and their pictures."""
  made = [*emoji.pictures(250, "test", 0), *emoji.pictures(200, "train", 1)]
  return made, np.stack([emoji.render(scene) for scene in made])


def rates(images, asked):
  return scenes.rates(list(map(scenes.score, judge().parse(images), asked)))


def test_true_pictures_are_right_in_every_attribute():
  made, images = truth()
  found = rates(images, made)
  assert {name: found[name] for name in ATTRIBUTES} == dict.fromkeys(ATTRIBUTES, 1.0)
  assert found["n"] == 450 and found["n_pairs"] + found["n_count_scenes"] == 450
  assert found["n_pairs"] > 100


def test_it_finds_the_places():
  made, images = truth()
  for seen, scene in zip(judge().parse(images[:60]), made[:60]):
    want = sorted((o.x + 12.0, o.y + 12.0, o.name) for o in scene.objects)
    assert [(o.x, o.y, o.name) for o in seen.objects] == want
    assert all(0.99 < o.fit < 1.01 for o in seen.objects)


def noise(images, sigma):
  rng = np.random.default_rng(0)
  return np.clip(images + rng.normal(0, sigma, images.shape), 0, 255).astype(np.uint8)


def blur(images, radius):
  filter = ImageFilter.GaussianBlur(radius)
  return np.stack([np.asarray(Image.fromarray(image).filter(filter)) for image in images])


@pytest.mark.parametrize("damage, least", [
  (lambda x: noise(x, 30), 0.99),
  (lambda x: blur(x, 1.5), 0.98),
  (lambda x: noise(blur(x, 1), 15), 0.98),
  (lambda x: np.clip(x.astype(int) + 12, 0, 255).astype(np.uint8), 0.95),
])  # fmt: skip
def test_noise_and_blur_cost_little(damage, least):
  made, images = truth()
  assert rates(damage(images[:150]), made[:150])["all"] >= least


def test_pictures_of_other_captions_are_wrong():
  made, images = truth()
  captions = [emoji.caption(scene) for scene in made]
  other = [next(j for j in range(i + 7, 2 * len(made)) if captions[j % len(made)] != captions[i])
           for i in range(len(made))]  # fmt: skip
  found = rates(images[np.array(other) % len(made)], made)
  assert found["all"] <= 0.01 and found["object"] < 0.15 and found["pairs"] < 0.05


def test_smears_and_empty_pictures_hold_no_object():
  flat = np.full((4, 60, 60, 3), 200, np.uint8)
  flat[1, 10:50, 10:50] = (150, 150, 150)
  flat[2] = np.linspace(0, 255, 60).astype(np.uint8)[:, None, None]
  flat[3] = np.random.default_rng(0).integers(0, 256, (60, 60, 3))
  for seen in judge().parse(flat)[:1]:
    assert seen.objects == ()
  scene = Scene("white", (Placed("fox", 0, 0),))
  assert not any(scenes.score(seen, scene)["object"] for seen in judge().parse(flat))


CASES = {
  # what was drawn, what was asked, which attributes are right
  "another one": (["frog"], ["fox"], {"background", "count"}),
  "one too many": (["fox", "fox"], ["fox"], {"background", "object"}),
  "one missing": (["fox"], ["fox", "fox"], {"background", "object"}),
  "a stranger": (["fox", "frog"], ["fox", "fox"], {"background", "count"}),
  "order": (["frog", "fox"], ["fox", "frog"], {"background", "object", "count"}),
  "pair": (["fox", "frog"], ["fox", "frog"], {"background", "object", "count", "pairs", "all"}),
  "twins for a pair": (["fox", "fox"], ["fox", "frog"], {"background", "count"}),
  "nothing": ([], ["fox"], {"background"}),
}


def scene_of(names, background="blue"):
  return Scene(background, tuple(Placed(name, 24 * i, 12 * i) for i, name in enumerate(names)))


@pytest.mark.parametrize("name", CASES)
def test_every_attribute_by_itself(name):
  drawn, asked, right = CASES[name]
  image = np.full((60, 60, 3), emoji.BACKGROUNDS["blue"], np.uint8)
  image = emoji.render(scene_of(drawn)) if drawn else image
  found = scenes.score(judge().parse(image[None])[0], scene_of(asked))
  assert {key for key, ok in found.items() if ok} == right
  assert ("pairs" in found) == (len(set(asked)) == 2)
  wrong_ground = scenes.score(judge().parse(image[None])[0], scene_of(asked, "pink"))
  assert not wrong_ground["background"] and not wrong_ground["all"]


def test_videos():
  made = list(emoji.videos(60, "train", 3))
  films = np.stack([emoji.video(scene) for scene in made])

  def judged(films, asked):
    first, last = judge().parse(films[:, 0]), judge().parse(films[:, -1])
    return scenes.rates(
      [scenes.score_video(a, b, scene, least=12) for a, b, scene in zip(first, last, asked)]
    )

  found = judged(films, made)
  assert all(found[name] == 1.0 for name in ("background", "object", "direction", "all"))
  backwards = judged(films[:, ::-1], made)
  assert backwards["direction"] == 0 and backwards["object"] == 1
  frozen = judged(np.repeat(films[:, :1], 4, axis=1), made)
  assert frozen["direction"] == 0 and frozen["object"] == 1
  empty = films.copy()
  empty[:, -1] = empty[:, -1, :1, :1]
  assert judged(empty, made)["direction"] == 0 and judged(empty, made)["object"] == 0
  turned = [dataclasses.replace(s, objects=(s.objects[0]._replace(name="bus"),)) for s in made]
  others = [i for i, s in enumerate(made) if s.objects[0].name != "bus"]
  found = judged(films[others], [turned[i] for i in others])
  assert found["object"] == 0 and found["direction"] == 1


@pytest.mark.parametrize("canvas", [emoji.Canvas.of_size(120), emoji.Canvas.of_size(35),
                                    emoji.Canvas(64, 20, 4)])  # fmt: skip
def test_other_canvases(canvas):
  made = list(emoji.pictures(40, "test", 0, canvas))
  images = np.stack([emoji.render(scene) for scene in made])
  seen = scenes.Judge.of(canvas).parse(images)
  assert scenes.rates(list(map(scenes.score, seen, made)))["all"] >= 0.95


def test_drawings_of_another_size_are_brought_to_the_canvas():
  made, _ = truth()
  large = np.stack([emoji.render(scene, 120) for scene in made[:40]])
  assert rates(large, made[:40])["all"] == 1.0
  small = np.stack([emoji.render(scene, 40) for scene in made[:40]])
  assert rates(small, made[:40])["all"] >= 0.95


def test_what_is_no_picture_is_refused():
  with pytest.raises(ValueError, match="uint8"):
    judge().parse(np.zeros((1, 60, 60, 3), np.float32))
  with pytest.raises(ValueError, match="smaller than a sprite"):
    scenes.Judge(emoji.sprites(24), emoji.BACKGROUNDS).parse(np.zeros((1, 8, 8, 3), np.uint8))
  assert judge().parse(np.zeros((0, 60, 60, 3), np.uint8)) == []
