"""A plan as tables for people."""

from typing import Any

from rich.console import Console
from rich.table import Table

from vilau_jax.plan.advice import advice
from vilau_jax.plan.compiling import Plan
from vilau_jax.plan.flops import DEFINITION

COMPILED = (
  "compiled FLOPs: products and convolutions of the optimised program times the turns of its "
  "loops, the longest of branches taken, attention kernels by the analytic model"
)
BYTES = (
  "bytes: what the optimised program's operations read and write in device memory (what stays on "
  "chip costs nothing); minimum for training: weights twice, optimizer state read and written; for "
  "drawing: weights and cache"
)
ROOFLINE = (
  "roofline: the largest of compute, memory and network, each at its peak and hidden behind the "
  "others; no real step is faster"
)


def show(plan: Plan, samples: float, console: Console) -> None:
  """Prints one plan."""
  r, mesh = plan.result, plan.mesh
  shape = " x ".join(f"{k} {v}" for k, v in mesh.shape.items() if v > 1) or "one device"
  title = f"{plan.work.workload} on {plan.topology.name}: {mesh.size} devices, {shape}"
  console.print(memory_table(plan, title))
  if not r["fits"]:
    console.print("does not fit:", style="bold")
    for line in advice(plan):
      console.print(f"  {line}")
  if r["roofline"] is None:
    return
  console.print(work_table(plan))
  console.print(network_table(plan))
  for line in speed_lines(plan, samples):
    console.print(line)
  for line in (DEFINITION, COMPILED, BYTES, ROOFLINE, f"chip: {plan.topology.chip.source}"):
    console.print(line, style="dim")


def headline(plan: Plan) -> str:
  """One line for the header of a config."""
  r = plan.result
  memory = r["memory_gib_per_device"]
  said = f"{plan.topology.name}: {memory['total']:.2f} of {memory['hbm']:.2f} GiB a device"
  if r["roofline"] is None:
    return f"{said}: does not fit"
  bounds = r["roofline"]
  return (
    f"{said}, FLOPs {r['flops_per_device']['ratio']:.2f} x the model's, a step takes at least "
    f"{bounds['step_s']:.3g} s ({bounds['limit']}), MFU at most {100 * bounds['mfu_at_most']:.0f} %"
  )


def memory_table(plan: Plan, title: str) -> Table:
  """GiB a device."""
  table = Table("memory a device", "GiB", title=title, title_justify="left")
  memory = plan.result["memory_gib_per_device"]
  notes = {
    "parameters": "parameters, frozen and collections too", "optimizer": "optimizer state",
    "temporaries": "temporaries", "activations": "  of these, saved inputs of blocks",
    "total": "total", "hbm": "there is room for", "headroom": "headroom",
  }  # fmt: skip
  for name, note in notes.items():
    if name == "total":
      table.add_section()
    table.add_row(note, f"{memory[name]:.2f}")
  return table


def work_table(plan: Plan) -> Table:
  """FLOPs and bytes a device."""
  r, size = plan.result, plan.mesh.size
  table = Table("work a device and step", "", "against", "", "ratio")
  flops, moved = r["flops_per_device"], r["bytes_per_device"]
  table.add_row(
    "FLOPs, compiled", amount(flops["compiled"]), "model", amount(flops["model"]),
    f"{flops['ratio']:.3f}",
  )  # fmt: skip
  table.add_row(
    "bytes moved", amount(moved["accessed"]), "minimum", amount(moved["minimum"]),
    f"{moved['ratio']:.3f}",
  )  # fmt: skip
  table.add_section()
  for name, value in plan.work.model_flops.items():
    if name != "total":
      table.add_row(f"  model: {name}", amount(value / size), "", "", "")
  return table


def amount(value: float) -> str:
  """Four digits and a decimal prefix: 12.34 G."""
  for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
    if value >= factor:
      return f"{value / factor:.4g} {prefix}"
  return f"{value:.4g}"


def network_table(plan: Plan) -> Table:
  """Communication by kind and mesh axis."""
  table = Table("collective", "mesh axis", "bytes a device and step", "calls")
  for row in plan.result["collectives"]:
    table.add_row(row["kind"], row["axis"], amount(row["bytes"]), str(row["count"]))
  if not plan.result["collectives"]:
    table.add_row("none", "", "", "")
  return table


def speed_lines(plan: Plan, samples: float) -> list[str]:
  """Time and throughput."""
  bounds, speed = plan.result["roofline"], plan.result["throughput"]
  parts = ", ".join(f"{n} {bounds[f'{n}_s']:.4g} s" for n in ("compute", "memory", "network"))
  lines = [
    f"roofline step {bounds['step_s']:.4g} s, limited by {bounds['limit']} ({parts}); MFU at most "
    f"{100 * bounds['mfu_at_most']:.0f} %",
    f"at most {speed['tokens_per_s']:,.0f} tokens/s, {speed['images_per_s']:,.1f} images/s",
  ]
  if plan.work.workload == "train":
    c = plan.config
    unit = "pictures" if c.stage == "tower" else "rows"
    days = samples / c.batch_size * bounds["step_s"] / 86400
    lines.append(f"{samples:,.0f} {unit} take at least {days:.3g} days")
  return lines


def what_if_row(plan: Plan | str) -> tuple[str, ...]:
  """Columns of the what-if table: memory, fits, ratio, step, limit, throughput."""
  if isinstance(plan, str):
    return (plan, "", "", "", "", "")
  r = plan.result
  memory = f"{r['memory_gib_per_device']['total']:.2f}"
  if r["roofline"] is None:
    return (memory, "no", "", "", "", "")
  return (
    memory, "yes" if r["fits"] else "no", f"{r['flops_per_device']['ratio']:.2f}",
    f"{r['roofline']['step_s']:.4g}", r["roofline"]["limit"],
    f"{r['throughput']['tokens_per_s']:,.0f}",
  )  # fmt: skip


def what_if_table() -> Table:
  return Table("what if", "GiB a device", "fits", "FLOPs ratio", "step s", "limit", "tokens/s")


def summary(rows: dict[str, Any]) -> list[dict[str, Any]]:
  """What-if plans for `--json`."""
  return [
    {"change": name} | (plan.result if isinstance(plan, Plan) else {"error": plan})
    for name, plan in rows.items()
  ]
