"""How fast a run is, and how much of its time does what it is for.

Model FLOPs are those of plan/flops.py, so that MFU, planner and tests mean the same by them.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
from ml_collections import ConfigDict

from vilau_jax.config import VilaUConfig
from vilau_jax.plan import chips, flops

# How jax calls the devices of plan/chips.py.
_KINDS = {
  "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p",
  "TPU v6 lite": "v6e", "TPU v6e": "v6e",
}  # fmt: skip


def peak_flops(config: ConfigDict, devices: int) -> float:
  """bfloat16 products a second of all devices together; 0 where nobody knows."""
  if config.log.peak_flops:
    return config.log.peak_flops * devices
  kind = jax.devices()[0].device_kind
  # Those for a PCIe slot run slower clocks, and are in no table here.
  gpus = [c.name for c in chips.CHIPS.values() if c.is_gpu and c.name.upper() in kind]
  gpus = gpus if "PCIe" not in kind else []
  name = _KINDS.get(kind) or (gpus[0] if gpus else "")
  return chips.CHIPS[name].flops * devices if name else 0.0


class Speed:
  """Counts what the steps of a run process, and where its wall time goes."""

  def __init__(
    self, config: ConfigDict, model: VilaUConfig, devices: int, share: int, began: float
  ):
    """share: processes that read different rows; this one reads one part in so many. began: by
    time.monotonic, when the call did."""
    self._config, self._model, self._share = config, model, share
    self._peak = peak_flops(config, devices)
    self._tower = flops.tower_step(config, model.tower) if config.stage == "tower" else None
    self._began = began
    self._useful, self._away_total = 0.0, 0.0
    self._restart()

  def _restart(self) -> None:
    self._marked, self._steps = time.monotonic(), 0
    self._tokens = self._images = self._targets = 0.0
    self._waiting = self._away = 0.0

  def count(self, batch: dict[str, np.ndarray]) -> None:
    """Takes this process's part of a step's batch."""
    self._steps += 1
    if self._tower is not None:
      self._images += self._config.batch_size
      return
    self._tokens += self._share * np.count_nonzero(batch["segment_ids"])
    slots = self._share * np.count_nonzero(batch["visual_position"] >= 0)
    self._images += slots / self._model.tower.image_tokens
    self._targets += self._share * np.count_nonzero(batch["visual_target"])

  @contextmanager
  def waiting(self) -> Iterator[None]:
    """For the block the step waits for data."""
    began = time.monotonic()
    yield
    self._waiting += time.monotonic() - began

  @contextmanager
  def away(self) -> Iterator[None]:
    """For the block the run does something else than steps: checkpoints, samples."""
    began = time.monotonic()
    yield
    self._away += time.monotonic() - began

  def compiled(self) -> None:
    """The first step is done: the time up to here was not useful."""
    self._restart()

  def measured(self) -> dict[str, float]:
    """Figures since the last call, {} if there was no step.

    seconds_per_step (without what `away` took), tokens_per_s, images_per_s, mfu (share of the
    devices' peak, where that is known), data_wait (share of a step spent waiting for data).
    """
    seconds = time.monotonic() - self._marked - self._away
    if not self._steps or seconds <= 0:
      self._restart()
      return {}
    self._useful += seconds - self._waiting
    found = {"seconds_per_step": seconds / self._steps}
    if self._tower is None:
      found["tokens_per_s"] = self._tokens / seconds
    found |= {"images_per_s": self._images / seconds, "data_wait": self._waiting / seconds}
    if self._peak:
      found["mfu"] = self._model_flops() / seconds / self._peak
    self._restart()
    return found

  @property
  def useful(self) -> float:
    """Seconds of this call spent in steps."""
    return self._useful

  @property
  def elapsed(self) -> float:
    """Seconds since this call began."""
    return time.monotonic() - self._began

  def _model_flops(self) -> float:
    """Of the steps since the last call."""
    if self._tower is not None:
      return self._steps * self._tower["total"]
    c, row = self._config, self._config.data.row
    step = flops.lm_step(
      self._model,
      rows=c.batch_size,
      length=row.length,
      slots=self._images * self._model.tower.image_tokens / (self._steps * c.batch_size),
      supervised=c.loss.visual_fraction * self._targets / (self._steps * c.batch_size),
      freeze=c.optim.freeze,
      rank=c.lora.rank,
      targets=c.lora.targets,
    )
    return self._steps * step["total"]
