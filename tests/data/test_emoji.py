import collections
import hashlib
import itertools
import shutil

import numpy as np
import pytest

from vilau_jax.data import imports, media, records
from vilau_jax.data.formats import emoji as E
from vilau_jax.data.formats import emoji_import

DEFAULT = E.Canvas()


def some(count=300, split="train", seed=0, canvas=DEFAULT):
  return [*E.pictures(count, split, seed, canvas), *E.videos(count, split, seed, canvas)]


def combination(scene):
  names = tuple(sorted(o.name for o in scene.objects))
  return (scene.kind, names, scene.background, scene.direction)


def test_captions_are_english():
  canvas = E.Canvas()
  at = lambda name, x, y: E.Placed(name, x, y)  # noqa: E731
  cases = {
    "two foxes on a blue background": E.Scene("blue", (at("fox", 0, 0), at("fox", 36, 0))),
    "an owl on a white background": E.Scene("white", (at("owl", 0, 0),)),
    "three fish on a pink background": E.Scene(
      "pink", tuple(at("fish", x, x) for x in (0, 24, 36))
    ),
    "a fox to the left of an apple on a green background": E.Scene(
      "green", (at("fox", 0, 0), at("apple", 36, 0))
    ),
    "a bus moving to the left on a blue background": E.Scene("blue", (at("bus", 36, 0),), "left"),
    "an eggplant moving up on a blue background": E.Scene(
      "blue", (at("eggplant", 0, 36),), "up", canvas
    ),
  }
  for text, scene in cases.items():
    assert E.caption(scene) == text
    assert E.Scene.from_json(scene.to_json()) == scene


def test_scenes_stand_on_the_lattice_apart_and_inside():
  for scene in some():
    canvas = scene.canvas
    corners = np.array([(o.x, o.y) for o in scene.objects])
    if scene.kind == "video":
      ways = np.array(E.DIRECTIONS[scene.direction]) * canvas.lattice
      corners = corners + ways * np.arange(canvas.frames)[:, None]
    assert (corners % canvas.lattice == 0).all()
    assert (corners >= 0).all() and (corners <= canvas.size - canvas.sprite).all()
    if scene.kind != "video":
      for a, b in itertools.combinations(corners, 2):
        assert np.abs(a - b).max() >= canvas.sprite
    if scene.kind == "pair":
      assert scene.objects[0].x + canvas.sprite <= scene.objects[1].x


def test_pictures_show_what_they_say():
  scene = E.Scene("yellow", (E.Placed("fox", 12, 24),))
  picture = E.render(scene)
  assert picture.shape == (60, 60, 3) and picture.dtype == np.uint8
  outside = np.ones((60, 60), bool)
  outside[24:48, 12:36] = False
  assert (picture[outside] == E.BACKGROUNDS["yellow"]).all()
  sprite = E.sprites(24)["fox"].astype(float)
  alpha = sprite[..., 3:] / 255
  want = sprite[..., :3] * alpha + np.array(E.BACKGROUNDS["yellow"]) * (1 - alpha)
  assert np.abs(picture[24:48, 12:36] - want).max() <= 2
  assert E.render(scene, 120).shape == (120, 120, 3)


def test_videos_move_one_step_a_frame():
  scene = E.Scene("blue", (E.Placed("bus", 36, 12),), "left")
  frames = E.video(scene)
  np.testing.assert_array_equal(frames[0], E.render(scene))
  for i in range(3):
    np.testing.assert_array_equal(frames[i][:, 12:], frames[i + 1][:, :-12])
  with pytest.raises(ValueError, match="needs a direction"):
    E.video(E.Scene("blue", (E.Placed("bus", 0, 0),)))


def test_questions_are_answered_by_the_scene():
  answers = collections.Counter()
  for scene in some(600):
    names = [o.name for o in scene.objects]
    for kind, text, answer in E.questions(scene):
      answers[kind, answer] += 1
      words = text.rstrip("?").split()
      if kind == "count":
        assert E.NUMBERS.index(answer) == len(names) and E.OBJECTS[names[0]][1] in words
      elif kind == "exists":
        assert (words[-1] in names) == (answer == "yes")
      elif kind == "relation":
        place = {o.name: o.x for o in scene.objects}
        assert (place[words[2]] < place[words[-1]]) == (answer == "yes")
      elif kind == "side":
        assert answer.split()[1] == names["right" in words]
      elif kind == "direction":
        assert answer == scene.direction
      elif kind == "background":
        assert answer == scene.background
      else:
        assert kind == "what" and all(n in answer or E.OBJECTS[n][1] in answer for n in names)
    assert E.questions(scene) == E.questions(scene)
  assert answers["exists", "yes"] == answers["exists", "no"]
  yes, no = answers["relation", "yes"], answers["relation", "no"]
  assert abs(yes - no) < 0.25 * (yes + no)


def test_wrong_captions_differ_in_one_thing_and_stay_in_their_split():
  split_of = {E.caption(s): E.split_of(s) for part in ("train", "test") for s in some(2000, part)}
  counts, pairs, seen = set(), [], set()

  def named(caption):
    left, _, rest = caption.partition(" to the left of ")
    right, _, ground = rest.partition(" on a ")
    return left, right, ground

  for scene in some(400):
    wrong, caption = E.wrong_captions(scene), E.caption(scene)
    assert caption not in wrong
    assert all(split_of.get(other, "train") == "train" for other in wrong)
    if scene.kind == "pair":
      first, second, ground = named(caption)
      for other in wrong:
        left, right, beneath = named(other)
        assert beneath == ground
        swapped = (left, right) == (second, first)
        changed = [a for a, b in ((left, first), (right, second)) if a != b]
        assert swapped or (len(changed) == 1 and changed[0] not in (first, second))
        seen.add(swapped)
      pairs.append(len(wrong))
    else:
      counts.add(len(wrong))
  assert counts == {0, 1, 2}  # neighbours that are held out are left out
  assert seen == {True, False} and set(pairs) <= {1, 2, 3, 4} and np.mean(pairs) > 3.3
  assert E.wrong_captions(next(E.videos(1, "train", 0))) == []


def test_whole_combinations_are_held_out_and_every_word_is_trained_on():
  train = [*E.pictures(4000, "train", 0), *E.videos(800, "train", 0)]
  test = [*E.pictures(520, "test", 0), *E.videos(240, "test", 0)]
  assert not {combination(s) for s in train} & {combination(s) for s in test}
  still = {("count", combination(s)[1], s.background, "") for s in train if s.kind == "video"}
  assert not still & {combination(s) for s in test}  # nor does a video show a held-out picture
  words = lambda scenes: {w for s in scenes for w in E.caption(s).split()}  # noqa: E731
  assert words(test) <= words(train)
  kinds = collections.Counter(s.kind for s in train[:4000])
  assert abs(kinds["pair"] / 4000 - 0.4) < 0.03
  grounds = E.BACKGROUNDS
  every = {
    "count": [
      E.Scene(g, (E.Placed(n, 0, 0),) * c) for g in grounds for n in E.OBJECTS for c in (1, 2, 3)
    ],
    "pair": [
      E.Scene(g, (E.Placed(a, 0, 0), E.Placed(b, 36, 0)))
      for g in grounds
      for a, b in itertools.permutations(E.OBJECTS, 2)
    ],
  }
  for scenes in every.values():
    share = np.mean([E.split_of(s) == "test" for s in scenes])
    assert 0.06 < share < 0.14
  pair = every["pair"][0]
  assert E.split_of(pair) == E.split_of(E.Scene(pair.background, pair.objects[::-1]))


def test_test_prompts_repeat_only_when_all_have_come_up():
  captions = [E.caption(s) for s in E.videos(240, "test", 0)]
  different = len(set(captions))
  assert len(set(captions[:different])) == different
  for kind in ("count", "pair"):
    captions = [E.caption(s) for s in E.pictures(400, "test", 0) if s.kind == kind]
    different = len(set(captions))
    assert len(set(captions[:different])) == different


def test_seeds_and_sizes():
  assert some(20) == some(20)
  assert some(20) != some(20, seed=1)
  canvas = E.Canvas.of_size(80)
  assert (canvas.sprite, canvas.lattice) == (32, 16)
  assert E.render(some(1, canvas=canvas)[0]).shape == (80, 80, 3)
  assert some(50, canvas=E.Canvas(96, 24, 4))[0].canvas.lattice == 4
  for bad in (dict(size=40), dict(frames=6), dict(lattice=0)):
    with pytest.raises(ValueError, match=r"side by side|leaves the picture|positive"):
      E.Canvas(**bad)
  with pytest.raises(ValueError, match="multiple of 5"):
    E.Canvas.of_size(64)


def test_missing_sprite_is_named():
  with pytest.raises(ValueError, match="no 'dragonfox'"):
    E.sprite("dragonfox", 24)


def digests(root):
  files = sorted(p for p in root.rglob("*") if p.is_file())
  return {p.relative_to(root): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


SMALL = dict(scenes=30, videos=6, test_scenes=8, test_videos=4)


def test_import_is_deterministic_and_goes_on(tmp_path, monkeypatch):
  monkeypatch.setattr(emoji_import, "SCENES", 7)
  plans = emoji_import.plans(**SMALL)
  seen = []
  counts = imports.run_parts(plans, tmp_path / "a", progress=lambda *args: seen.append(args))
  assert {part: c["accepted"] for part, c in counts.items()} == dict(
    train_scenes=30, train_videos=6, test_scenes=8, test_videos=4
  )
  assert seen[-1] == (pytest.approx(1), 48) and seen == sorted(seen)
  imports.run_parts(plans, tmp_path / "b", executor=imports.in_processes(2))
  assert digests(tmp_path / "a") == digests(tmp_path / "b")
  shutil.rmtree(tmp_path / "b" / "test_scenes")  # as if the import had been interrupted
  before = (tmp_path / "b" / "train_scenes" / records.INFO).stat().st_mtime_ns
  imports.run_parts(plans, tmp_path / "b")
  assert digests(tmp_path / "a") == digests(tmp_path / "b")
  assert (tmp_path / "b" / "train_scenes" / records.INFO).stat().st_mtime_ns == before
  with pytest.raises(ValueError, match="another import"):
    imports.run_parts(emoji_import.plans(**SMALL, seed=1), tmp_path / "b")
  for wrong, problem in {"scenes": "--scenes must be", "size": "multiple of 5"}.items():
    with pytest.raises(ValueError, match=problem):
      emoji_import.plans(**{**SMALL, wrong: 0})
  with pytest.raises(ValueError, match="leave --source"):
    emoji_import.plans("here")


@pytest.mark.parametrize("draw", [E.pictures, E.videos])
@pytest.mark.parametrize("split", ["train", "test"])
def test_pieces_of_a_drawing_are_the_drawing(draw, split):
  whole = list(draw(150, split, 3))
  assert whole[:60] + list(draw(150, split, 3, start=60)) == whole


def test_records_hold_everything(tmp_path):
  imports.run_parts(emoji_import.plans(**SMALL), tmp_path)
  for part in ("train_scenes", "test_videos"):
    for record in records.Records(tmp_path / part):
      scene = E.Scene.from_json(record["scene"])
      assert record["caption"] == E.caption(scene)
      said = record["conversations_value"]
      assert list(zip(said[::2], said[1::2])) == [q[1:] for q in E.questions(scene)]
      if part == "train_scenes":
        shown = np.asarray(media.open_image(record["images"][0]))
        np.testing.assert_array_equal(shown, E.render(scene))
      else:
        shown = [np.asarray(media.open_image(f)) for f in record["frames"]]
        np.testing.assert_array_equal(shown, E.video(scene))
        assert record["n_frames"] == 4
