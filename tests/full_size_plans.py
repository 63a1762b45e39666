"""Plans of the real runs, compiled in full size, and the bounds they must keep.

    python -m tests.full_size_plans              all of them, minutes each
    python -m tests.full_size_plans pretrain     those whose name contains a word
Writes what `vilau plan` prints to configs/plans/NAME.txt. Needs the extra plan.
"""

import importlib.util
import pathlib
import sys
import time

from ml_collections import ConfigDict
from rich.console import Console

from vilau_jax.plan import compiling, report, topology

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
# (config, topology, workload and its switches, changed fields, bounds)
GUIDED = dict(bytes_ratio=1.15)
RUNS = (
  ("pretrain_7b_256", "v5e:16x16", "train", {}, dict(gib=14.5, flops_ratio=1.4)),
  ("pretrain_7b_384", "v5p:4x4x8", "train", {}, {}),
  ("pretrain_7b_384", "h100:8x8", "train", {}, {}),
  ("sft_7b_256", "v6e:8x8", "train", {}, {}),
  ("sft_7b_384", "v5p:4x4x8", "train", {}, {}),
  ("tower_384", "v5e:8x8", "train", {}, {}),
  ("tower_256", "v5e:8x8", "train", {}, {}),
  ("ablation_tower_recon_only", "v5e:8x8", "train", {}, {}),
  ("ablation_tower_25m", "v5e:8x8", "train", {}, {}),
  ("generation_1b3_rqvae", "v5e:8x8", "train", {}, {}),
  ("generation_1b3_unified", "v5e:8x8", "train", {}, {}),
  ("rqvae_256", "v5e:2x4", "train", {}, {}),
  ("vqgan_256", "v5e:2x4", "train", {}, {}),
  *((f"tower_recipes:c{i}", "v5e:8x8", "train", {}, {}) for i in range(5)),
  ("tower_256", "v5e:8x8", "tokenize", {}, {}),
  ("pretrain_7b_256", "v6e:1x1", "generate", {}, GUIDED),
  ("pretrain_7b_256", "h100:1x1", "generate", {}, GUIDED),
  ("pretrain_7b_256", "v5e:2x4", "generate", {}, {}),
  ("pretrain_7b_256", "v5e:1x1", "generate --int8", {}, GUIDED),
  ("lora_7b_v5e8", "v5e:2x4", "train", {}, {}),
  ("qlora_7b_gpu", "h100:1x1", "train", {}, {}),
  ("qlora_7b_gpu", "a100:1x1", "train", {}, {}),
)


def config_of(name: str, changes: dict) -> ConfigDict:
  """configs/NAME.py (NAME:ARGUMENT) with fields changed by dotted name."""
  name, _, argument = name.partition(":")
  spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = ConfigDict(module.get_config(argument).copy_and_resolve_references())
  config.update_from_flattened_dict(changes)
  return config.lock()


def broken(result: dict, bounds: dict) -> list[str]:
  """Bounds that a plan does not keep."""
  wrong = [] if result["fits"] else ["does not fit"]
  if result["roofline"] is None:
    return wrong
  values = {
    "gib": result["memory_gib_per_device"]["total"],
    "flops_ratio": result["flops_per_device"]["ratio"],
    "bytes_ratio": result["bytes_per_device"]["ratio"],
  }
  return wrong + [
    f"{name} is {values[name]:.3f}, above {bound}"
    for name, bound in bounds.items()
    if values[name] > bound
  ]


def main(words: list[str]) -> int:
  failed = 0
  for config_name, machine, workload, changes, bounds in RUNS:
    kind, _, switch = workload.partition(" --")
    name = ".".join(n for n in (config_name, kind, switch, machine) if n).replace(":", "-")
    if words and not any(word in name for word in words):
      continue
    began = time.monotonic()
    config = config_of(config_name, changes)
    plan = compiling.make_plan(config, topology.parse(machine), kind, switch or None)
    (CONFIGS / "plans").mkdir(exist_ok=True)
    with open(CONFIGS / "plans" / f"{name}.txt", "w", encoding="utf-8") as file:
      changed = "".join(f" --config.{k}={v}" for k, v in changes.items())
      file_name, colon, argument = config_name.partition(":")
      path = f"configs/{file_name}.py{colon}{argument}"
      print(f"vilau plan --config={path} --topology={machine} "
            f"--workload={workload}{changed}", file=file)  # fmt: skip
      print(report.headline(plan), end="\n\n", file=file)
      report.show(plan, config.steps * config.batch_size, Console(width=100, file=file))
    wrong = broken(plan.result, bounds)
    failed += bool(wrong)
    print(f"{report.headline(plan)}\n{name}: {'; '.join(wrong) or 'ok'} "
          f"({time.monotonic() - began:.0f} s)", flush=True)  # fmt: skip
  return 1 if failed else 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
