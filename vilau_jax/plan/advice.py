"""What to change when a plan does not fit, and the neighbours of a config worth compiling."""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from vilau_jax.plan.compiling import Plan


def advice(plan: Plan) -> list[str]:
  """Which knobs bring a plan that does not fit below the device's memory; the strongest first."""
  memory, shape = plan.result["memory_gib_per_device"], plan.mesh.shape
  over = memory["total"] - memory["hbm"]
  states = memory["parameters"] + memory["optimizer"]
  lines = [f"it needs {over:.2f} GiB a device more than there are"]
  if plan.work.workload == "tokenize":  # weights are whole on every device
    return [*lines, "a chip with more memory"]
  if plan.work.workload == "generate":
    less = [] if plan.work.quantized else ["--int8"]
    return [*lines, " or ".join([*less, "more devices, which share the weights when they draw"])]
  spread = shape["data"] // plan.config.mesh.dcn_data
  if spread > 1 and states > 0.1 * memory["hbm"]:
    saved = states * (1 - 1 / spread)
    lines.append(
      f"mesh.fsdp={shape['fsdp'] * spread} with mesh.data=1 (parameters and optimizer take "
      f"{states:.2f} GiB a device now, {states - saved:.2f} then)"
    )
  c, rows = plan.config, plan.config.batch_size / shape["data"] / shape["fsdp"]
  if c.stage == "lm" and rows % (2 * c.optim.accumulate) == 0:
    lines.append(
      f"optim.accumulate={2 * c.optim.accumulate} (temporaries are {memory['temporaries']:.2f} GiB "
      "a device, and most of them grow with the rows at once)"
    )
  if c.model.get("remat") != "nothing_saveable":
    lines.append("model.remat='nothing_saveable' (only the inputs of blocks are kept)")
  halves = rows % (2 * c.optim.accumulate) == 0
  if halves:
    lines.append(f"batch_size={c.batch_size // 2}, or twice as many devices")
  else:
    lines.append("a chip with more memory: a device has as few rows as it can")
  sizes = {"fsdp": shape["fsdp"], "data": spread}
  source = next((axis for axis, size in sizes.items() if size % 2 == 0), None)
  if c.stage == "lm" and source:
    more = 2 * shape["tensor"]
    lines.append(
      f"mesh.tensor={more} with mesh.{source}={sizes[source] // 2} (a layer's products and "
      f"activations are shared by {more} devices)"
    )
  return lines


def neighbours(config: ConfigDict, shape: Mapping[str, int]) -> Iterator[tuple[str, ConfigDict]]:
  """Variations of a training config: batch, rematerialisation, mesh; (what differs, config).

  Args:
    shape: sizes of the config's mesh, all slices together.
  """

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
  sizes = {**shape, "data": shape["data"] // config.mesh.dcn_data}  # of one slice
  moves = [("data", "fsdp", 4), ("fsdp", "data", 4)]
  moves.append(("data" if sizes["data"] % 2 == 0 else "fsdp", "tensor", 2))
  for source, target, times in moves:
    if sizes[source] % times == 0:
      new = sizes | {source: sizes[source] // times, target: sizes[target] * times}
      name = f"mesh.{target}={new[target]}, {source}={new[source]}"
      yield name, changed(**{f"mesh__{axis}": size for axis, size in new.items()})
