"""Raw data sets -> records: what a format gives, and the driver that carries it out.

A format gives a Plan: pieces of its source, and a pure function from a piece to records. The
driver converts the pieces in this process, in a pool of processes or on Apache Beam
(data/beam.py), each into files of its own in `OUTPUT.partial`. A piece that is finished is never
done again, so an import can be killed at any time; and since a piece's files depend on the piece
alone, the same source and settings give the same bytes, however many workers there are.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from vilau_jax.data import pieces, records, shards
from vilau_jax.data.pieces import Done, Piece, Task

REJECTS = "rejects.jsonl"
STAMP, MANIFEST = "import.json", "manifest.json"

Progress = Callable[[float, int], None]
Executor = Callable[[Task, Iterator[tuple[int, Piece]]], Iterator[Done]]


@dataclasses.dataclass(frozen=True)
class Plan:
  """How one source becomes records.

  Attributes:
    format: its name.
    settings: what else decides on the records; JSON.
    source: what people call the source, usually the name of its folder or file.
    files: name -> what tells another content apart (size and digest of the source's files).
    pieces: the pieces in their order, always the same ones.
    convert: a piece's payload -> records, Reject, Note. Pickled for other processes.
    unique: "id" refuses a record whose id came before, "record" only one whose every byte did.
    weight: of its work beside that of other parts of the same import.
  """

  format: str
  settings: Mapping[str, Any]
  source: str
  files: Mapping[str, str]
  pieces: Callable[[], Iterator[Piece]]
  convert: Callable[[Any], Iterator[pieces.Converted]]
  unique: str = "id"
  weight: float = 1.0

  def stamp(self, writer: str, records_per_shard: int) -> dict[str, Any]:
    """What two imports must share to write the same records."""
    return {
      "format": self.format,
      "settings": json.loads(json.dumps(self.settings)),
      "source": self.source,
      "source_hash": pieces.digest(json.dumps(sorted(self.files.items())).encode()),
      "writer": writer,
      "records_per_shard": records_per_shard,
    }


def run(
  plan: Plan,
  output: str | os.PathLike,
  *,
  executor: Executor | None = None,
  writer: str = "array_record",
  records_per_shard: int = 10_000,
  progress: Progress = lambda share, count: None,
) -> dict[str, int]:
  """Writes a directory of records with dataset_info.json and rejects.jsonl.

  Finished with the same source and settings, it returns at once; interrupted, it goes on.

  Args:
    output: the directory.
    executor: in_this_process (default), in_processes(n), or beam.on_beam(..).
    writer: "array_record", or "tfrecord" for other tools (no random access without an index).
    records_per_shard: the most that a shard holds.
    progress: called with the finished share (0..1) and the number of records so far.

  Returns:
    accepted, rejected, and damaged: places of the source behind which entries are lost.

  Raises:
    ValueError: if output holds something else, the source has changed since the import began, a
      finished import lacks a shard, or no record was accepted.
  """
  output = epath.Path(output)
  stamp = plan.stamp(writer, records_per_shard)
  if _is_finished(output, stamp):
    return _counts(records.read_info(output))
  partial = output.parent / f"{output.name}.partial"
  with _lock(partial):
    if not (partial / MANIFEST).exists():
      _check_stamp(partial, plan, stamp)
      task = Task(plan.convert, str(partial), writer, records_per_shard, plan.unique)
      for stale in partial.glob(".*"):  # what kill -9 leaves
        if stale.name != ".lock":
          stale.unlink(missing_ok=True)
      count = _convert(plan, task, executor or in_this_process, progress)
      if not _deduplicate(task, count):
        problem = _first_problem(partial, count)
        partial.rmtree()
        raise ValueError(f"none of the entries of {plan.source} was accepted; {problem}")
      _write_manifest(task, count, stamp)
    _finish(partial)
    (partial / ".lock").unlink(missing_ok=True)
    if output.exists():
      output.rmdir()
    partial.rename(output)
  return _counts(records.read_info(output))


def run_parts(
  parts: Mapping[str, Plan],
  output: str | os.PathLike,
  *,
  progress: Progress = lambda share, count: None,
  **options: Any,
) -> dict[str, dict[str, int]]:
  """Several data sets below one directory, one after the other; arguments and errors as of run.

  Returns:
    what run returns, by part.
  """
  whole, share, count, counts = sum(p.weight for p in parts.values()), 0.0, 0, {}
  for name, plan in parts.items():
    part = plan.weight / whole

    def shown(done: float, records: int, share=share, count=count, part=part) -> None:
      progress(share + part * done, count + records)

    counts[name] = run(plan, epath.Path(output) / name, progress=shown, **options)
    share, count = share + part, count + counts[name]["accepted"]
    progress(min(share, 1.0), count)
  return counts


def numbered(name: str, count: int, size: int) -> Iterator[Piece]:
  """Pieces of a source that is known by its numbers 0 .. count - 1; payload: (start, stop)."""
  for start in range(0, count, size):
    stop = min(start + size, count)
    yield Piece(f"{name}, from {start}", (start, stop), (stop - start) / count)


def _counts(info: Mapping[str, Any]) -> dict[str, int]:
  counts = {"accepted": info["records"], "rejected": info["info"]["rejected"]}
  return {**counts, **({"damaged": n} if (n := info["info"]["damaged"]) else {})}


def _is_finished(output: epath.Path, stamp: Mapping[str, Any]) -> bool:
  if not output.exists() or not any(output.iterdir()):
    return False
  content = records.read_info(output)
  differ = {k: (content["info"].get(k), v) for k, v in stamp.items()}
  differ = {k: pair for k, pair in differ.items() if pair[0] != pair[1]}
  if differ:
    raise ValueError(f"{output} holds records of another import ({_said(differ)}); {_REMEDY}")
  for shard in content["shards"]:
    if not (output / shard["file"]).exists():
      raise ValueError(
        f"the shard {shard['file']} of {output} is missing; remove the directory and import again"
      )
  return True


_REMEDY = "remove it or choose another --output"


def _said(differ: Mapping[str, tuple[Any, Any]]) -> str:
  return ", ".join(f"{key}: {found!r}, now {now!r}" for key, (found, now) in differ.items())


def _check_stamp(partial: epath.Path, plan: Plan, stamp: Mapping[str, Any]) -> None:
  """Writes what is imported, or makes sure that it is what was begun.

  Raises:
    ValueError: says which setting or file of the source has changed.
  """
  path = partial / STAMP
  if not path.exists():
    shards.write_text(path, json.dumps({"stamp": stamp, "files": dict(plan.files)}))
    return
  begun = json.loads(path.read_text())
  old, new = begun["files"], plan.files
  changed = [
    *(f"{name} is gone" for name in old if name not in new),
    *(f"{name} is new" for name in new if name not in old),
    *(f"{name} has changed" for name in new if name in old and old[name] != new[name]),
  ]
  if changed:
    shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
    raise ValueError(
      f"the source of the unfinished import {partial} has changed: {shown}; put it back to go on, "
      "or remove the directory to begin anew"
    )
  differ = {k: (begun["stamp"].get(k), v) for k, v in stamp.items() if begun["stamp"].get(k) != v}
  if differ:
    raise ValueError(f"{partial} is an import of other settings ({_said(differ)}); {_REMEDY}")


class _lock:
  """Two imports into one output would disturb each other; the lock dies with its process."""

  def __init__(self, partial: epath.Path):
    self.partial = partial

  def __enter__(self):
    self.partial.mkdir(parents=True, exist_ok=True)
    if "://" in str(self.partial):  # object stores have no locks
      self.file = None
      return
    import fcntl

    self.file = open(self.partial / ".lock", "w")
    try:
      fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise ValueError(f"another import is writing to {self.partial}") from error

  def __exit__(self, *error):
    if self.file is not None:
      self.file.close()


def _convert(plan: Plan, task: Task, executor: Executor, progress: Progress) -> int:
  """Converts what is not finished; returns the number of pieces."""
  state = {"share": 0.0, "records": 0, "pieces": 0}

  def account(done: Done) -> None:
    state["share"] += done.share
    state["records"] += done.records
    progress(min(state["share"], 1.0), state["records"])

  def unfinished() -> Iterator[tuple[int, Piece]]:
    for index, piece in enumerate(plan.pieces()):
      state["pieces"] = index + 1
      done = pieces.read_done(task, index)
      if done is not None and done.name == piece.name:
        account(done)
      else:
        yield index, piece

  for done in executor(task, unfinished()):
    account(done)
  return state["pieces"]


def in_this_process(task: Task, todo: Iterator[tuple[int, Piece]]) -> Iterator[Done]:
  """Converts one piece after the other."""
  for index, piece in todo:
    yield pieces.convert_piece(task, index, piece)


def in_processes(workers: int) -> Executor:
  """An executor with a pool of processes; results come in any order.

  Raises:
    ValueError: for less than one worker.
  """
  if workers < 1:
    raise ValueError(f"an import needs at least one worker, got {workers}")
  if workers == 1:
    return in_this_process

  def executor(task: Task, todo: Iterator[tuple[int, Piece]]) -> Iterator[Done]:
    first = list(itertools.islice(todo, 2))
    if len(first) < 2:  # not worth a pool
      yield from in_this_process(task, iter(first))
      return
    todo = itertools.chain(first, todo)
    # Not fork: Pillow's, PyAV's and ArrayRecord's threads do not survive it.
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = concurrent.futures.ProcessPoolExecutor(
      workers, mp_context=context, initializer=_begin_worker, initargs=(stop,)
    )
    running: dict[concurrent.futures.Future, str] = {}
    try:
      while True:
        for index, piece in itertools.islice(todo, 2 * workers - len(running)):
          running[pool.submit(pieces.convert_piece, task, index, piece)] = piece.name
        if not running:
          return
        ready, _ = concurrent.futures.wait(running, return_when="FIRST_COMPLETED")
        for future in ready:
          yield future.result()
          del running[future]
    except concurrent.futures.process.BrokenProcessPool as error:
      names = ", ".join(running.values())
      raise ChildProcessError(
        f"a worker died (out of memory?) at one of: {names}; what was finished is kept, run it "
        "again, with fewer --workers if memory was short"
      ) from error
    finally:
      stop.set()
      pool.shutdown(cancel_futures=True)

  return executor


def _begin_worker(stop) -> None:
  signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
  pieces.should_stop = stop.is_set

  def watch():  # a killed parent cannot say it
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _deduplicate(task: Task, count: int) -> int:
  """Takes records out that came before (Plan.unique); returns how many are left."""
  keys = [pieces.read_keys(task, index) for index in range(count)]
  starts = np.cumsum([0, *map(len, keys)])
  every = np.concatenate(keys) if keys else np.zeros(0, np.uint64)
  order = np.argsort(every, kind="stable")
  same = np.flatnonzero(every[order][1:] == every[order][:-1]) + 1
  firsts = order.copy()  # of every sorted place, the first record with its key
  for place in same:
    firsts[place] = firsts[place - 1]
  drops: dict[int, dict[int, tuple[int, int]]] = collections.defaultdict(dict)
  for place in same:
    later, first = int(order[place]), int(firsts[place])
    piece, before = (int(np.searchsorted(starts, n, "right")) - 1 for n in (later, first))
    drops[piece][later - int(starts[piece])] = (before, first - int(starts[before]))
  dropped = sum(pieces.drop(task, piece, drops[piece]) for piece in sorted(drops, reverse=True))
  return len(every) - dropped


def _all_done(task: Task, count: int) -> Iterator[Done]:
  for index in range(count):
    yield pieces.read_done(task, index)


def _first_problem(partial: epath.Path, count: int) -> str:
  task = Task(None, str(partial), "", 0, "")
  for done in _all_done(task, count):
    for reject in done.rejects:
      return f"the first: {reject['where'] or reject['id']}: {reject['reason']}"
  return "it holds no entries"


def _write_manifest(task: Task, count: int, stamp: Mapping[str, Any]) -> None:
  """What the finished directory will be; from here on nothing is converted again."""
  partial = epath.Path(task.directory)
  files, kinds, features, notes = [], collections.Counter(), collections.Counter(), {}
  notes = collections.Counter()
  rejected = damaged = 0
  with shards.replacing(partial / REJECTS) as temporary, open(temporary, "w") as f:
    for done in _all_done(task, count):
      files += [(name, number) for name, number, _ in done.files]
      for total, part in ((kinds, done.kinds), (features, done.features), (notes, done.notes)):
        total.update(part)
      for reject in done.rejects:
        rejected, damaged = rejected + 1, damaged + bool(reject.pop("damaged", False))
        f.write(json.dumps(reject, ensure_ascii=False, sort_keys=True) + "\n")
  names = [shards.shard_name("data", i, len(files), task.writer) for i in range(len(files))]
  info = {**stamp, "rejected": rejected, "damaged": damaged, "notes": dict(sorted(notes.items()))}
  content = {
    "move": [[old, new] for (old, _), new in zip(files, names)],
    "shards": {name: number for name, (_, number) in zip(names, files)},
    "kinds": dict(kinds),
    "features": dict(sorted(features.items())),
    "info": info,
  }
  shards.write_text(partial / MANIFEST, json.dumps(content))


def _finish(partial: epath.Path) -> None:
  """Gives everything its final name; can be interrupted and run again."""
  content = json.loads((partial / MANIFEST).read_text())
  for old, new in content["move"]:
    if (partial / old).exists():
      (partial / old).replace(partial / new)
  records.write_info(
    partial, "data", content["shards"], content["kinds"], content["info"], content["features"]
  )
  keep = {*content["shards"], records.INFO, REJECTS, MANIFEST, ".lock"}
  for path in _files(partial):
    if path.name not in keep:
      path.unlink()
  (partial / MANIFEST).unlink()


def _files(directory: epath.Path) -> Iterable[epath.Path]:
  return [path for path in directory.iterdir() if path.is_file()]
