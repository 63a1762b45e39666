"""The very step that a config trains with, run on this machine: what `vilau plan` foretells.

Weights and batches are random; no data set and no checkpoint is needed.
"""

import statistics
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vilau_jax import sharding
from vilau_jax.config import VilaUConfig
from vilau_jax.models.perceptual import Lpips
from vilau_jax.plan import programs
from vilau_jax.speed import peak_flops
from vilau_jax.train import step as steps
from vilau_jax.train.optim import State, Tree

GIB = 2**30


def measure(config: ConfigDict, rounds: int = 5) -> dict[str, Any]:
  """Compiles the step of `config` for the devices of this process and runs it `rounds` times.

  Returns:
    {"device", "jax", "compile_s", "step_s" (median), "spread" (of all steps, relative to it),
    "tokens_per_s", "images_per_s", "model_flops" (of a step, as plan/flops.py counts), "mfu" (None
    for devices whose peak nobody knows), "memory_gib" ("peak" of the fullest device and its
    "limit"; None where the device does not say), "metrics" (of the last step)}.

  Raises:
    ValueError: for a mesh that does not fit this machine.
  """
  model = steps.planned_model(config)
  stage = steps.make_stage(config, model)
  mesh = sharding.make_mesh(**config.mesh.to_dict())
  with jax.set_mesh(mesh):
    state, frozen = _initial(stage, config, mesh)
    batch = _batch(config, model, mesh)
    key = jax.random.key(config.seed)
    began = time.perf_counter()
    step = steps.compiled_step(stage, state).lower(state, frozen, batch, key).compile()
    compiled = time.perf_counter() - began
    taken = []
    for _ in range(rounds + 1):
      began = time.perf_counter()
      state, metrics = step(state, frozen, batch, key)
      jax.block_until_ready((state, metrics))
      taken.append(time.perf_counter() - began)
  taken = taken[1:]  # the first moves the weights where the step wants them
  median = statistics.median(taken)
  counted, tokens, images = programs.counted(config, model)
  peak = peak_flops(config, mesh.size)
  device = jax.devices()[0]
  return {
    "device": f"{mesh.size} x {device.device_kind} ({device.platform})",
    "jax": jax.__version__,
    "compile_s": compiled,
    "step_s": median,
    "spread": (max(taken) - min(taken)) / median,
    "tokens_per_s": tokens / median,
    "images_per_s": images / median,
    "model_flops": counted["total"],
    "mfu": counted["total"] / median / peak if peak else None,
    "memory_gib": _memory(mesh),
    "metrics": {name: float(value) for name, value in metrics.items() if jnp.ndim(value) == 0},
  }


def _initial(stage: Any, config: ConfigDict, mesh: jax.sharding.Mesh) -> tuple[State, Tree]:
  """Random state and frozen variables, placed and compressed as a run places them."""
  placed = jax.tree.map(lambda leaf: leaf.sharding, steps.abstract_state(stage, mesh))
  init = jax.jit(lambda key: nn.unbox(stage.init(key)), out_shardings=placed)
  state, frozen = init(jax.random.key(config.seed))
  if config.stage == "tower" and config.loss.lpips:
    images = jnp.zeros((1, 32, 32, 3))
    where = jax.tree.map(lambda leaf: leaf.sharding, steps.abstract_lpips(mesh))
    random = jax.jit(lambda key: nn.unbox(Lpips().init(key, images, images)), out_shardings=where)
    frozen = frozen | {"lpips": random(jax.random.key(1))}
  return state, stage.compressed(frozen)


def _batch(config: ConfigDict, model: VilaUConfig, mesh: jax.sharding.Mesh) -> Tree:
  """A full batch: whole rows of one segment, text first and then every visual slot."""
  rng = np.random.default_rng(0)
  shapes = steps.abstract_batch(config, model, mesh)
  most = {"image": 256, "codes": model.tower.quantizer.entries}
  if config.stage == "tower":
    most |= dict.fromkeys(("text", "wrong_text"), model.tower.text.vocab_size)
  else:
    most["tokens"] = most["text_target"] = model.llm.vocab_size
  values = {
    name: rng.integers(0, most.get(name, 2), leaf.shape).astype(leaf.dtype)
    for name, leaf in shapes.items()
  }
  if "caption_id" in values:
    values["caption_id"] = np.arange(config.batch_size, dtype=np.int32)
  if config.stage == "lm":
    row, everywhere = config.data.row, values["tokens"].shape
    text = row.length - row.slots
    values["segment_ids"] = np.ones(everywhere, np.int32)
    values["positions"] = np.tile(np.arange(row.length, dtype=np.int32), (len(values["tokens"]), 1))
    values["visual_position"] = values["positions"][:, text:]
    values["text_target"][:, text:] = -1
    values["visual_target"][:] = np.arange(row.slots) < row.targets
    if "branches" in values:
      values["branches"][:] = 0
  return {name: jax.device_put(value, shapes[name].sharding) for name, value in values.items()}


def _memory(mesh: jax.sharding.Mesh) -> dict[str, float] | None:
  found = [device.memory_stats() for device in mesh.local_devices]
  if not all(found):
    return None
  full = max(found, key=lambda stats: stats["peak_bytes_in_use"])
  return {"peak": full["peak_bytes_in_use"] / GIB, "limit": full.get("bytes_limit", 0) / GIB}
