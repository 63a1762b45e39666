"""Blocks of the report are self-contained, escaped and decodable."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from vilau_jax.evaluate import charts, page

PICTURE = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)


def embedded(tag):
  mime, data = re.search(r'src="data:([^;]+);base64,([^"]+)"', tag).groups()
  return mime, Image.open(io.BytesIO(base64.b64decode(data)))


def test_pictures_keep_their_pixels():
  mime, image = embedded(page.picture(PICTURE, 'a "quoted" <name>'))
  assert mime == "image/png"
  np.testing.assert_array_equal(np.asarray(image.convert("RGB")), PICTURE)
  assert 'alt="a &quot;quoted&quot; &lt;name&gt;"' in page.picture(PICTURE, 'a "quoted" <name>')


def test_films_keep_their_frames():
  frames = np.stack([PICTURE, PICTURE[::-1], 255 - PICTURE])
  mime, image = embedded(page.film(frames, "film"))
  assert mime == "image/webp" and image.n_frames == 3
  for i, frame in enumerate(frames):
    image.seek(i)
    np.testing.assert_array_equal(np.asarray(image.convert("RGB")), frame)


CHARTS = {
  "lines": lambda: charts.lines(
    "Loss & <more>", {"a": ([1, 2], [2.0, 1.0]), "b": ([1, 2], [3.0, 1.0])}, x="step", y="loss"
  ),
  "percent": lambda: charts.lines(
    "Right", {"a": ([1, 1.5], [0.2, 1.0])}, x="scale", y="right", percent=True,
    floor=("chance", 0.25),
  ),
  "bars": lambda: charts.bars("Used", {"1": 3.0, "2": 5.0}, y="entries"),
  "matrix": lambda: charts.matrix("What", np.eye(3, 4), "abc", "abcd", x="drawn", y="asked"),
  "matrix of nothing": lambda: charts.matrix("None", np.zeros((9, 9)), "abcdefghi", "abcdefghi",
                                             x="drawn", y="asked"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHARTS)
def test_charts_follow_the_page(name):
  svg = CHARTS[name]()
  assert svg == CHARTS[name](), "the same chart twice"
  assert svg.startswith('<svg role="img"') and "viewBox" in svg
  assert "http" not in svg and "#010203" not in svg
  assert "var(--ink)" in svg
  assert not re.search(r"<svg[^>]* width=", svg)


def test_a_document_needs_nothing_from_outside():
  html = page.document(
    "a < b",
    [page.section("s", "A & B", page.gallery([(page.picture(PICTURE, "p"), "caption")])),
     page.table(["a", "n"], ["group", ("x", "1")], right={1}), CHARTS["lines"]()],
  )  # fmt: skip
  assert "<title>a &lt; b</title>" in html and "A &amp; B" in html
  assert not re.search(r'(src|href)="(?!data:|#)', html)
  assert "http" not in html
