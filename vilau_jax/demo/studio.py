"""What the page's tabs do, apart from the page: drawing that can be watched and cancelled, talk,
and looking into the tower and the model.

Axis letters: n outputs, F frames, S image side, h and w sides of the code grid, R residual depth.
"""

import colorsys
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vilau_jax.api import Cancelled, Image, Video, VilaU
from vilau_jax.demo import uploads
from vilau_jax.demo.uploads import Limits
from vilau_jax.evaluate.picture_metrics import psnr
from vilau_jax.generate import again

Cancel = Callable[[], bool]
USUAL = Limits()
PREVIEW_SECONDS = 0.5  # a preview costs a pass of the decoder


@dataclasses.dataclass(frozen=True)
class Shown:
  """A drawing under way, or finished.

  Attributes:
    pictures: uint8 [n, S, S, 3] or [n, F, S, S, 3] as far as they are drawn; None: as before.
    share: 0..1 of the work.
    words: what to tell the visitor.
    finished: nothing follows.
    cancelled: the visitor ended it; pictures are those of the batches that were finished, None if
      none was.
  """

  pictures: np.ndarray | None
  share: float
  words: str
  finished: bool = False
  cancelled: bool = False


@dataclasses.dataclass(frozen=True)
class Tokens:
  """A picture and what its codes keep.

  Attributes:
    square: uint8 [S, S, 3], as the tower sees it.
    codes: int32 [h, w, R].
    maps: R colour maps uint8 [h, w, 3]: equal codes have equal colours.
    reconstructions: R pictures uint8 [S, S, 3], from the first 1..R codes of every position.
    psnrs: of each, in dB.
  """

  square: np.ndarray
  codes: np.ndarray
  maps: list[np.ndarray]
  reconstructions: list[np.ndarray]
  psnrs: list[float]


class Studio:
  """A model and the limits of its visitors.

  Args:
    model: loaded.
    limits: of what visitors hand in.
  """

  def __init__(self, model: VilaU, limits: Limits = USUAL):
    self.model, self.limits = model, limits

  @property
  def side(self) -> int:
    """S, or 0 without a tower."""
    return self.model.config.tower.image_size if self.model.config.tower is not None else 0

  def draw(
    self, prompt: str, count: int, seed: int, settings: dict[str, Any], cancel: Cancel
  ) -> Iterator[Shown]:
    """Draws `count` pictures with seeds seed, seed + 1, ..

    Args:
      prompt: what to draw.
      count: pictures.
      seed: of the first.
      settings: cfg_scale, temperature, top_k, top_p.
      cancel: asked after every row of the grid.

    Yields:
      Shown, the last one finished.

    Raises:
      ValueError: for what the visitor must change.
    """
    prompt, count = uploads.text(prompt, self.limits), self._count(count)
    seed, settings = self._wish(seed, settings)
    return self._watched(
      lambda **watch: self.model.generate_images(
        [prompt], num_images=count, seed=seed, **settings, **watch
      ),
      count,
      cancel,
    )

  def animate(
    self, prompt: str, count: int, seed: int, settings: dict[str, Any], cancel: Cancel
  ) -> Iterator[Shown]:
    """Draws `count` videos; as draw."""
    prompt, count = uploads.text(prompt, self.limits), self._count(count)
    seed, settings = self._wish(seed, settings)
    return self._watched(
      lambda **watch: self.model.generate_videos(
        [prompt], num_videos=count, seed=seed, **settings, **watch
      ),
      count,
      cancel,
    )

  def made_by(self, prompt: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Metadata of an output, from which `vilau generate --from_metadata` makes it again."""
    return again.made_by(self.model, prompt.strip(), seed, settings)

  def question(self, words: str | None, files: list[str]) -> dict[str, Any]:
    """A turn of the user; pictures and videos are read now, so that files need not stay.

    Raises:
      ValueError: for a file that cannot be taken, or without words.
    """
    parts: list[str | Image | Video] = []
    for path in files:
      if not self.side:
        raise ValueError("this model has no vision tower, so it cannot look at files")
      if uploads.is_video(path):
        frames = uploads.video(path, self.side, self.model.config.video_frames, self.limits)
        parts.append(Video(frames))
      else:
        parts.append(Image(uploads.picture(path, self.side, self.limits)))
    parts.append(uploads.text(words, self.limits, "question"))
    return {"role": "user", "content": parts}

  def answer(
    self, turns: list[dict[str, Any]], temperature: float, seed: int, cancel: Cancel
  ) -> Iterator[str]:
    """The answer to the last turn, longer at every step; cancelled, it stays as it is.

    Raises:
      ValueError: if the conversation no longer fits into the context.
    """
    written, wish = "", uploads.settings({"temperature": temperature})
    seed = uploads.whole(seed, 0, uploads.LARGEST_SEED, "seed")
    pieces = self.model.stream_text([turns], temperature=wish["temperature"], seed=seed)
    for piece in pieces:
      written += piece
      yield written.strip()
      if cancel():
        return

  def tokenise(self, path: str) -> Tokens:
    """An uploaded picture -> its codes and what they keep.

    Raises:
      ValueError: for a file that is no picture, or a model without a tower.
    """
    tower = self.model.runtime.tower
    square = uploads.picture(path, self.side, self.limits)
    codes = self.model.encode_images(square[None])[0]
    depth = codes.shape[-1]
    steps = [self.model.decode_codes(codes[None, ..., :r])[0] for r in range(1, depth + 1)]
    entries = tower.quantizer.entries
    return Tokens(
      square, codes, [colours(entries)[codes[..., d]] for d in range(depth)], steps,
      [float(value) for value in psnr(square[None] / 255, np.stack(steps) / 255)],
    )  # fmt: skip

  def _count(self, count: int) -> int:
    return uploads.whole(count, 1, self.limits.outputs, "number of drawings")

  def _wish(self, seed: int, settings: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    settings = uploads.settings(settings)
    self.model.runtime.visual_wish(**settings)
    return uploads.whole(seed, 0, uploads.LARGEST_SEED, "seed"), settings

  def _watched(self, work: Callable, count: int, cancel: Cancel) -> Iterator[Shown]:
    """Runs `work(on_progress=, cancel=)` in a thread and yields what it says. A visitor who is gone
    closes the iterator, which ends the work at its next row."""
    said: queue.Queue = queue.Queue()
    gone = threading.Event()

    def run():
      try:
        said.put(work(on_progress=said.put, cancel=lambda: gone.is_set() or cancel()))
      except BaseException as error:  # raised again where it is awaited
        said.put(error)

    thread = threading.Thread(target=run, daemon=True)
    began, clock = time.monotonic(), _Clock(count)
    thread.start()
    try:
      yield Shown(None, 0.0, "reading the prompt; the first drawing compiles, which takes a while")
      painted = 0.0
      drawn: list[np.ndarray] = []  # batches that are finished
      while True:
        event = said.get()
        if isinstance(event, Cancelled):
          kept = np.concatenate(drawn) if drawn else None
          words = f"cancelled {event}" + ("" if kept is None else f"; {len(kept)} were finished")
          yield Shown(kept, clock.share, words, finished=True, cancelled=True)
          return
        if isinstance(event, BaseException):
          raise event
        if isinstance(event, np.ndarray):
          seconds = time.monotonic() - began
          yield Shown(event, 1.0, f"{count} drawn in {seconds:.1f} s", finished=True)
          return
        words, ends, preview = clock.see(event), event.done == event.total, None
        due = said.empty() and time.monotonic() - painted > PREVIEW_SECONDS
        if event.outputs.stop < count if ends else due:  # the last end is followed by all pictures
          parts = [*drawn, event.preview()]
          preview, painted = np.concatenate(parts), time.monotonic()
          drawn = parts if ends else drawn
        yield Shown(preview, clock.share, words)
    finally:
      gone.set()
      thread.join()


class _Clock:
  """Share, speed and time left of `count` outputs."""

  def __init__(self, count: int):
    self.count, self.share = count, 0.0
    self._first: tuple[float, int] | None = None
    self._before = 0  # positions of the batches that are finished

  def see(self, progress) -> str:
    here = len(progress.outputs)
    done = self._before + progress.done * here
    total = self.count * progress.total
    if progress.done == progress.total:
      self._before += progress.total * here
    self.share = done / total
    now = time.monotonic()
    if self._first is None:
      self._first = now, done
      return f"{done} of {total} positions"
    rate = (done - self._first[1]) / max(now - self._first[0], 1e-9)
    left = (total - done) / max(rate, 1e-9)
    return f"{done} of {total} positions, {rate:.0f} a second, about {left:.0f} s left"


def colours(entries: int) -> np.ndarray:
  """A colour for every code, uint8 [E, 3], neighbours far apart: hues by the golden ratio."""
  golden = (5**0.5 - 1) / 2
  table = [
    colorsys.hsv_to_rgb(i * golden % 1, 0.45 + 0.5 * (i * 7 % 11) / 10, 0.6 + 0.4 * (i % 5) / 4)
    for i in range(entries)
  ]
  return np.round(np.array(table) * 255).astype(np.uint8)
