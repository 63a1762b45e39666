"""Runs a benchmark: predictions (resumed where they stopped), scores.json, and what is beside it in
the paper."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vilau_jax import api
from vilau_jax.evaluate import catalogue
from vilau_jax.evaluate.parts import replacing
from vilau_jax.evaluate.replicas import Replicas
from vilau_jax.evaluate.store import Given, Store
from vilau_jax.evaluate.task import Options, Request, Scores, Task

VERSION = 1  # of the files of a run
PACKAGES = ("vilau_jax", "jax", "jaxlib", "flax", "numpy", "pillow", "sentencepiece")
CHUNK = 4  # batches between two writes, or one a device
POLL_SECONDS = 0.5


def run(
  name: str,
  *,
  data: str | os.PathLike | None,
  output: str | os.PathLike,
  model: str | os.PathLike | api.VilaU | Replicas | None = None,
  predictions: str | os.PathLike | None = None,
  options: Options | None = None,
  process: tuple[int, int] = (0, 1),
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
  """Evaluates; the same call again goes on where the last one stopped.

  Args:
    name: of the task, see catalogue.TASKS.
    data: the benchmark's directory; None for those that bring their own.
    output: run.json, predictions.jsonl and scores.json go there.
    model: a directory, whose model goes to every device of this process, or what is loaded.
    predictions: a file of answers to score instead of asking a model.
    options: see Options; None takes every default.
    process: which of how many processes this is. All share one `output`; each predicts its part,
      and process 0 waits for the others and scores.
    progress: gets predictions done and wanted.

  Returns:
    What scores.json holds; its "partial" is None where the scores are final. Processes other than
    the first don't score, and return only "benchmark" and "predicted".

  Raises:
    ValueError: for bad data, predictions that don't fit, or an output that holds another run.
  """
  output, options = pathlib.Path(output), options or Options()
  task = catalogue.create(name, data, options)
  requests = task.requests()
  if options.limit:
    requests = requests[: options.limit]
  began = time.monotonic()
  if predictions is not None:
    found: Store | Given = Given(predictions, output, lambda rows: task.adopt(rows, requests))
    facts = {"predictions": str(predictions)}
    found.check(requests)
  else:
    replicas = _loaded(model)
    stamp = _stamp(task, options, requests, replicas)
    found = Store(output, stamp, process[0])
    facts = {"model": {"path": str(replicas.path), "id": stamp["model"]}}
    found.check(requests)
    here = [request for request in requests if request.number % process[1] == process[0]]
    _predict(task, replicas, here, found, options.batch_size, progress)
    if process[0]:
      return {"benchmark": task.name, "predicted": len(here)}
    _wait(found, requests, progress)
  scores = task.score(requests, found)
  scores.missing = sum(request.id not in found.rows for request in requests)
  result = _result(task, options, requests, scores, facts, time.monotonic() - began)
  with replacing(output / "scores.json") as temporary:
    temporary.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
  return result


def _loaded(model) -> Replicas:
  if model is None:
    raise ValueError("give --model=DIR, or --predictions=FILE to score answers that are there")
  if isinstance(model, Replicas):
    return model
  return Replicas.load(model) if isinstance(model, str | os.PathLike) else Replicas([model])


def _predict(
  task: Task, replicas: Replicas, requests: Sequence[Request], store: Store, batch: int, progress
) -> None:
  todo = [request for request in requests if request.id not in store.rows]
  size = batch * max(CHUNK, len(replicas))
  # One device takes a chunk whole: it then encodes a picture that many questions share once.
  share = size if len(replicas) == 1 else batch
  for start in range(0, len(todo), size):
    progress(len(store.rows), len(requests))
    here = todo[start : start + size]
    batches = [here[i : i + share] for i in range(0, len(here), share)]
    found = replicas.map(lambda m, part: task.predict(m, part, store.directory), batches)
    rows = [row for rows, _ in found for row in rows]
    names = found[0][1]
    store.add(here, rows, {n: np.concatenate([arrays[n] for _, arrays in found]) for n in names})
  progress(len(store.rows), len(requests))


def _wait(store: Store, requests: Sequence[Request], progress) -> None:
  """Until the other processes have predicted their parts."""
  while any(request.id not in store.rows for request in requests):
    progress(len(store.rows), len(requests))
    time.sleep(POLL_SECONDS)
    store.refresh()
    store.check(requests)


def _stamp(task: Task, options: Options, requests: Sequence[Request], model) -> dict[str, Any]:
  """What the predictions depend on."""
  return {
    "version": VERSION,
    "benchmark": task.name,
    "protocol": task.protocol,
    "split": task.split,
    "limit": options.limit,
    "seed": options.seed,
    "settings": task.settings,
    "data_sha256": data_hash(task, requests),
    "model": model.identity(),  # wherever it lies
  }


def data_hash(task: Task, requests: Sequence[Request]) -> str:
  """Of the annotation files, of all ids in their order, and of the sizes of pictures in folders."""
  digest = hashlib.sha256()
  for path in task.sources:
    digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
  for request in requests:
    digest.update(f"{request.id} {getattr(request.content, 'fingerprint', '')}\n".encode())
  return digest.hexdigest()


def _result(task, options, requests, scores: Scores, facts, seconds: float) -> dict[str, Any]:
  judge = options.judge
  asked = {k: v for k, v in dataclasses.asdict(options).items() if k != "judge"}
  defaults = dataclasses.asdict(Options())
  return {
    "version": VERSION,
    "benchmark": task.name,
    "protocol": task.protocol,
    "split": task.split,
    "n": scores.n,
    "missing": scores.missing,
    "partial": scores.partial,
    "metrics": scores.metrics,
    "categories": scores.categories,
    "details": scores.details,
    "notes": scores.notes,
    "settings": task.settings,
    "options": {k: v for k, v in asked.items() if v != defaults[k]}
    | ({"judge": {"url": judge.shown, "model": judge.model}} if judge else {}),
    "seed": options.seed,
    "data": {"path": str(task.data), "sha256": data_hash(task, requests)},
    **facts,
    "versions": versions(),
    "seconds": round(seconds, 1),
  }


def versions() -> dict[str, str]:
  found = {"python": platform.python_version()}
  for name in PACKAGES:
    found[name] = importlib.metadata.version(name)
  return found
