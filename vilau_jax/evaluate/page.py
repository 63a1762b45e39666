"""Blocks of a self-contained web page: styles, picture tags, tables, cards.

Every function returns HTML; text that comes from outside is escaped here.
"""

import base64
import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from vilau_jax.evaluate.style import CSS

escape = html.escape

_SHELL = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{css}</style></head>
<body><main>
{body}
</main></body></html>
"""


def document(title: str, parts: Iterable[str]) -> str:
  return _SHELL.format(title=escape(title), css=CSS, body="\n".join(parts))


def picture(image: np.ndarray, alt: str) -> str:
  """uint8 [S,S,3] -> an <img> that holds its PNG."""
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, "PNG", optimize=True)
  return _tag(buffer.getvalue(), "image/png", alt)


def film(frames: np.ndarray, alt: str, *, seconds_per_frame: float = 0.35) -> str:
  """uint8 [F,S,S,3] -> an <img> that holds them as an endless lossless WebP."""
  images = [Image.fromarray(frame) for frame in frames]
  buffer = io.BytesIO()
  images[0].save(
    buffer, "WEBP", save_all=True, append_images=images[1:], lossless=True, loop=0,
    duration=round(1000 * seconds_per_frame), minimize_size=True,
  )  # fmt: skip
  return _tag(buffer.getvalue(), "image/webp", alt)


def _tag(data: bytes, mime: str, alt: str) -> str:
  encoded = base64.b64encode(data).decode("ascii")
  return f'<img alt="{escape(alt, quote=True)}" src="data:{mime};base64,{encoded}">'


def paragraph(text: str, kind: str = "") -> str:
  """`text` is HTML."""
  return f'<p class="{kind}">{text}</p>' if kind else f"<p>{text}</p>"


def section(name: str, title: str, *parts: str) -> str:
  return f'<section id="{name}"><h2>{escape(title)}</h2>\n' + "\n".join(parts) + "\n</section>"


def bullets(items: Iterable[str]) -> str:
  """Items are HTML."""
  return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def tiles(pairs: Iterable[tuple[str, str]]) -> str:
  """(big value, what it is)."""
  cells = (f'<div class="tile"><b>{escape(v)}</b><span>{escape(w)}</span></div>' for v, w in pairs)
  return f'<div class="tiles">{"".join(cells)}</div>'


def gallery(cells: Iterable[tuple[str, str]], *, cell: int = 112) -> str:
  """(image tag, caption HTML)."""
  inner = "".join(f"<figure>{i}<figcaption>{c}</figcaption></figure>" for i, c in cells)
  return f'<div class="gallery" style="--cell:{cell}px">{inner}</div>'


def strip(images: Sequence[str], labels: Sequence[str] = ()) -> str:
  """Pictures side by side, always in one row, with labels under them."""
  cells = [f"<div>{tag}</div>" for tag in images] + [f"<span>{escape(t)}</span>" for t in labels]
  return (
    f'<div class="strip" style="grid-template-columns:repeat({len(images)},minmax(0,1fr))">'
    + "".join(cells)
    + "</div>"
  )


def chart_row(svgs: Iterable[str]) -> str:
  return '<div class="charts">' + "".join(f'<div class="chart">{s}</div>' for s in svgs) + "</div>"


def table(head: Sequence[str], rows: Iterable[Sequence[str] | str], *, right: set[int]) -> str:
  """Rows of HTML cells; a row that is a string is a sub-heading; `right` columns are numbers."""

  def cells(row, tag):
    return "".join(
      f'<{tag} class="n">{c}</{tag}>' if i in right else f"<{tag}>{c}</{tag}>"
      for i, c in enumerate(row)
    )

  body = "".join(
    f'<tr class="head"><th colspan="{len(head)}">{row}</th></tr>'
    if isinstance(row, str)
    else f"<tr>{cells(row, 'td')}</tr>"
    for row in rows
  )
  return (
    f'<div class="wide"><table><thead><tr>{cells(head, "th")}</tr></thead>'
    f"<tbody>{body}</tbody></table></div>"
  )


def mark(right: bool) -> str:
  return (
    '<b class="good" title="right">\u2713</b>'
    if right
    else '<b class="bad" title="wrong">\u2717</b>'
  )


def answers(image: str, lines: Iterable[str]) -> str:
  """A picture with what was asked about it."""
  return f'<div class="ask">{image}<ul>{"".join(f"<li>{line}</li>" for line in lines)}</ul></div>'
