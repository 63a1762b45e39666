"""A copy of the model on every device of this process; batches are dealt out to them.

A device computes a batch by the very program that a single device would run, and devices never talk
to each other: how many there are can't change a prediction.
"""

import concurrent.futures
import contextlib
import os
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import jax

from vilau_jax import api, checkpoint, convert

T = TypeVar("T")


class Replicas:
  """Copies of one model.

  Args:
    models: the copies.
    devices: where they are; None leaves a single copy where it was made.
  """

  def __init__(self, models: Sequence[api.VilaU], devices: Sequence[jax.Device | None] = (None,)):
    self.models = list(models)
    self.path = self.models[0].path
    self._free: queue.SimpleQueue = queue.SimpleQueue()
    for pair in zip(self.models, devices, strict=True):
      self._free.put(pair)

  @classmethod
  def load(cls, path: str | os.PathLike, devices: Sequence[jax.Device] | None = None) -> "Replicas":
    """What api.load reads, read once, on each of `devices` (None: all of this process)."""
    devices = jax.local_devices() if devices is None else list(devices)
    if len(devices) == 1:
      return cls([api.load(path)])
    release = convert.is_release(path)
    loaded = convert.load_checkpoint("vila-u", path) if release else checkpoint.load_model(path)
    models = []
    for device in devices:
      with jax.default_device(device):
        models.append(api.VilaU.from_loaded(loaded))
    return cls(models, devices)

  def __len__(self) -> int:
    return len(self.models)

  def identity(self) -> str:
    return self.models[0].identity()

  def map(self, call: Callable[[api.VilaU, Any], T], batches: Sequence[Any]) -> list[T]:
    """call(model, batch) of every batch, in their order; the next free device takes the next."""

    def one(batch: Any) -> T:
      model, device = self._free.get()
      try:
        with contextlib.nullcontext() if device is None else jax.default_device(device):
          return call(model, batch)
      finally:
        self._free.put((model, device))

    if len(self) == 1:
      return [one(batch) for batch in batches]
    with concurrent.futures.ThreadPoolExecutor(len(self)) as pool:
      return list(pool.map(one, batches))


class PerDevice(Generic[T]):
  """Something with weights that every device makes for itself, the first time it asks."""

  def __init__(self, make: Callable[[], T]):
    self._make, self._made, self._lock = make, {}, threading.Lock()

  def get(self) -> T:
    device = jax.config.jax_default_device  # of this thread, see Replicas.map
    with self._lock:
      if device not in self._made:
        self._made[device] = self._make()
      return self._made[device]
