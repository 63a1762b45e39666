"""Charts of the report stay as wide as a page, and have no axis around nothing."""

import PIL.Image
import pytest

from vilau_jax.evaluate import report_charts
from vilau_jax.evaluate.report_charts import Panel


def size(path):
  with PIL.Image.open(path) as image:
    return image.size


def test_what_is_too_wide_goes_below(tmp_path):
  series = {who: [0.5] * 12 for who in ("here", "a, paper", "b, paper")}
  part = Panel("score", [f"skill {i}" for i in range(12)], series)
  rows = report_charts._rows([part, Panel("points", ["one"], {"here": [1000.0]})])
  assert [[len(p.names) for p in row] for row in rows] == [[6], [6, 1]]
  assert [name for row in rows for p in row for name in p.names][:12] == list(part.names)
  report_charts.panels(tmp_path / "many.png", "Many", [part])
  report_charts.panels(tmp_path / "one.png", "One", [Panel("points", ["one"], {"here": [None]})])
  assert size(tmp_path / "many.png")[0] < 1700
  assert size(tmp_path / "many.png")[1] > 1.5 * size(tmp_path / "one.png")[1]


def test_zeros_and_long_titles(tmp_path):
  report_charts.lying(tmp_path / "zeros.png", "a long title " * 12, {"yes_no": 0.0, "other": 0.0})
  assert size(tmp_path / "zeros.png")[0] == 832
  report_charts.curves(tmp_path / "c.png", "c", {"here": {1.0: 0.0, 3.0: 0.1}}, x="x", y="y")


@pytest.mark.parametrize(
  ("value", "text"), [(0.0, "0"), (0.00028, "0.00028"), (0.5, "0.5"), (1362.93, "1362.9")]
)
def test_small_values_are_no_zeros(value, text):
  assert report_charts._short(value) == text
