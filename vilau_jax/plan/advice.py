"""What to change when a plan does not fit, and the neighbours of a config worth compiling."""

import math
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from vilau_jax.plan.compiling import Plan


def advice(plan: Plan) -> list[str]:
  """Which knobs bring a plan that does not fit below the device's memory; the strongest first."""
  memory, shape = plan.result["memory_gib_per_device"], plan.mesh.shape
  over = memory["total"] - memory["hbm"]
  states = memory["parameters"] + memory["optimizer"]
  lines = [f"it needs {over:.2f} GiB a device more than there are"]
  if plan.work.workload != "train":
    return [*lines, "more devices along mesh.tensor, fewer outputs at once, or --int8"]
  spread = math.prod(shape[a] for a in ("data",))
  if spread > 1 and states > 0.1 * memory["hbm"]:
    saved = states * (1 - 1 / spread)
    lines.append(
      f"mesh.fsdp={shape['fsdp'] * spread} with mesh.data=1 (parameters and optimizer take "
      f"{states:.2f} GiB a device now, {states - saved:.2f} then)"
    )
  c, rows = plan.config, plan.config.batch_size / shape["data"] / shape["fsdp"]
  if c.stage == "lm" and rows / c.optim.accumulate > 1:
    lines.append(
      f"optim.accumulate={2 * c.optim.accumulate} (temporaries are {memory['temporaries']:.2f} GiB "
      "a device, and most of them grow with the rows at once)"
    )
  if c.model.get("remat") != "nothing_saveable":
    lines.append("model.remat='nothing_saveable' (only the inputs of blocks are kept)")
  if rows > 1:
    lines.append(f"batch_size={c.batch_size // 2}, or twice as many devices")
  if c.stage == "lm":
    lines.append("mesh.tensor=2 (a layer's products and activations are shared by two devices)")
  return lines


def neighbours(config: ConfigDict, devices: int) -> Iterator[tuple[str, ConfigDict]]:
  """Variations of a training config: batch, rematerialisation, mesh; (what differs, config)."""

  def changed(**values: Any) -> ConfigDict:
    other = ConfigDict(config.to_dict())
    for key, value in values.items():
      section, _, field = key.partition("__")
      if field:
        other[section][field] = value
      else:
        other[section] = value
    return other.lock()

  batch = config.batch_size
  for size in (batch // 2, batch * 2):
    if size:
      yield f"batch_size={size}", changed(batch_size=size)
  now = config.model.get("remat", "none")
  for remat in ("nothing_saveable", "dots_with_no_batch_dims_saveable"):
    if remat != now:
      yield f"model.remat={remat}", changed(model__remat=remat)
  sizes = {k: v for k, v in config.mesh.items() if k != "data"}
  fixed = math.prod(sizes.values())
  for fsdp in (config.mesh.fsdp * 4, config.mesh.fsdp // 4):
    if fsdp and devices % (fixed // config.mesh.fsdp * fsdp) == 0:
      yield f"mesh.fsdp={fsdp}", changed(mesh__fsdp=fsdp, mesh__data=-1)
  if devices % (2 * fixed) == 0:
    yield "mesh.tensor=2", changed(mesh__tensor=2, mesh__data=-1)
