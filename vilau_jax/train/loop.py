"""THE training loop, for every stage.

`train` opens or starts a run, restores the newest checkpoint if there is one, and steps to the end.
The position in the data is the step, randomness is derived from the step, so a run that was stopped
anywhere goes on exactly as if nothing had happened.
"""

import contextlib
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import grain
import jax
from absl import flags, logging
from etils import epath
from flax import traverse_util
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vilau_jax import checkpoint, sharding
from vilau_jax.data import pipeline
from vilau_jax.metrics import MetricWriter, NonFiniteError
from vilau_jax.models import perceptual
from vilau_jax.speed import Speed
from vilau_jax.train import experiment as experiments
from vilau_jax.train import guard, initial, lock, optim, samples
from vilau_jax.train import step as steps
from vilau_jax.train.checkpoints import TrainingCheckpoints
from vilau_jax.train.experiment import Experiment
from vilau_jax.train.optim import State, Tree
from vilau_jax.train.step import check_rows


def train(
  config: ConfigDict,
  workdir: epath.PathLike,
  profile: tuple[int, int] | None = None,
  devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
  """Runs an experiment to config.steps, or goes on with it.

  Args:
    config: see train/defaults.py for every field.
    workdir: of this run alone; checkpoints, frozen parts, tokenizers and logs go there.
    profile: first and last step of a profiler trace written to workdir/profile.
    devices: to train on; None takes all of the job.

  Returns:
    {"step", "finished", "signal" (that stopped it, or None), "seconds" (of this call), "metrics"
    (last written)}.

  Raises:
    ValueError: for a config, a workdir or data that cannot be right, or a workdir in use.
    NonFiniteError: when a loss stops being finite; the last checkpoint is from before, and
      nonfinite-STEP.json names the records of the batch.
  """
  began = time.monotonic()
  experiments.check(config, workdir)
  samples.check(config)
  workdir = epath.Path(workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as closing:
    closing.enter_context(lock.only_run(workdir))
    dog = guard.Watchdog(config.guard.hang_after, config.guard.start_within)
    closing.callback(dog.close)
    run = experiments.resolve(config, workdir)
    mesh = sharding.make_mesh(**config.mesh.to_dict(), devices=devices)
    closing.enter_context(jax.set_mesh(mesh))
    stopping = guard.Stopping()
    closing.callback(stopping.close)
    result = _run(run, mesh, began, stopping, dog, profile, closing)
  return result | {"seconds": time.monotonic() - began}


def _run(
  run: Experiment,
  mesh: Mesh,
  began: float,
  stopping: guard.Stopping,
  dog: guard.Watchdog,
  profile: tuple[int, int] | None,
  closing: contextlib.ExitStack,
) -> dict[str, Any]:
  config = run.config
  saved = TrainingCheckpoints(run.workdir, **config.ckpt.to_dict())
  closing.callback(saved.close)
  stage = steps.make_stage(config, run.model)
  state, frozen = prepare(stage, run, saved, mesh)
  frozen = stage.compressed(frozen)
  skips = config.guard.nonfinite_skips
  step_fn = steps.compiled_step(guard.SkipNonFinite(stage) if skips else stage, state)
  key, start = _key(config), int(state.step)
  position = saved.position(start) if start else {}
  batches = Batches(run, mesh, start, position, began)
  writer = _writer(run, start, batches.speed, position)
  closing.callback(writer.close)
  trace = _Trace(run.workdir, profile, start, config.steps)
  closing.callback(trace.close)
  draw = samples.drawer(run, stage, mesh) if config.log.samples_every else None
  for step in range(start, config.steps):
    trace.at(step)
    with jax.profiler.StepTraceAnnotation("train", step_num=step):
      batch = next(batches)
      state, metrics = step_fn(state, frozen, batch, key)
    done = step + 1
    with _batch_named(run, batches):
      writer.add(done, metrics)
      stopping.listen()
      dog.at(f"step {done + 1}")
      stop = stopping.at(done)
      if stop or done == config.steps or done % config.ckpt.every == 0:
        writer.check()  # a checkpoint never holds what is not finite
        with batches.speed.away():
          dog.at(f"the checkpoint of step {done}")
          place = batches.position(done) | writer.position()
          saved.save(
            done, state, {"tower_id": run.tower_id}, place, force=stop or done == config.steps
          )
    if draw and (done % config.log.samples_every == 0 or done == config.steps):
      dog.pause()
      with batches.speed.away():
        writer.image("samples", done, draw(state, frozen, done))
    if stop:
      logging.warning("stopped at step %d; run the same command to go on", done)
      break
    dog.at(f"data and step {done + 1}")
  dog.pause()
  finished = int(state.step)
  result = {"step": finished, "finished": finished >= config.steps, "metrics": writer.latest}
  return result | {"signal": stopping.signal}


def _key(config: ConfigDict) -> jax.Array:
  """Of threefry, whatever JAX's default is: same seed, same run."""
  return jax.random.key(config.seed, impl="threefry2x32")


def prepare(
  stage: Any, run: Experiment, saved: TrainingCheckpoints, mesh: Mesh
) -> tuple[State, Tree]:
  """State and frozen variables on the mesh: from the newest checkpoint, or random ones with what
  init_from names."""
  key = _key(run.config)
  abstract = steps.abstract_state(stage, mesh)
  placed = jax.tree.map(lambda leaf: leaf.sharding, abstract)
  last = saved.newest_good()
  if last is None:
    state, frozen = jax.jit(lambda k: nn.unbox(stage.init(k)), out_shardings=placed)(key)
    state, frozen = _initialise(run, abstract, state, frozen)
    _save_frozen(run, frozen)
  else:
    state = saved.restore(last, abstract[0])
    frozen = checkpoint.load_frozen(run.workdir, abstract[1])
    frozen = {"params": {}} | frozen
  if run.config.stage == "tower" and run.config.loss.lpips:
    lpips = perceptual.load_lpips(run.config.loss.lpips_weights)
    widths = tuple(lpips["params"][f"lin_{i}"].shape[0] for i in range(5))
    where = jax.tree.map(lambda leaf: leaf.sharding, steps.abstract_lpips(mesh, widths))
    frozen = frozen | {"lpips": jax.device_put(lpips, where)}
  return state, frozen


def _initialise(
  run: Experiment, abstract: tuple[State, Tree], state: State, frozen: Tree
) -> tuple[State, Tree]:
  """Replaces random values by those of config.init_from."""
  views = [_variables(*abstract), _variables(state, frozen)]
  wanted, values = (traverse_util.flatten_dict(view) for view in views)
  for component, directory in initial.in_order(run.config.init_from.to_dict()):
    values |= initial.load(component, directory, run.model, wanted, run.config.stage)
  values = traverse_util.unflatten_dict(values)
  trained, still = _taken(state.params, values), _taken(frozen["params"], values)
  collections = dict(state.collections)
  if "quantizer" in collections:
    collections["quantizer"] = values["quantizer"]
  else:
    frozen = frozen | {"quantizer": values["quantizer"]}
  if "ema" in collections:
    averaged = {k: trained[k] for k in collections["ema"]}
    collections |= optim.initial_average(run.config.optim, averaged)
  return state.replace(params=trained, collections=collections), frozen | {"params": still}


def _variables(state: State, frozen: Tree) -> Tree:
  """Trained and frozen parts as one tree of a model's variables."""
  params = optim.merge({k: v for k, v in state.params.items() if k != "discriminator"},
                       frozen["params"])  # fmt: skip
  codebook = state.collections.get("quantizer", frozen.get("quantizer"))
  return {"params": params, "quantizer": codebook}


def _taken(part: Tree, values: Tree) -> Tree:
  """The leaves of `part`, from `values` where they are there."""
  flat = traverse_util.flatten_dict(values["params"])
  own = traverse_util.flatten_dict(part)
  return traverse_util.unflatten_dict({k: flat.get(k, v) for k, v in own.items()})


def _save_frozen(run: Experiment, frozen: Tree) -> None:
  if run.tower is not None:
    params = frozen["params"] | run.tower["params"]
    whole = {"params": params, "quantizer": run.tower["quantizer"]}
    checkpoint.save_frozen(run.workdir, whole, run.tower_id)
    run.tower = None  # from here on only the codebook is needed
  elif jax.tree.leaves(frozen):
    checkpoint.save_frozen(run.workdir, {"params": frozen["params"]}, None)


def _writer(run: Experiment, start: int, speed: Speed, position: dict[str, Any]) -> MetricWriter:
  c = run.config
  return MetricWriter(
    run.workdir, start=start, steps=c.steps, every=c.log.every, speed=speed,
    skips=c.guard.nonfinite_skips, skipped=position.get("skipped", 0),
    unwritten=position.get("unwritten", ()),
  )  # fmt: skip


@contextlib.contextmanager
def _batch_named(run: Experiment, batches: "Batches") -> Iterator[None]:
  """Writes which records were in the batch of a step that was not finite."""
  try:
    yield
  except NonFiniteError as error:
    path = run.workdir / f"nonfinite-{error.step}.json"
    rows = run.records(error.step - 1, batches.anchor_before(error.step))
    checkpoint.write_json(path, {"step": error.step, "parts": error.parts, "rows": rows})
    error.add_note(f"the records of its batch are in {path}")
    raise


def data_share(mesh: Mesh, config: ConfigDict) -> tuple[int, int]:
  """Which contiguous part of a batch this process reads: (index, count).

  Processes that hold the same rows (because a tensor axis spans them) read the same part.

  Raises:
    ValueError: if the mesh does not divide the batch, or a process's rows are not contiguous.
  """
  check_rows(config, mesh)
  batch_size = config.batch_size
  return share_of_rows(
    sharding.batch_sharding(mesh).addressable_devices_indices_map((batch_size,)), mesh, batch_size
  )


def share_of_rows(slices: Mapping[Any, Any], mesh: Mesh, batch_size: int) -> tuple[int, int]:
  """`data_share` of the process whose devices have these slices of the batch."""
  bounds = {
    (s[0].start or 0, batch_size if s[0].stop is None else s[0].stop) for s in slices.values()
  }
  first, last = min(b[0] for b in bounds), max(b[1] for b in bounds)
  size = last - first
  if sum(stop - start for start, stop in bounds) != size or first % size or batch_size % size:
    raise ValueError(f"the mesh {dict(mesh.shape)} gives this process rows {sorted(bounds)} of the "
                     "batch, which are no even share of it")  # fmt: skip
  return first // size, batch_size // size


class Batches:
  """Global batches from step `start` on, read ahead by threads or processes."""

  def __init__(
    self, run: Experiment, mesh: Mesh, start: int, position: dict[str, Any], began: float
  ):
    """position: of the checkpoint that the run goes on from, {} where it begins; began: when this
    call did."""
    self._run, self._mesh, self._step = run, mesh, start
    anchor = tuple(position.get("anchor", pipeline.START))
    self._anchors = {start: anchor}  # step -> where its batch lies in the data
    index, count = data_share(mesh, run.config)
    self.speed = Speed(run.config, run.model, mesh.devices.size, count, began)
    data = run.config.data
    dataset = run.dataset(index, count, anchor=anchor)
    options = grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=2 * data.threads)
    reader = dataset[start:].to_iter_dataset(options)
    if data.workers:
      flags.FLAGS.mark_as_parsed()  # grain's workers read theirs; ours are others (cli/main.py)
      options = grain.MultiprocessingOptions(num_workers=data.workers)
      reader = reader.mp_prefetch(options, worker_init_fn=_deaf)
    self._reader = iter(reader)

  def __next__(self) -> dict[str, jax.Array]:
    with self.speed.waiting():
      batch = next(self._reader)
    self._step += 1
    if "anchor" in batch:
      self._anchors[self._step] = tuple(int(x) for x in batch.pop("anchor"))
    self.speed.count(batch)
    return sharding.global_batch(batch, self._mesh)

  def position(self, done: int) -> dict[str, Any]:
    """Of the data behind `done` steps: all that is needed to go on, on any number of hosts."""
    anchor = self.anchor_before(done)
    self._anchors = {k: v for k, v in self._anchors.items() if k >= done} or {done: anchor}
    return {"step": done, "seed": self._run.config.seed, "anchor": list(anchor)}

  def anchor_before(self, step: int) -> pipeline.Anchor:
    """The anchor of step `step` (1 = the first) or of one before it."""
    return self._anchors[max((k for k in self._anchors if k <= step), default=min(self._anchors))]


def _deaf(_index: int, _count: int) -> None:
  """A signal to the whole job is for the run, which needs its data until it has saved."""
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)


class _Trace:
  """The profiler's trace of steps span[0] .. span[1] - 1, of a run that goes on at `start`. A trace
  that cannot be written is said, and stops nothing."""

  def __init__(self, workdir: epath.Path, span: tuple[int, int] | None, start: int, steps: int):
    self._folder, self._span, self._on = workdir / "profile", span, False
    if span and not start <= span[0] < steps:
      logging.warning("no trace of step %d: this run goes from %d to %d", span[0], start, steps)

  def at(self, step: int) -> None:
    if self._span and step == self._span[0]:
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = (
        0  # walks the frames of every thread; has crashed beside orbax's
      )
      jax.profiler.start_trace(str(self._folder), profiler_options=options)
      self._on = True
    if self._span and step == self._span[1]:
      self.close()

  def close(self) -> None:
    """Writes the trace that is under way, if any."""
    if self._on:
      self._on = False
      try:
        jax.profiler.stop_trace()
      except RuntimeError as error:
        logging.warning("the trace could not be written to %s: %s", self._folder, error)
