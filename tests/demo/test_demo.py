"""What the page does, without the page: limits, watched and cancelled drawing, talk, codes."""

import functools
import itertools
import json
import os
import zipfile

import av
import golden_model
import numpy as np
import pytest
from PIL import Image

import vilau_jax
from vilau_jax.data import media
from vilau_jax.demo import card, files, uploads
from vilau_jax.demo.studio import Studio, colours
from vilau_jax.demo.tickets import Tickets
from vilau_jax.demo.uploads import Limits

SETTINGS = dict(cfg_scale=3.0, temperature=1.0, top_k=16, top_p=0.96)
PICTURE = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)


@functools.cache
def studio() -> Studio:
  return Studio(vilau_jax.VilaU.from_loaded(golden_model.tiny()), Limits(outputs=3))


def never() -> bool:
  return False


@pytest.fixture
def picture(tmp_path):
  return str(media.write_image(PICTURE, tmp_path / "cat.png"))


def test_drawing_says_how_far_it_is_and_ends_with_what_generate_images_draws():
  shown = list(studio().draw("a dog", 2, 5, SETTINGS, never))
  shares = [s.share for s in shown]
  assert (
    shares == sorted(shares) and shares[-1] == 1 and len(shown) >= 6
  )  # a row each, and both ends
  assert [s.finished for s in shown] == [False] * (len(shown) - 1) + [True]
  assert "left" in shown[3].words and "drawn in" in shown[-1].words
  wanted = studio().model.generate_images("a dog", num_images=2, seed=5, **SETTINGS)
  np.testing.assert_array_equal(shown[-1].pictures, wanted)


def test_cancelling_ends_a_drawing_at_its_next_row_and_says_where():
  asked = itertools.count()
  *_, last = studio().animate("a dog", 1, 0, SETTINGS, lambda: next(asked) == 2)
  assert last.cancelled and last.finished and 0 < last.share < 1
  assert last.words.startswith("cancelled after 12 of 32"), last.words


def test_batches_that_are_finished_are_shown_and_kept(monkeypatch):
  model = studio().model
  monkeypatch.setattr(
    model, "generate_images", functools.partial(model.generate_images, batch_size=2)
  )
  monkeypatch.setattr("vilau_jax.demo.studio.PREVIEW_SECONDS", -1.0)
  *under_way, last = studio().draw("a dog", 3, 5, SETTINGS, never)
  seen = [s.pictures for s in under_way if s.pictures is not None]
  assert {len(pictures) for pictures in seen} == {2, 3}
  np.testing.assert_array_equal(seen[-1][:2], last.pictures[:2])
  rows = model.config.tower.grid
  asked = itertools.count()
  *_, last = studio().draw("a dog", 3, 5, SETTINGS, lambda: next(asked) == rows)
  assert last.cancelled and last.words.endswith("2 were finished"), last.words
  np.testing.assert_array_equal(last.pictures, seen[-1][:2])


def test_a_visitor_who_leaves_ends_the_work():
  steps = studio().draw("a dog", 1, 0, SETTINGS, never)
  next(steps), next(steps)
  steps.close()  # joins the thread; without its end this would not return
  assert list(studio().draw("a dog", 1, 0, SETTINGS, never))[-1].finished


@pytest.mark.parametrize(
  "prompt, count, said",
  [("  ", 1, "prompt is empty"), ("x" * 3000, 1, "3000 characters"), ("a", 4, "1 to 3")],
)
def test_wrong_wishes_are_refused_in_words(prompt, count, said):
  with pytest.raises(ValueError, match=said):
    list(studio().draw(prompt, count, 0, SETTINGS, never))


def test_a_question_about_a_picture_is_answered_as_generate_text_does(picture):
  turns = [studio().question("what is it", [picture])]
  *_, last = studio().answer(turns, 0.0, 0, never)
  talk = [{"role": "user", "content": [vilau_jax.Image(PICTURE), "what is it"]}]
  assert last == studio().model.generate_text([talk])[0]
  assert len(list(studio().answer(turns, 0.0, 0, lambda: True))) <= 1


def test_a_video_is_read_when_it_is_uploaded(tmp_path):
  path = media.write_video(np.stack([PICTURE] * 6), tmp_path / "clip.mp4")
  frames = studio().question("what moves?", [str(path)])["content"][0].source
  side = studio().side
  assert [f.shape for f in frames] == [(side, side, 3)] * studio().model.config.video_frames
  with pytest.raises(ValueError, match=r"clip.mp4 is 1 seconds long; at most 0.1"):
    uploads.video(path, side, 2, Limits(seconds=0.1))


def test_bad_files_are_refused_by_their_names_and_not_by_their_places(tmp_path, picture):
  text = tmp_path / "letter.png"
  text.write_text("not a picture")
  empty = tmp_path / "empty.png"
  empty.touch()
  cut = tmp_path / "cut.png"
  cut.write_bytes((tmp_path / "cat.png").read_bytes()[:900])
  film = tmp_path / "film.mp4"
  film.write_bytes(b"nothing")
  cases = [
    (text, "letter.png is not a picture"), (empty, "empty.png is an empty file"),
    (cut, "cut.png is a broken or cut-off picture"), (film, "film.mp4 is not a video"),
  ]  # fmt: skip
  for path, said in cases:
    with pytest.raises(ValueError, match=said) as caught:
      studio().question("what is it", [str(path)])
    assert str(tmp_path) not in str(caught.value)
  with pytest.raises(ValueError, match=r"50x40 pixels; at most 0.001 million"):
    uploads.picture(picture, 32, Limits(megapixels=0.001))
  with pytest.raises(ValueError, match=r"cat.png has .* MB; at most 0.001"):
    uploads.picture(picture, 32, Limits(megabytes=0.001))


def test_a_picture_of_many_pixels_is_refused_before_it_is_decoded(tmp_path):
  path = tmp_path / "bomb.png"
  Image.new("1", (20000, 20000)).save(path)
  with pytest.raises(ValueError, match=r"bomb.png has too many pixels"):
    uploads.picture(path, 32, Limits())


def test_tokens_show_every_depth(picture):
  tokens = studio().tokenise(picture)
  depth = studio().model.config.tower.quantizer.depth
  assert len(tokens.maps) == len(tokens.reconstructions) == len(tokens.psnrs) == depth
  whole = studio().model.decode_codes(tokens.codes[None])[0]
  np.testing.assert_array_equal(tokens.reconstructions[-1], whole)
  first = tokens.codes[..., 0]
  same = first == first[0, 0]
  np.testing.assert_array_equal((tokens.maps[0] == tokens.maps[0][0, 0]).all(-1), same)
  assert len(np.unique(colours(256), axis=0)) == 256


def test_what_is_taken_home_can_be_made_again(tmp_path):
  *_, last = studio().draw("a dog", 2, 7, SETTINGS, never)
  path = files.bundle(last.pictures, studio().made_by("a dog", 7, SETTINGS), tmp_path)
  with zipfile.ZipFile(path) as archive:
    assert sorted(archive.namelist()) == ["000000.png", "000001.png", "metadata.json"]
    entries = json.loads(archive.read("metadata.json"))
    archive.extractall(tmp_path / "out")
  assert [e["seed"] for e in entries] == [7, 8] and "model" not in entries[0]
  again = studio().model.generate_images(
    entries[1]["prompt"], seed=entries[1]["seed"], **entries[1]["settings"]
  )
  kept = np.asarray(Image.open(tmp_path / "out" / "000001.png"))
  np.testing.assert_array_equal(again[0], kept)


def test_a_film_plays_as_fast_in_the_page_as_at_home(tmp_path):
  videos = np.zeros((1, 4, 32, 32, 3), np.uint8)
  with zipfile.ZipFile(files.bundle(videos, {"seed": 0}, tmp_path)) as archive:
    (entry,) = json.loads(archive.read("metadata.json"))
    archive.extract(entry["file"], tmp_path)
  for path in (files.film(videos, tmp_path), tmp_path / entry["file"]):
    with av.open(str(path)) as film:
      assert film.streams.video[0].average_rate == entry["fps"]


def test_old_files_are_swept(tmp_path):
  for name in ("old", "new"):
    (tmp_path / name).mkdir()
  os.utime(tmp_path / "old", (0, 0))
  files.sweep(tmp_path, 3600)
  assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_the_card_measures_the_tower_on_bundled_pictures():
  rows, sheet = card.tower_quality(studio().model)
  depths = range(1, studio().model.config.tower.quantizer.depth + 1)
  assert [row[0] for row in rows] == list(depths) and all(row[1] > 0 for row in rows)
  assert sheet.ndim == 3
  assert card.usage(np.array([[1, 1], [2, 2]])) == (2, pytest.approx(2.0))
  assert card.components(studio().model)[-1][0] == "total"


def test_tickets_end_with_their_session():
  tickets = Tickets()
  first, second, other = tickets.issue("a"), tickets.issue("a"), tickets.issue("b")
  tickets.finish("a", second)
  assert tickets.cancelled("a", second) and not tickets.cancelled("a", first)
  tickets.cancel("a")
  assert tickets.cancelled("a", first) and not tickets.cancelled("b", other)
  assert not tickets.forgotten(first)
  tickets.forget("b")
  assert tickets.cancelled("b", other) and tickets.forgotten(other)
  tickets.finish("b", other)
  assert not tickets.forgotten(other)
