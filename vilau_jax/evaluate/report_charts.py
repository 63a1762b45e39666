"""PNG charts: those of report.md, with this directory's results in colour and the paper's in greys,
and those of `vilau figures`, drawn as report.html has them."""

import dataclasses
import math
import os
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy import ndarray

from vilau_jax.evaluate import paper
from vilau_jax.evaluate.charts import COLOURS, Series, draw_lines, draw_matrix, matrix_size

OWN = COLOURS[0]
OTHERS = ("#8b95a7", "#c3cad6")
_INK = "#1d2433"
_STYLE = {
  "font.size": 10, "axes.titlesize": 12, "axes.titleweight": "bold", "axes.labelcolor": _INK,
  "axes.titlecolor": _INK, "text.color": _INK, "xtick.color": _INK, "ytick.color": _INK,
  "axes.edgecolor": "#aab2c2", "axes.spines.top": False, "axes.spines.right": False,
  "axes.axisbelow": True, "grid.color": "#dde2ec", "legend.frameon": False, "legend.fontsize": 10,
}  # fmt: skip
_BAR = 0.42  # inches, with room for its value
_ROW = 26.0  # bars beside each other: the width of a page
_DPI = 130


@dataclasses.dataclass(frozen=True)
class Panel:
  """Bars of one scale.

  Attributes:
    label: of the axis, with its direction.
    names: groups of bars.
    series: whose bars -> a value a group; None leaves a gap.
  """

  label: str
  names: Sequence[str]
  series: Mapping[str, Sequence[float | None]]


def panels(path: str | os.PathLike, title: str, parts: Sequence[Panel]) -> None:
  """Writes groups of upright bars: scales that differ side by side, what is too many below."""
  rows = _rows(parts)
  widest = max(sum(map(_bars, row)) for row in rows)
  width = max(5.2, _BAR * widest + 0.9 * max(map(len, rows)))
  with matplotlib.rc_context(_STYLE):
    figure = _figure((width, 3.0 * len(rows) + 0.9), title)
    for inner, row in zip(figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows):
      bars = list(map(_bars, row))
      free = [widest - sum(bars)] * (sum(bars) < widest)  # bars are of one width in all rows
      grid = inner.add_gridspec(1, len(bars + free), width_ratios=bars + free)
      for column, part in enumerate(row):
        _upright(inner.add_subplot(grid[column]), part)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if len(labels) > 1:
      figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    _save(figure, path)


def _bars(part: Panel) -> float:
  return len(part.names) * (len(part.series) + 0.7)


def _rows(parts: Sequence[Panel]) -> list[list[Panel]]:
  """Panels as they stand, cut into equal pieces where one has more bars than a row takes."""
  rows: list[list[Panel]] = [[]]
  for part in parts:
    count = math.ceil(_bars(part) / _ROW)
    size = math.ceil(len(part.names) / count)
    for start in range(0, len(part.names), size):
      here = slice(start, start + size)
      series = {who: values[here] for who, values in part.series.items()}
      piece = Panel(part.label, part.names[here], series)
      if rows[-1] and sum(map(_bars, [*rows[-1], piece])) > _ROW:
        rows.append([])
      rows[-1].append(piece)
  return rows


def _upright(axes, part: Panel) -> None:
  width = 0.84 / len(part.series)
  for i, (who, values) in enumerate(part.series.items()):
    at = [k + (i - (len(part.series) - 1) / 2) * width for k in range(len(part.names))]
    colour = OTHERS[(i - 1) % 2] if i else OWN
    drawn = axes.bar(at, [v or 0 for v in values], width * 0.94, label=who, color=colour)
    texts = ["" if v is None else _short(v) for v in values]
    axes.bar_label(drawn, texts, fontsize=8, padding=2)
  axes.margins(x=0.02, y=0.12)
  axes.set_ylabel(part.label)
  axes.grid(axis="y")
  axes.tick_params(length=0)
  room = int(_BAR * (len(part.series) + 0.7) * 11.5)  # characters that fit below a group
  names = [textwrap.fill(_words(n), room, break_long_words=False) for n in part.names]
  long = max(len(line) for name in names for line in name.split("\n")) > room
  axes.set_xticks(range(len(names)), names, **(dict(rotation=30, ha="right") if long else {}))


def lying(path: str | os.PathLike, title: str, values: Mapping[str, float]) -> None:
  """Writes lying bars with their names beside them, the first on top: for many, or long names."""
  with matplotlib.rc_context(_STYLE):
    figure = _figure((6.4, 0.27 * len(values) + 1.0), title)
    axes = figure.add_subplot()
    drawn = axes.barh(list(map(_words, values)), list(values.values()), 0.7, color=OWN)
    axes.bar_label(drawn, [_short(v) for v in values.values()], fontsize=9, padding=3)
    axes.margins(x=0.12, y=0.02)
    if min(values.values()) >= 0:
      axes.set_xlim(0, None if max(values.values()) else 1)
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.tick_params(length=0)
    _save(figure, path)


def curves(
  path: str | os.PathLike, title: str, series: Mapping[str, Mapping[float, float]],
  *, x: str, y: str,
) -> None:  # fmt: skip
  """Writes curves whose -> x -> y, every point with its value."""
  with matplotlib.rc_context(_STYLE):
    figure = _figure((5.6, 3.6), title)
    axes = figure.add_subplot()
    for i, (who, points) in enumerate(series.items()):
      colour = OTHERS[(i - 1) % 2] if i else OWN
      axes.plot(list(points), list(points.values()), "o-", color=colour, label=who, linewidth=2)
      for at, value in points.items():
        away = (0, -15 if i % 2 else 7)  # from the other curve's values
        axes.annotate(_short(value), (at, value), away, textcoords="offset points",
                      ha="center", fontsize=9)  # fmt: skip
    axes.margins(x=0.08, y=0.2)
    if min(v for points in series.values() for v in points.values()) >= 0:
      axes.set_ylim(max(0.0, axes.get_ylim()[0]))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid()
    if len(series) > 1:
      figure.legend(loc="outside lower center", ncols=len(series))
    _save(figure, path)


def losses(path: str | os.PathLike, title: str, series: Series) -> None:
  """Writes curves name -> (steps, losses), on a logarithmic axis where all have a logarithm."""
  with matplotlib.rc_context({**_STYLE, "axes.prop_cycle": matplotlib.cycler(color=COLOURS)}):
    figure = _figure((6.4, 4.4), title)
    axes = figure.add_subplot()
    few = max(len(steps) for steps, _ in series.values()) < 20
    log = min(min(values) for _, values in series.values()) > 0
    draw_lines(axes, series, x="step", y="loss", log=log, marker=few)
    axes.grid()
    figure.legend(loc="outside lower center", ncols=4)
    _save(figure, path)


def table(
  path: str | os.PathLike, title: str, counts: ndarray, rows: Sequence[str],
  columns: Sequence[str], *, x: str, y: str,
) -> None:  # fmt: skip
  """Writes a table [rows,columns] as shades, each row by its sum."""
  with matplotlib.rc_context(_STYLE):
    width, height = matrix_size(counts)
    figure = _figure((1.3 * width, 1.3 * height), title)
    draw_matrix(figure.add_subplot(), counts, rows, columns, x=x, y=y)
    _save(figure, path)


def pictures(
  path: str | os.PathLike, title: str, rows: Mapping[str, Sequence[ndarray]],
  columns: Sequence[str] = (), *, cell: float = 1.1,
) -> None:  # fmt: skip
  """Writes rows of pictures: the row's name on its left, the column's above; `cell` inches wide."""
  across = max(map(len, rows.values()))
  first = next(iter(rows.values()))[0]
  size = (across * cell + 1.2, len(rows) * (cell * first.shape[0] / first.shape[1] + 0.05) + 0.9)
  with matplotlib.rc_context(_STYLE):
    figure = _figure((max(size[0], 4.0), size[1]), title)
    grid = figure.subplots(len(rows), across, squeeze=False)
    for axes_row, (name, images) in zip(grid, rows.items()):
      for axes in axes_row:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
      for axes, image in zip(axes_row, images):
        axes.imshow(image, interpolation="nearest")
      axes_row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for axes, name in zip(grid[0], columns):
      axes.set_title(name, fontsize=10, fontweight="normal")
    _save(figure, path, bbox_inches="tight")  # the layout leaves lying names too little room


def _short(value: float) -> str:
  if 0 < abs(value) < 0.1:
    return f"{value:.2g}"
  return paper.shown(round(value, 1 if abs(value) >= 100 else 2))


def _words(name: str) -> str:
  return name.replace("_", " ")


def _figure(size: tuple[float, float], title: str) -> Figure:
  figure = Figure(figsize=size, layout="constrained")
  FigureCanvasAgg(figure)
  title = textwrap.fill(title, int(9 * size[0]))
  figure.suptitle(title, fontsize=12, fontweight="bold", color=_INK)
  return figure


def _save(figure: Figure, path: str | os.PathLike, **kwargs) -> None:
  figure.savefig(path, dpi=_DPI, metadata={"Software": None}, **kwargs)
