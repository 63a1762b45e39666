"""Thousands of prompts from a file into a directory: continuous batching, resumable, on many
processes.

Output i (record by record, --num each) has the seed `seed + i` or its record's own, so it does not
matter in which order, company or process it is made. The directory holds

| file | what |
|---|---|
| run.json | what the outputs depend on; a directory of another run is refused |
| results*.jsonl | a row an output, written when its file is complete |
| rejects*.jsonl | records that could not be taken, with line and reason |
| NAME.png, NAME.mp4 | pictures and videos; NAME-0, NAME-1, .. where there are several a prompt |
"""

import concurrent.futures
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vilau_jax.data import media
from vilau_jax.generate import slots, text
from vilau_jax.generate.cache import check_context
from vilau_jax.generate.gallery import pixels_sha256, replace_text, writable
from vilau_jax.generate.orders import Order, PromptFile
from vilau_jax.generate.runtime import Runtime
from vilau_jax.generate.sampling import Sampling, output_seeds
from vilau_jax.generate.slots import Job

VERSION = 1  # of the directory
WRITERS = 4  # threads that encode pictures


@dataclasses.dataclass(frozen=True)
class Settings:
  """What to make of every prompt.

  Attributes:
    kind: "image", "video" or "text".
    num: outputs a prompt.
    seed: of the first output.
    sampling: of codes or tokens; see Runtime.visual_wish.
    num_frames: of a video.
    fps: of its file.
    max_new_tokens: of a text.
  """

  kind: str
  num: int = 1
  seed: int = 0
  sampling: Sampling = dataclasses.field(default_factory=Sampling)
  num_frames: int = 1
  fps: float = 8
  max_new_tokens: int = 512


@dataclasses.dataclass
class Summary:
  """What this process has done.

  Attributes:
    made: outputs written now.
    found: outputs that were there.
    rejected: records.
    total: outputs of all its records.
    steps: visual positions or tokens made now.
    drawn: `steps` in outputs; 0 for texts, whose length nobody knows before.
    ended: nothing is left to do.
  """

  made: int = 0
  found: int = 0
  rejected: int = 0
  total: int = 0
  steps: int = 0
  drawn: float = 0.0
  ended: bool = False


def run(
  runtime: Runtime,
  path: str | os.PathLike,
  output: str | os.PathLike,
  settings: Settings,
  *,
  identity: str,
  batch_size: int = 16,
  process: tuple[int, int] = (0, 1),
  on_progress: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
  """Makes what is not there yet. Memory does not grow with the number of prompts.

  Args:
    runtime: the model's parts.
    path: see orders.py.
    output: directory, made when absent.
    settings: see there.
    identity: of the model.
    batch_size: slots; with a mesh a multiple of its shares.
    process: which of how many processes this is; each takes every n-th record.
    on_progress: called before every row of the grid or token, and at the end; what it raises ends
      the run, and outputs that are finished are written before.

  Raises:
    ValueError: if the file is none, the directory cannot be written or holds another run, or
      logits are not finite.
  """
  drawing = ("tower", "projector", "depth") if settings.kind != "text" else ()
  runtime.need("llm", *drawing, tokenizer=True)
  if settings.kind == "text" and settings.sampling.cfg_scale != 1:
    raise ValueError(f"guidance is not defined for texts, got {settings.sampling.cfg_scale}")
  file = PromptFile.open(path)
  folder = Folder(output, process)
  folder.claim(_stamp(file, settings, identity))
  summary = Summary(total=len(range(process[0], file.count, process[1])) * settings.num)
  jobs = _jobs(runtime, file, settings, folder, process, summary)
  slots_ = max(1, batch_size)

  def step(made: int) -> None:
    summary.steps += made
    if settings.kind != "text":
      summary.drawn = summary.steps / _positions(runtime, settings)
    on_progress(summary)

  how = dict(slots=slots_, on_step=step)
  if settings.kind == "text":
    stop = text.ends(runtime.words)
    made = slots.write(runtime.engine, jobs, settings.sampling, stop=stop, **how)
  else:
    unconditional = runtime.unconditional(settings.kind)
    made = slots.draw(runtime.engine, jobs, unconditional, settings.sampling, **how)
  keep = functools.partial(_keep, runtime, folder, settings, identity, summary)
  with concurrent.futures.ThreadPoolExecutor(1) as background:
    chunk: list = []
    behind = background.submit(keep, chunk)  # one is decoded and written while the next is made
    try:
      for finished in made:
        chunk.append(finished)
        if len(chunk) == slots_:
          behind.result()
          behind, chunk = background.submit(keep, chunk), []
    finally:  # what is finished is kept, also when the work ends early
      behind.result()
      keep(chunk)
  summary.ended = True
  on_progress(summary)
  return summary


def _positions(runtime: Runtime, settings: Settings) -> int:
  """Visual positions of an output."""
  return settings.num_frames * runtime.config.tower.image_tokens


def _jobs(
  runtime: Runtime, file: PromptFile, settings: Settings, folder: "Folder", process, summary
) -> Iterator[Job]:
  """What is to be made, in the order of the file; notes what is found and what is rejected."""
  index, count = process
  steps = settings.max_new_tokens
  if settings.kind != "text":
    steps = _positions(runtime, settings)
  more = 0 if settings.kind == "text" else -1
  for order in file.orders():
    if order.number % count != index:
      continue
    numbers = range(order.number * settings.num, (order.number + 1) * settings.num)
    todo = [i for i in numbers if i not in folder.done]
    summary.found += len(numbers) - len(todo)
    if not todo:
      continue
    try:
      if order.reason is not None:
        raise ValueError(order.reason)
      prompt = runtime.prompts([order.prompt], answer=settings.kind)[0]
      check_context([len(prompt.tokens)], steps + more, runtime.engine.context)
      base = settings.seed + numbers[0] if order.seed is None else order.seed
      seeds = output_seeds(base, settings.num)
    except ValueError as error:
      folder.reject(order, str(error).replace("conversation 0", "the prompt"))
      summary.rejected += 1
      continue
    for i in todo:
      yield Job(prompt, seeds[i - numbers[0]], steps, (i, order))


def _keep(runtime: Runtime, folder: "Folder", settings: Settings, identity, summary, chunk) -> None:
  if not chunk:
    return
  if settings.kind == "text":
    rows = [_row(job, settings, {"text": runtime.tokenizer.decode(ids).strip()})
            for job, ids in chunk]  # fmt: skip
  else:
    codes = np.stack([codes for _, codes in chunk])
    frames = settings.num_frames
    pixels = runtime.pictures(codes, codes.shape[1], frames, settings.kind)
    about = {"settings": dataclasses.asdict(settings.sampling), "model_id": identity}
    if quantized := runtime.engine.quantized:
      about["quantize"] = quantized
    with concurrent.futures.ThreadPoolExecutor(WRITERS) as threads:
      rows = list(threads.map(
        lambda pair: _write(folder, settings, about, pair[0][0], pair[1]), zip(chunk, pixels)
      ))  # fmt: skip
  folder.add(rows)
  summary.made += len(rows)


def _write(folder: "Folder", settings: Settings, about, job: Job, pixels: np.ndarray) -> dict:
  number, order = job.tag
  name = order.name if settings.num == 1 else f"{order.name}-{number % settings.num}"
  name += ".png" if settings.kind == "image" else ".mp4"
  row = _row(job, settings, {"file": name, "kind": settings.kind})
  if settings.kind == "video":
    row |= {"num_frames": settings.num_frames, "fps": settings.fps}
  row |= {"pixels_sha256": pixels_sha256(pixels), **about}
  if settings.kind == "image":
    media.write_image(pixels, folder.directory / name, {"vilau": json.dumps(row)})
  else:
    media.write_video(pixels, folder.directory / name, settings.fps)
  return row


def _row(job: Job, settings: Settings, made: dict[str, Any]) -> dict[str, Any]:
  number, order = job.tag
  prompt = order.prompt if isinstance(order.prompt, str) else [
    part if isinstance(part, str) else {type(part).__name__.lower(): os.path.abspath(part.source)}
    for part in order.prompt
  ]  # fmt: skip
  row = {"output": number, "line": order.line, "prompt": prompt, "seed": job.seed}
  return row | made


def _stamp(file: PromptFile, settings: Settings, identity: str) -> dict[str, Any]:
  return {
    "version": VERSION,
    "model_id": identity,
    "prompts_sha256": file.sha256,
    **dataclasses.asdict(settings),
  }


class Folder:
  """The output directory: which outputs are complete, and rows that are appended to it.

  Attributes:
    directory: its path.
    done: numbers of outputs that are complete, of all processes.
  """

  def __init__(self, directory: str | os.PathLike, process: tuple[int, int]):
    """Raises ValueError if nothing can be written there."""
    self.directory = writable(directory)
    index, count = process
    part = "" if count == 1 else f"-{index:05}-of-{count:05}"
    self._results = self.directory / f"results{part}.jsonl"
    self._rejects = self.directory / f"rejects{part}.jsonl"
    self.done: set[int] = set()

  def claim(self, stamp: dict[str, Any]) -> None:
    """Starts or continues the run that `stamp` describes.

    Raises:
      ValueError: if the directory holds another one.
    """
    path = self.directory / "run.json"
    stamp = json.loads(json.dumps(stamp))
    if path.exists():
      stored = json.loads(path.read_text("utf-8"))
      differ = sorted(k for k in {*stamp, *stored} if stamp.get(k) != stored.get(k))
      if differ:
        raise ValueError(
          f"{self.directory} holds another run: {', '.join(differ)} differ ({differ[0]} was "
          f"{stored.get(differ[0])!r}, is {stamp.get(differ[0])!r}); use another --output or "
          "remove it"
        )
    else:
      replace_text(path, json.dumps(stamp, indent=1, ensure_ascii=False) + "\n")
    _mend(self._results)
    for found in sorted(self.directory.glob("results*.jsonl")):
      with open(found, encoding="utf-8") as rows:
        for line in rows:
          if not line.endswith("\n"):  # another process is at it
            continue
          row = json.loads(line)
          if "file" not in row or (self.directory / row["file"]).exists():
            self.done.add(row["output"])
    self._rejects.unlink(missing_ok=True)

  def add(self, rows: list[dict[str, Any]]) -> None:
    """Appends results; they are on the disk when it returns."""
    _append(self._results, rows)

  def reject(self, order: Order, reason: str) -> None:
    """Notes a record that cannot be taken."""
    _append(self._rejects, [{"line": order.line, "name": order.name, "reason": reason}])


def _append(path: pathlib.Path, rows: list[dict[str, Any]]) -> None:
  # Half a surrogate pair, which JSON can carry and UTF-8 cannot, becomes JSON's escape again.
  with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
    file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    file.flush()
    os.fsync(file.fileno())


def _mend(path: pathlib.Path) -> None:
  """Drops half a row at the end, which a killed process leaves."""
  if path.exists():
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole != len(data):
      os.truncate(path, whole)
