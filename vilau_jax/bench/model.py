"""Times the parts of a model on this machine, against its own memory bandwidth."""

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from vilau_jax.bench.workloads import Bench, Sizes, Workload
from vilau_jax.config import VilaUConfig

NAMES = ("tower_encode", "tower_decode", "prefill", "text", "image", "speculative", "train")
# Bytes of the array whose copying gives the bandwidth; an accelerator would copy the smaller one in
# less time than a call takes to start.
_COPIED = {"cpu": 2**28}
_COPIED_ELSEWHERE = 2**31


def measure(
  config: VilaUConfig,
  sizes: Sizes,
  only: Iterable[str] = NAMES,
  rounds: int = 10,
  on_row: Callable[[dict[str, Any]], None] = lambda row: None,
) -> dict[str, Any]:
  """Runs workloads one after the other; each is called twice to compile, then `rounds` times.

  Args:
    on_row: gets the result so far as soon as a row is measured: big models compile for minutes.

  Returns:
    {"device", "copy_gb_per_s", "rows": [{"name", "ms", "spread", "unit", "per_s", "ms_per_unit",
    "first_s", "gb_per_s", "of_copy"}]}, or {"name", "error"} of a workload that the device has no
    memory for: medians, the middle half's width relative to them, seconds
    before the first timed call (weights, compiling), and for what is bound by memory the bytes it
    must read a second, also relative to the copy bandwidth.

  Raises:
    ValueError: for an unknown workload, or one whose component the config lacks.
  """
  only = list(only)
  unknown = [name for name in only if name not in NAMES]
  if unknown:
    raise ValueError(f"unknown workloads {unknown}; known: {', '.join(NAMES)}")
  if rounds < 1:
    raise ValueError(f"rounds must be at least 1, got {rounds}")
  for name in only:
    _check(config, name)
  device, others = jax.local_devices()[0], jax.device_count() - 1
  alone = f", one of {1 + others}" if others else ""
  with jax.default_device(device):  # a tower would share its pictures among all of them
    bandwidth = copy_bandwidth()
    bench = Bench(config, sizes)
    result: dict[str, Any] = {
      "device": f"{device.device_kind} ({device.platform}{alone})",
      "jax": jax.__version__,
      "config": bench.config.to_dict(),
      "sizes": vars(sizes),
      "copy_gb_per_s": bandwidth / 1e9,
      "rows": [],
    }
    for name in only:
      result["rows"].append(_row_if_it_fits(bench, name, rounds, bandwidth))
      on_row(result)
  return result


def copy_bandwidth(rounds: int = 5) -> float:
  """Bytes a second that the first device reads and writes while it copies a large array."""
  size = _COPIED.get(jax.default_backend(), _COPIED_ELSEWHERE)
  source = jnp.zeros(size // 4, jnp.float32)
  copy = jax.jit(lambda x: x + 1)
  return 2 * size / statistics.median(seconds(lambda: copy(source), rounds))


def seconds(
  call: Callable[[], Any], rounds: int, ready: Callable[[], None] = lambda: None
) -> list[float]:
  """Times of `rounds` calls, results awaited, after two that are not counted; `ready` goes before
  each."""
  taken = []
  for _ in range(rounds + 2):
    ready()
    began = time.perf_counter()
    jax.block_until_ready(call())
    taken.append(time.perf_counter() - began)
  return taken[2:]


def _row_if_it_fits(bench: Bench, name: str, rounds: int, bandwidth: float) -> dict[str, Any]:
  try:
    return _row(bench, name, rounds, bandwidth)
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return {"name": name, "error": "out of memory"}


def _row(bench: Bench, name: str, rounds: int, bandwidth: float) -> dict[str, Any]:
  began = time.perf_counter()
  workload: Workload = getattr(bench, name)()
  taken = seconds(workload.call, rounds, workload.ready)
  first = time.perf_counter() - began - sum(taken)
  median = statistics.median(taken)
  row = {
    "name": name,
    "ms": 1e3 * median,
    "spread": _spread(taken) / median,
    "unit": workload.unit,
    "per_s": workload.work / median,
    "ms_per_unit": 1e3 * median / workload.work,
    "first_s": first,
  }
  if workload.bytes is not None:
    rate = workload.bytes / median
    row |= {"gb_per_s": rate / 1e9, "of_copy": rate / bandwidth}
  return row


def _spread(taken: list[float]) -> float:
  if len(taken) < 2:
    return 0.0
  low, _, high = statistics.quantiles(taken, n=4, method="inclusive")
  return high - low


def _check(config: VilaUConfig, name: str) -> None:
  needs = {
    "tower_encode": ("tower",),
    "tower_decode": ("tower",),
    "prefill": ("llm",),
    "text": ("llm",),
    "image": ("tower", "llm", "depth"),
    "speculative": ("tower", "llm", "depth"),
    "train": ("tower", "llm", "depth"),
  }
  missing = [part for part in needs[name] if getattr(config, part) is None]
  if missing:
    raise ValueError(
      f"workload {name!r} needs a {' and a '.join(missing)}; {config.name!r} has none"
    )
