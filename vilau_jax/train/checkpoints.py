"""The checkpoints of a workdir: written behind the run's back, verified before they are used.

A checkpoint appears under its name only when it is whole and sealed: orbax writes STEP.orbax-
checkpoint-tmp, the manifest with all checksums goes in there, then the directory is renamed.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from vilau_jax import manifest, paths

STATE = ("params", "opt", "collections")
_LINES = 3  # problems shown of one checkpoint


class CheckpointError(RuntimeError):
  """A checkpoint could not be written; the ones before it are untouched."""


class TrainingCheckpoints:
  """State and position in the data go in and out; old ones are dropped by policy."""

  def __init__(self, workdir: epath.PathLike, *, every: int, keep: int, keep_every: int = 0):
    """Opens workdir/checkpoints and clears away what an interrupted save left.

    Args:
      workdir: the run's directory; no other run may be in it (train/lock.py).
      every: steps between checkpoints.
      keep: newest ones kept.
      keep_every: besides, those whose step is a multiple of it stay; 0 = none.

    Raises:
      ValueError: for numbers with which nothing would be kept.
    """
    if every < 1 or keep < 1 or keep_every < 0:
      raise ValueError(
        f"ckpt.every ({every}) and ckpt.keep ({keep}) must be at least 1, ckpt.keep_every "
        f"({keep_every}) at least 0"
      )
    self._workdir = paths.absolute(workdir)
    self._every, self._saving = every, 0
    policies = ocp.checkpoint_managers
    kept = [policies.LatestN(keep)]
    if keep_every:
      kept.append(policies.EveryNSteps(keep_every))
    self._manager = ocp.CheckpointManager(
      self._workdir / "checkpoints",
      options=ocp.CheckpointManagerOptions(
        save_decision_policy=policies.FixedIntervalPolicy(every),
        preservation_policy=policies.AnyPreservationPolicy(kept),
        cleanup_tmp_directories=True,
        async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
      ),
    )

  def latest(self) -> int | None:
    """Step of the newest complete checkpoint."""
    return self._manager.latest_step()

  def newest_good(self) -> int | None:
    """Step of the newest checkpoint that is as it was written; None if there never was one.

    Damaged ones are named and moved to workdir/damaged. Processes share the reading.

    Raises:
      ValueError: if there are checkpoints, but no good one.
    """
    said = []
    for step in sorted(self._manager.all_steps(), reverse=True):
      wrong = self._problems(step)
      if not wrong:
        if said:
          _say(f"vilau: going on from checkpoint {step}, the newest good one")
        return step
      where = self._set_aside(step)
      said.append(f"checkpoint {step} is damaged and was moved to {where}:\n  " + wrong)
      _say(f"vilau: {said[-1]}")
    if said:
      raise ValueError(
        f"no checkpoint of {self._workdir} is good:\n" + "\n".join(said) + "\nrun the same command "
        "again to begin at step 0, or bring back a copy of a checkpoint"
      )
    return None

  def save(
    self,
    step: int,
    state: Any,
    config: dict[str, Any],
    position: dict[str, Any] | None = None,
    *,
    force: bool = False,
  ) -> None:
    """Saves `state` (fields params, opt, collections) if it is time to, or if `force` says so.

    Args:
      step: steps done.
      state: see above.
      config: what the checkpoint belongs to, as JSON.
      position: in the data and in the run's time, as JSON; see `position`.
      force: also between times.

    Raises:
      CheckpointError: if this one, or the one before, could not be written.
    """
    if step == self.latest() or not (force or step % self._every == 0):
      return
    items = {
      name: ocp.args.StandardSave(getattr(state, name))
      for name in STATE
      if jax.tree.leaves(getattr(state, name))
    }
    items |= {"config": ocp.args.JsonSave(config), "data": ocp.args.JsonSave(position or {})}
    self._wait()  # one save at a time: _seal knows which
    self._saving = step
    with self._explained():
      self._manager.save(step, args=ocp.args.Composite(**items), force=force)

  def restore(self, step: int, abstract: Any) -> Any:
    """State of `step`, placed as the shardings of `abstract` (a state of ShapeDtypeStructs) say."""
    items = {
      name: ocp.args.StandardRestore(getattr(abstract, name))
      for name in STATE
      if jax.tree.leaves(getattr(abstract, name))
    }
    restored = self._manager.restore(step, args=ocp.args.Composite(**items))
    return abstract.replace(
      step=jax.device_put(np.int32(step), abstract.step.sharding),
      **{name: restored[name] for name in items},
    )

  def position(self, step: int) -> dict[str, Any]:
    """What `save` was given as position; {} in checkpoints that hold none."""
    file = self._workdir / "checkpoints" / str(step) / "data" / "metadata"
    return json.loads(file.read_text()) if file.exists() else {}

  def close(self) -> None:
    """Waits until everything is on disk."""
    self._wait()
    self._manager.close()

  def _wait(self) -> None:
    with self._explained():
      self._manager.wait_until_finished()

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    try:
      yield
    except (
      OSError,
      ValueError,
      RuntimeError,
    ) as error:  # ValueError: tensorstore's for a full disk
      raise CheckpointError(
        f"checkpoint {self._saving} could not be written below {self._workdir}: {str(error)[-300:]}"
        f"\nFree or mend the disk; the same command goes on from the checkpoint before it"
      ) from error

  def _seal(self) -> None:
    """Called by orbax when all is written but nothing has its final name yet."""
    if jax.process_index():
      return
    step = str(self._saving)
    there = [d for d in (self._workdir / "checkpoints").iterdir() if d.name.split(".")[0] == step]
    if len(there) != 1:
      raise OSError(f"checkpoint {step} vanished while it was written: {self._workdir}")
    manifest.write(there[0], step=self._saving)

  def _problems(self, step: int) -> str:
    directory = self._workdir / "checkpoints" / str(step)
    part = jax.process_index(), jax.process_count()
    wrong = manifest.problems(directory, part=part, step=step)
    found = any_process(bool(wrong))
    if wrong or not found:
      more = [f"and {len(wrong) - _LINES} more"] if len(wrong) > _LINES else []
      return "\n  ".join(wrong[:_LINES] + more)
    return "another process found damage, and names it"

  def _set_aside(self, step: int) -> epath.Path:
    damaged = self._workdir / "damaged"
    where = damaged / str(step)
    if jax.process_index() == 0:
      damaged.mkdir(parents=True, exist_ok=True)
      taken = {d.name for d in damaged.iterdir()}
      names = (str(step) if i == 0 else f"{step}-{i}" for i in range(len(taken) + 1))
      where = damaged / next(n for n in names if n not in taken)
      (self._workdir / "checkpoints" / str(step)).rename(where)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(f"set aside {step}")
    self._manager.reload()
    return where


def any_process(here: bool) -> bool:
  """Whether it is so in any process; all get the same answer."""
  if jax.process_count() == 1:
    return here
  return bool(np.any(multihost_utils.process_allgather(np.array([here]))))


def _say(text: str) -> None:
  print(text, file=sys.stderr, flush=True)
