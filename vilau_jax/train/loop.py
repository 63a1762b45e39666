"""THE training loop, for every stage.

`train` opens or starts a run, restores the newest checkpoint if there is one, and steps to the end.
The position in the data is the step, randomness is derived from the step, so a run that was stopped
anywhere goes on exactly as if nothing had happened.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import grain
import jax
import numpy as np
from absl import logging
from etils import epath
from flax import traverse_util
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from vilau_jax import checkpoint, sharding
from vilau_jax.metrics import MetricWriter
from vilau_jax.models import perceptual
from vilau_jax.train import experiment as experiments
from vilau_jax.train import initial, optim, samples
from vilau_jax.train.experiment import Experiment
from vilau_jax.train.lm import LmStage
from vilau_jax.train.optim import State, Tree
from vilau_jax.train.tower import TowerStage

STAGES = {"tower": TowerStage, "lm": LmStage}


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
    {"step", "finished", "seconds" (of this call), "metrics" (last written)}.

  Raises:
    ValueError: for a config, a workdir or data that cannot be right.
    NonFiniteError: when a loss stops being finite; the last checkpoint is from before.
  """
  began = time.monotonic()
  run = experiments.resolve(config, workdir)
  mesh = sharding.make_mesh(**config.mesh.to_dict(), devices=devices)
  with jax.set_mesh(mesh), _stop_signals() as stopping, contextlib.ExitStack() as closing:
    saved = checkpoint.TrainingCheckpoints(run.workdir, **config.ckpt.to_dict())
    closing.callback(saved.close)
    stage = STAGES[config.stage](config, run.model)
    state, frozen = prepare(stage, run, saved, mesh)
    frozen = stage.compressed(frozen)
    step_fn = compiled_step(stage, state)
    key, start = jax.random.key(config.seed), int(state.step)
    writer = _writer(run, start)
    closing.callback(writer.close)
    batches = _batches(run, mesh, start)
    draw = samples.drawer(run, stage, mesh) if config.log.samples_every else None
    for step in range(start, config.steps):
      _profile(run.workdir, profile, step)
      with jax.profiler.StepTraceAnnotation("train", step_num=step):
        state, metrics = step_fn(state, frozen, next(batches), key)
      done = step + 1
      writer.add(done, metrics)
      stop = _stopped(stopping, done)
      if stop or done == config.steps or done % config.ckpt.every == 0:
        writer.check()  # a checkpoint never holds what is not finite
        saved.save(done, state, {"tower_id": run.tower_id}, force=stop or done == config.steps)
      if draw and (done % config.log.samples_every == 0 or done == config.steps):
        writer.image("samples", done, draw(state, frozen, done))
      if stop:
        logging.warning("stopped at step %d; run the same command to go on", done)
        break
    finished = int(state.step)
    result = {"step": finished, "finished": finished >= config.steps, "metrics": writer.latest}
  return result | {"seconds": time.monotonic() - began}


def prepare(
  stage: Any, run: Experiment, saved: checkpoint.TrainingCheckpoints, mesh: jax.sharding.Mesh
) -> tuple[State, Tree]:
  """State and frozen variables on the mesh: from the newest checkpoint, or random ones with what
  init_from names."""
  key = jax.random.key(run.config.seed)
  boxed = jax.eval_shape(stage.init, key)
  placed = sharding.state_shardings(boxed, mesh)
  abstract = jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
    _unboxed(boxed),
    placed,
  )
  last = saved.latest()
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
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    frozen = frozen | {"lpips": jax.device_put(lpips, whole)}
  return state, frozen


def compiled_step(stage: Any, state: State) -> Any:
  """The jitted step; the old state's memory becomes the new one's."""
  placed = jax.tree.map(lambda x: x.sharding, state)
  return jax.jit(stage.step, donate_argnames=("state",), out_shardings=(placed, None))


def _unboxed(tree: Any) -> Any:  # nn.unbox refuses abstract leaves under a mesh
  box = nn.LogicallyPartitioned
  return jax.tree.map(
    lambda x: x.value if isinstance(x, box) else x, tree, is_leaf=lambda x: isinstance(x, box)
  )


def _initialise(
  run: Experiment, abstract: tuple[State, Tree], state: State, frozen: Tree
) -> tuple[State, Tree]:
  """Replaces random values by those of config.init_from."""
  views = [_variables(*abstract), _variables(state, frozen)]
  wanted, values = (traverse_util.flatten_dict(view) for view in views)
  for component, directory in run.config.init_from.to_dict().items():
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


def _writer(run: Experiment, start: int) -> MetricWriter:
  c = run.config
  unit = "images" if c.stage == "tower" else "rows"
  return MetricWriter(
    run.workdir, start=start, steps=c.steps, every=c.log.every, batch_size=c.batch_size, unit=unit
  )


def data_share(mesh: jax.sharding.Mesh, batch_size: int) -> tuple[int, int]:
  """Which contiguous part of a batch this process reads: (index, count).

  Processes that hold the same rows (because a tensor axis spans them) read the same part.

  Raises:
    ValueError: if the mesh does not divide the batch, or a process's rows are not contiguous.
  """
  ways = mesh.shape["data"] * mesh.shape["fsdp"]
  if batch_size % ways:
    raise ValueError(f"batch_size {batch_size} is not a multiple of mesh data x fsdp = {ways}")
  slices = sharding.batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  bounds = {
    (s[0].start or 0, batch_size if s[0].stop is None else s[0].stop) for s in slices.values()
  }
  first, last = min(b[0] for b in bounds), max(b[1] for b in bounds)
  size = last - first
  if sum(stop - start for start, stop in bounds) != size or first % size or batch_size % size:
    raise ValueError(f"the mesh {dict(mesh.shape)} gives this process rows {sorted(bounds)} of the "
                     "batch, which are no even share of it")  # fmt: skip
  return first // size, batch_size // size


def _batches(run: Experiment, mesh: jax.sharding.Mesh, start: int) -> Iterator[dict]:
  """Global batches from step `start` on, read ahead by threads or processes."""
  data = run.config.data
  dataset = run.dataset(*data_share(mesh, run.config.batch_size))
  options = grain.ReadOptions(num_threads=data.threads, prefetch_buffer_size=2 * data.threads)
  reader = dataset[start:].to_iter_dataset(options)
  if data.workers:
    reader = reader.mp_prefetch(grain.MultiprocessingOptions(num_workers=data.workers))
  for batch in reader:
    yield sharding.global_batch(batch, mesh)


def _profile(workdir: epath.Path, span: tuple[int, int] | None, step: int) -> None:
  """Starts and stops the trace around steps span[0] .. span[1] - 1."""
  if span and step == span[0]:
    jax.profiler.start_trace(str(workdir / "profile"))
  if span and step == span[1]:
    jax.profiler.stop_trace()


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
  """An event that SIGTERM, or a first Ctrl-C, sets; a second Ctrl-C interrupts at once."""
  event = threading.Event()
  if threading.current_thread() is not threading.main_thread():
    yield event
    return

  def handle(number, _frame):
    if event.is_set():
      raise KeyboardInterrupt
    event.set()

  before = {s: signal.signal(s, handle) for s in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield event
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def _stopped(stopping: threading.Event, step: int) -> bool:
  """Whether to save and stop now; all processes agree on it."""
  if jax.process_count() == 1:
    return stopping.is_set()
  told = np.array([stopping.is_set()])
  if step % _ASK_EVERY:
    return False
  return bool(np.any(multihost_utils.process_allgather(told)))


_ASK_EVERY = 10  # steps between agreements among processes; each costs one small collective
