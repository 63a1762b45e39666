"""The PNG charts of report.md: this directory's results in colour, the paper's in greys."""

import dataclasses
import os
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vilau_jax.evaluate import paper
from vilau_jax.evaluate.charts import COLOURS

OWN = COLOURS[0]
OTHERS = ("#8b95a7", "#c3cad6")
_INK = "#1d2433"
_STYLE = {
  "font.size": 10, "axes.titlesize": 12, "axes.titleweight": "bold", "axes.labelcolor": _INK,
  "axes.titlecolor": _INK, "text.color": _INK, "xtick.color": _INK, "ytick.color": _INK,
  "axes.edgecolor": "#aab2c2", "axes.spines.top": False, "axes.spines.right": False,
  "axes.axisbelow": True, "grid.color": "#dde2ec", "legend.frameon": False, "legend.fontsize": 10,
}  # fmt: skip
_BAR = 0.46  # inches, with room for its value
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
  """Writes groups of upright bars, scales that differ side by side."""
  bars = [len(part.names) * (len(part.series) + 0.7) for part in parts]
  width = max(4.6, _BAR * sum(bars) + 0.9 * len(parts))
  with matplotlib.rc_context(_STYLE):
    figure = _figure((width, 3.9), title)
    for axes, part in zip(
      figure.subplots(1, len(parts), squeeze=False, width_ratios=bars)[0], parts
    ):
      _upright(axes, part)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if len(labels) > 1:
      figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    _save(figure, path)


def _upright(axes, part: Panel) -> None:
  width = 0.84 / len(part.series)
  for i, (who, values) in enumerate(part.series.items()):
    at = [k + (i - (len(part.series) - 1) / 2) * width for k in range(len(part.names))]
    colour = OTHERS[(i - 1) % 2] if i else OWN
    drawn = axes.bar(at, [v or 0 for v in values], width * 0.94, label=who, color=colour)
    texts = ["" if v is None else _short(v) for v in values]
    axes.bar_label(drawn, texts, fontsize=8, padding=2)
  axes.margins(y=0.12)
  axes.set_ylabel(part.label)
  axes.grid(axis="y")
  axes.tick_params(length=0)
  axes.set_xticks(range(len(part.names)), part.names)
  room = _BAR * (len(part.series) + 0.7) * 13  # characters that fit below a group
  if max(map(len, part.names)) > room:
    axes.set_xticks(range(len(part.names)), part.names, rotation=30, ha="right")


def lying(path: str | os.PathLike, title: str, values: Mapping[str, float]) -> None:
  """Writes lying bars with their names beside them, the first on top: for many, or long names."""
  with matplotlib.rc_context(_STYLE):
    figure = _figure((6.4, 0.27 * len(values) + 1.0), title)
    axes = figure.add_subplot()
    drawn = axes.barh(list(values), list(values.values()), 0.7, color=OWN)
    axes.bar_label(drawn, [_short(v) for v in values.values()], fontsize=9, padding=3)
    axes.margins(x=0.12, y=0.02)
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
        axes.annotate(_short(value), (at, value), (0, 7), textcoords="offset points",
                      ha="center", fontsize=9)  # fmt: skip
    axes.margins(x=0.08, y=0.2)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid()
    if len(series) > 1:
      figure.legend(loc="outside lower center", ncols=len(series))
    _save(figure, path)


def _short(value: float) -> str:
  return paper.shown(round(value, 1 if abs(value) >= 100 else 2))


def _figure(size: tuple[float, float], title: str) -> Figure:
  figure = Figure(figsize=size, layout="constrained")
  FigureCanvasAgg(figure)
  figure.suptitle(title, fontsize=12, fontweight="bold", color=_INK)
  return figure


def _save(figure: Figure, path: str | os.PathLike) -> None:
  figure.savefig(path, dpi=_DPI, metadata={"Software": None})
