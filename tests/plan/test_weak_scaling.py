"""What pure fsdp sends, compiled for growing TPU slices, against a formula."""

import importlib.util

import experiments
import jax
import pytest

from vilau_jax.plan import compiling, topology
from vilau_jax.train.step import abstract_state, make_stage, planned_model

pytestmark = [
  pytest.mark.nightly,
  pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu, of the extra plan"
  ),
]


def config_for(devices):
  """Two rows a device, everything shared by all: weak scaling of pure fsdp."""
  c, _ = experiments.lm(remat="nothing_saveable", dtype="bfloat16")
  c.mesh.update(dict(data=1, fsdp=-1))
  c.batch_size = 2 * devices
  return c


def sharded_sizes(config, mesh):
  """Numbers of what is split over fsdp, by where it stands: in a scanned "stack", "outside", or
  the text "head"."""
  model = planned_model(config)
  params = abstract_state(make_stage(config, model), mesh)[0].params
  sizes = {"stack": 0, "outside": 0, "head": 0}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    if "fsdp" not in leaf.sharding.spec:
      continue
    keys = [p.key for p in path]
    part = "stack" if keys[0] in ("llm", "depth") and "layers" in keys else "outside"
    sizes["head" if "lm_head" in keys else part] += leaf.size
  return sizes


@pytest.mark.parametrize("shape, devices", [("1x1", 1), ("2x2", 4), ("2x4", 8), ("4x4", 16)])
def test_fsdp_sends_twice_the_weights_and_once_the_gradients(shape, devices):
  """All-gather: a scanned stack's weights once forward and once for the rematerialised backward
  pass, what stands outside once, all in bfloat16. Reduce-scatter: every gradient once, in bfloat16;
  the text head's in float32, as its product is taken in float32. XLA sums gradients as small as
  some of these whole (all-reduce) where a reduce-scatter would not pay; together they are as many
  bytes.
  """
  config = config_for(devices)
  plan = compiling.make_plan(config, topology.parse(f"v5e:{shape}"))
  rows = plan.result["collectives"]
  if devices == 1:
    assert rows == []
    return
  sizes = sharded_sizes(config, plan.mesh)
  gathered = 2 * (2 * sizes["stack"] + sizes["outside"] + sizes["head"])
  scattered = 2 * (sizes["stack"] + sizes["outside"]) + 4 * sizes["head"]
  sent = {(r["kind"], r["axis"]): r["bytes"] for r in rows}
  assert sent["all-gather", "fsdp"] == pytest.approx(gathered, rel=0.1)
  summed = sent["reduce-scatter", "fsdp"] + sent["all-reduce", "fsdp"]
  assert summed == pytest.approx(scattered, rel=0.1)
  assert sent["reduce-scatter", "fsdp"] > 0.8 * scattered
  assert set(sent) == {(k, "fsdp") for k in ("all-gather", "reduce-scatter", "all-reduce")}
