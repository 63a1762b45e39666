"""Charts of the report: inline SVG that follows the page's colours in light and dark.

Drawn small (one column of a phone) with real text; the page decides how wide they get.
"""

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.colors
import matplotlib.ticker
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

COLOURS = ("#4f7fd9", "#e0863a", "#3fa37c", "#c8589b", "#9b7fd4", "#b7a13c", "#5aa9c2", "#d4645c")
_INK, _PALE = "#010203", "#010204"  # stand-ins that become CSS variables
_STYLE = {
  "svg.fonttype": "none",
  "font.size": 10,
  "axes.titlesize": 11,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.edgecolor": _PALE,
  "axes.labelcolor": _INK,
  "axes.titlecolor": _INK,
  "text.color": _INK,
  "xtick.color": _PALE,
  "ytick.color": _PALE,
  "xtick.labelcolor": _INK,
  "ytick.labelcolor": _INK,
  "grid.color": _PALE,
  "grid.alpha": 0.35,
  "axes.grid": True,
  "axes.axisbelow": True,
  "legend.frameon": False,
  "legend.fontsize": 9,
  "legend.columnspacing": 1.2,
  "legend.handlelength": 1.4,
  "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
}

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def lines(
  title: str, series: Series, *, x: str, y: str, log: bool = False, percent: bool = False,
  marker: bool = False, floor: tuple[str, float] | None = None,
) -> str:  # fmt: skip
  """Curves name -> (xs, ys); `floor` is a named dashed level, for example chance."""

  def draw(axes):
    draw_lines(axes, series, x=x, y=y, log=log, marker=marker)
    if floor is not None:
      axes.axhline(floor[1], color=_INK, linestyle="--", linewidth=1, label=floor[0])
    if percent:
      axes.set_ylim(0, 1.03)
      axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    if len(series) + (floor is not None) > 1:
      axes.figure.legend(loc="outside lower center", ncols=2 if len(series) > 3 else 3)

  return _svg(title, draw)


def draw_lines(
  axes, series: Series, *, x: str, y: str, log: bool = False, marker: bool = False
) -> None:
  """Curves on axes that are there, for a page or for a file."""
  for name, (xs, ys) in series.items():
    axes.plot(xs, ys, label=name, marker="o" if marker else None, linewidth=1.8, markersize=4.5)
  if log:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
  axes.set_xlabel(x)
  axes.set_ylabel(y)
  if all(float(value).is_integer() for xs, _ in series.values() for value in xs):
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))


def bars(
  title: str, values: Mapping[str, float], *, y: str, percent: bool = False,
  levels: Mapping[str, float] | None = None,
) -> str:  # fmt: skip
  """One bar a name, its value written on it; `levels` marks another value (chance) on each."""

  def draw(axes):
    names = list(values)
    heights = [values[name] for name in names]
    drawn = axes.bar(names, heights, color=COLOURS[0], width=0.65)
    form = (lambda v: f"{100 * v:.0f}%") if percent else (lambda v: f"{v:.0f}")
    axes.bar_label(drawn, [form(v) for v in heights], color=_INK, fontsize=9, padding=1)
    if levels:
      for i, name in enumerate(names):
        if name in levels:
          axes.plot([i - 0.4, i + 0.4], [levels[name]] * 2, color=COLOURS[1], linewidth=2)
    if percent:
      axes.set_ylim(0, 1.12)
      axes.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    axes.set_ylabel(y)
    axes.grid(axis="x", visible=False)
    if max(map(len, names), default=0) * len(names) > 40:
      axes.tick_params(axis="x", rotation=60)

  return _svg(title, draw)


def matrix(
  title: str, table: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, x: str, y: str
) -> str:
  """Shares by row [rows,columns] as shades; numbers are written where there is room."""

  def draw(axes):
    draw_matrix(axes, table, rows, columns, x=x, y=y)

  return _svg(title, draw, size=matrix_size(table))


def matrix_size(table: np.ndarray) -> tuple[float, float]:
  return (4.3, 4.3) if max(np.shape(table)) > 8 else (4.3, 3.0)


def draw_matrix(
  axes, table: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, x: str, y: str
) -> None:
  """A table on axes that are there, for a page or for a file."""
  table = np.asarray(table, float)
  shares = table / np.maximum(table.sum(1, keepdims=True), 1)
  big = max(table.shape) > 8
  shade = np.zeros((*shares.shape, 4))
  shade[..., :3] = matplotlib.colors.to_rgb(COLOURS[0])
  shade[..., 3] = 0.04 + 0.9 * shares
  edges = [np.arange(size + 1) for size in table.shape]
  axes.pcolormesh(edges[1], edges[0], shade, clip_on=False)
  size = 7.5 if big else 10
  axes.set_xticks(np.arange(len(columns)) + 0.5, columns, fontsize=size)
  axes.set_yticks(np.arange(len(rows)) + 0.5, rows, fontsize=size)
  if big:
    axes.tick_params(axis="x", rotation=90)
  else:
    for i, j in np.ndindex(table.shape):
      axes.text(j + 0.5, i + 0.5, f"{table[i, j]:.0f}", ha="center", va="center")
  axes.invert_yaxis()
  axes.grid(visible=False)
  axes.tick_params(length=0)
  axes.set_xlabel(x)
  axes.set_ylabel(y)


def _svg(title: str, draw, size=(4.3, 3.1)) -> str:
  # The hash salt makes ids the same in every run and different from the other charts of the page.
  with matplotlib.rc_context({**_STYLE, "svg.hashsalt": title}):
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    draw(axes)
    axes.set_title(title)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
  text = buffer.getvalue()
  text = text[text.index("<svg") :].replace(_INK, "var(--ink)").replace(_PALE, "var(--pale)")
  text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
  text = re.sub(r'<g id="[^"]*"', "<g", text)
  head, rest = text.split(">", 1)  # inline SVG needs neither name spaces nor a size of its own
  text = re.sub(r'\s(xmlns[:\w]*|width|height|version)="[^"]*"', "", head) + ">" + rest
  label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
  return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
