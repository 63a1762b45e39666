"""Planning for machines that are not there: the tiny steps compile for a TPU and a GPU."""

import importlib.util
import json
import types

import experiments
import pytest

from vilau_jax import sharding
from vilau_jax.cli import main as cli
from vilau_jax.plan import advice, compiling, topology
from vilau_jax.train import loop

needs = {
  chip: pytest.mark.skipif(
    importlib.util.find_spec(package) is None, reason=f"needs {package}, of the extra plan"
  )
  for chip, package in (("v5e:2x2", "libtpu"), ("h100:1x4", "jax_cuda13_plugin"))
}
MACHINES = [pytest.param(name, marks=mark) for name, mark in needs.items()]
needs_tpu = needs["v5e:2x2"]


def lm_config(**changes):
  c, _ = experiments.lm(remat="nothing_saveable", dtype="bfloat16")
  c.mesh.update(dict(data=1, fsdp=-1))
  c.update(changes)
  return c


def tower_config():
  c, _ = experiments.tower()
  c.model.dtype = "bfloat16"
  c.loss.update(dict(gan=0.5, lpips=1.0, lpips_weights="lpips.npz"))
  c.loss.disc.update(dict(channels=8, start_step=0))
  return c


@needs_tpu
@pytest.mark.parametrize(
  ("machine", "shape"),
  [
    ("v5e:8x8", dict(data=-1, fsdp=8)),
    ("v5e:16x16", dict(fsdp=-1)),
    ("v5p:4x4x8", dict(data=1, fsdp=-1)),
    ("v5e:4x4", dict(data=1, fsdp=4, tensor=4)),
  ],
)
def test_every_host_reads_one_piece_of_the_batch(machine, shape):
  mesh = sharding.make_mesh(**{"data": 1} | shape, devices=topology.parse(machine).devices)
  hosts = {}
  for device, rows in sharding.batch_sharding(mesh).devices_indices_map((512,)).items():
    hosts.setdefault(device.process_index, {})[device] = rows
  shares = [loop.share_of_rows(hosts[i], mesh, 512) for i in sorted(hosts)]
  assert shares == [(i, len(hosts)) for i in range(len(hosts))] and len(hosts) > 1


@pytest.fixture(scope="module")
def plans():
  """(topology) -> the language-model step planned for it, once."""
  made = {}

  def plan(name):
    if name not in made:
      made[name] = compiling.make_plan(lm_config(), topology.parse(name))
    return made[name]

  return plan


@pytest.mark.parametrize("name", MACHINES)
def test_the_step_of_the_language_model_compiles(plans, name):
  result = plans(name).result
  assert result["fits"]
  memory = result["memory_gib_per_device"]
  assert 0 < memory["parameters"] + memory["optimizer"] + memory["temporaries"] <= memory["total"]
  assert 1.0 < result["flops_per_device"]["ratio"] < 2.5  # rematerialised, small and half empty
  assert result["bytes_per_device"]["ratio"] > 0.5  # so small a model half stays on the chip
  kinds = {(row["kind"], row["axis"]) for row in result["collectives"]}
  assert {("all-gather", "fsdp"), ("reduce-scatter", "fsdp")} <= kinds
  assert {axis for _, axis in kinds} == {"fsdp"}
  bounds = result["roofline"]
  assert bounds["step_s"] == bounds[f"{bounds['limit']}_s"] > 0
  assert set(result) == {
    "fits", "memory_gib_per_device", "flops_per_device", "bytes_per_device", "collectives",
    "roofline", "throughput",
  }  # fmt: skip
  json.dumps(result)


@pytest.mark.parametrize("name", MACHINES)
def test_the_report_says_everything(plans, name):
  from rich.console import Console

  from vilau_jax.plan import report

  console = Console(width=100, record=True, file=open("/dev/null", "w"))
  report.show(plans(name), 1000, console)
  text = " ".join(console.export_text().split())
  for word in ("headroom", "model FLOPs: 6 per trained", "all-gather", "limited by", "tokens/s",
               "images/s", "days"):  # fmt: skip
    assert word in text


@pytest.mark.nightly
@pytest.mark.parametrize("name", MACHINES)
def test_the_step_of_the_tower_compiles(name):
  result = compiling.make_plan(tower_config(), topology.parse(name)).result
  assert result["fits"] and 0.8 < result["flops_per_device"]["ratio"] < 2.5


@pytest.mark.nightly
@pytest.mark.parametrize("workload", ["tokenize", "generate"])
@pytest.mark.parametrize("name", MACHINES)
def test_the_other_programs_compile(name, workload):
  c = lm_config()  # with as many heads as devices, which share them when they draw
  c.model.update(dict(llm=dict(kv_heads=4), depth=dict(heads=4)))
  result = compiling.make_plan(c, topology.parse(name), workload).result
  assert result["fits"] and result["flops_per_device"]["ratio"] > 0.5
  assert result["throughput"]["images_per_s"] > 0


@pytest.mark.nightly
@needs["h100:1x4"]
def test_drawing_on_a_gpu_copies_no_weights():
  """What sampling reads, 16384 entries dozens of times a code, counts little beside 6 layers."""
  c = lm_config()
  shapes = dict(llm=dict(depth=6, vocab_size=512), depth=dict(depth=1))
  c.model = dict(preset="vilau_1b3_256", dtype="bfloat16", remat="none", **shapes)
  plan = compiling.make_plan(c, topology.parse("h100:1x1"), "generate")
  assert 1 <= plan.result["bytes_per_device"]["ratio"] < 1.1


@pytest.mark.nightly
@needs_tpu
def test_a_batch_that_does_not_fit_says_by_how_much_and_what_helps():
  plan = compiling.make_plan(lm_config(batch_size=2**19), topology.parse("v5e:2x2"))
  assert not plan.result["fits"] and plan.result["roofline"] is None
  lines = advice.advice(plan)
  over = -plan.result["memory_gib_per_device"]["headroom"]
  assert lines[0] == f"it needs {over:.2f} GiB a device more than there are" and over > 1
  assert any("optim.accumulate=2" in line for line in lines)


@pytest.mark.parametrize(
  "name, message",
  [
    ("v5:16x16", r"unknown chip 'v5' \(did you mean 'v5[ep]'\?\); known: v4, v5e"),
    ("v5e", "is not CHIP:SHAPE; such as v5e:16x16"),
    ("v5p:4x4", "v5p takes a torus of 3 dimensions, such as v5p:4x4x8"),
    ("h100:64", "h100 takes hosts x GPUs a host, such as h100:8x8"),
    ("2*h100:8x8", "slices are a TPU's"),
    ("v5e:0x4", "takes a torus"),
  ],
)
def test_a_wrong_topology_is_explained(name, message):
  with pytest.raises(ValueError, match=message):
    topology.parse(name)


@needs_tpu
def test_a_shape_that_the_chip_does_not_have():
  with pytest.raises(ValueError, match="--topology=v5e:3x7: the compiler refuses it"):
    topology.parse("v5e:3x7").devices  # noqa: B018


def test_names_of_topologies():
  assert topology.parse("v5e:16x16").count == 256
  assert topology.parse("2*v5p:4x4x8").count == 256
  assert topology.parse("h100:8x8").chip.is_gpu and topology.parse("a100:8x8").chip.is_gpu


@needs_tpu
@pytest.mark.parametrize("name", ["v4:2x2x4", "v4:1x1x1", "v5p:2x2x2", "v6e:2x4", "2*v4:2x2x1"])
def test_a_chip_is_one_device(name):
  machine = topology.parse(name)
  assert len(machine.devices) == machine.count


def test_a_tower_with_a_row_a_device_is_told_something():
  plan = types.SimpleNamespace(
    result={"memory_gib_per_device": dict(total=20, hbm=16, parameters=0, optimizer=0)},
    mesh=types.SimpleNamespace(shape=dict(data=1, fsdp=8, tensor=1)),
    config=tower_config(), work=types.SimpleNamespace(workload="train"),
  )  # fmt: skip
  plan.config.batch_size, plan.config.model.remat = 8, "nothing_saveable"
  assert advice.advice(plan)[1:] == ["a chip with more memory: a device has as few rows as it can"]


@needs_tpu
def test_a_mesh_that_does_not_fit_the_machine():
  config = lm_config()
  config.mesh.fsdp = 3
  with pytest.raises(ValueError, match="needs 3 devices, this job has 4"):
    compiling.make_plan(config, topology.parse("v5e:2x2"))
  config.mesh.fsdp, config.batch_size = 4, 6
  with pytest.raises(ValueError, match="batch_size 6 is not a multiple of mesh data x fsdp = 4"):
    compiling.make_plan(config, topology.parse("v5e:2x2"))
  with pytest.raises(ValueError, match="--workload must be one of"):
    compiling.make_plan(config, topology.parse("v5e:2x2"), "trian")


@needs_tpu
def test_two_slices_share_the_data_axis():
  plan = topology.parse("2*v5e:2x2")
  config = lm_config(batch_size=16)
  config.mesh.dcn_data = 2
  mesh = compiling.make_mesh(config, plan)
  assert dict(mesh.shape) == {"data": 2, "fsdp": 4, "tensor": 1, "context": 1}
  assert [{d.slice_index for d in row.ravel()} for row in mesh.devices] == [{0}, {1}]
  config.mesh.dcn_data = 3
  with pytest.raises(ValueError, match=r"mesh.dcn_data is 3, but this job has 2 slice\(s\)"):
    compiling.make_mesh(config, plan)


def test_neighbours_vary_batch_remat_and_mesh():
  """Meshes among them that can be built, whatever of the config's was left to the devices."""
  config = lm_config()
  for sizes, wanted in (
    (dict(data=-1, fsdp=4), ["mesh.data=8, fsdp=1", "mesh.tensor=2, data=1"]),
    (dict(data=1, fsdp=-1), ["mesh.data=4, fsdp=2", "mesh.tensor=2, fsdp=4"]),
    (dict(data=4, fsdp=1, tensor=2), ["mesh.fsdp=4, data=1", "mesh.tensor=4, data=2"]),
  ):
    config.mesh.update(dict(data=1, fsdp=1, tensor=1, context=1, dcn_data=1) | sizes)
    mesh = sharding.make_mesh(**config.mesh.to_dict())
    found = dict(advice.neighbours(config, mesh.shape))
    names = list(found)
    assert names[:2] == ["batch_size=4", "batch_size=16"]
    assert "model.remat=dots_with_no_batch_dims_saveable" in names
    assert [name for name in names if name.startswith("mesh.")] == wanted
    for name in names:
      assert sharding.make_mesh(**found[name].mesh.to_dict()).size == 8


def test_the_command_explains_what_is_missing(capsys):
  assert cli.run(["plan"]) == 2
  assert "--topology=CHIP:SHAPE" in capsys.readouterr().err
