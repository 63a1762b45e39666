"""Several processes (CPU, Gloo) train what one does, also when they are killed, stopped or hang."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import experiments
import jax
import numpy as np
import pytest

from vilau_jax import checkpoint
from vilau_jax.metrics import TIMINGS
from vilau_jax.train import guard, loop

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import json, pathlib, sys
import jax
address, index, count, devices, root, workdir, changes = sys.argv[1:]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", int(devices))
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.config.update("jax_default_matmul_precision", "highest")
if int(count) > 1:
  jax.distributed.initialize(address, num_processes=int(count), process_id=int(index))
import experiments
from vilau_jax import checkpoint
from vilau_jax.train import loop
root = pathlib.Path(root)
config = experiments.lm_run(root, root / "tower", "")
config.optim.eps = 1e-3
config.update_from_flattened_dict(json.loads(changes))
told = loop.train(config, workdir)
print("done", told["step"], told["finished"], told["signal"])
"""
SPLIT = {"mesh.data": 2, "mesh.fsdp": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """Records with codes and the model directory of the tower that is said to have made them."""
  root = tmp_path_factory.mktemp("shared")
  config = experiments.tower_run(root)
  config.steps = 1
  loop.train(config, root / "tower", devices=jax.devices()[:1])
  identity = checkpoint.tower_id(checkpoint.load_model(root / "tower").variables)
  experiments.lm_run(root, root / "tower", identity)
  return root


def start(root, workdir, changes, processes=2, devices=2):
  """Starts the processes of one run, `devices` each."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  paths = [str(ROOT), str(ROOT / "tests/train"), os.environ.get("PYTHONPATH", "")]
  environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
  rest = [str(devices), root, workdir, json.dumps(changes)]
  return [
    subprocess.Popen(
      [sys.executable, "-c", PROGRAM, address, str(i), str(processes), *rest],
      env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    for i in range(processes)
  ]  # fmt: skip


def finished(processes):
  """What they said, when all ended well."""
  said = [p.communicate(timeout=600)[0] for p in processes]
  assert [p.returncode for p in processes] == [0] * len(processes), said
  return said


def lines(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def wait_for(workdir, step, processes):
  file, text = workdir / "metrics.jsonl", f'"step": {step},'
  while not (file.exists() and text in file.read_text()):
    assert all(p.poll() is None for p in processes), processes[0].communicate()[0]
    time.sleep(0.01)


def assert_same_run(one, other):
  timeless = [
    [{k: v for k, v in x.items() if k not in TIMINGS} for x in lines(r)] for r in (one, other)
  ]
  assert timeless[0] == timeless[1]
  first, second = (checkpoint.load_model(path).variables for path in (one, other))
  jax.tree.map(np.testing.assert_array_equal, first, second)


def assert_close_runs(one, other):
  """The same data exactly, the same numbers up to the order of sums."""
  logs = lines(one), lines(other)
  assert len(logs[0]) == len(logs[1])
  for a, b in zip(*logs):
    for name in ("text_targets", "image_targets", "fill"):
      assert a[name] == b[name]
    for name in ("loss", "loss_text", "loss_image", "grad_norm"):
      np.testing.assert_allclose(b[name], a[name], rtol=1e-5)
  first, second = (checkpoint.load_model(path).variables for path in (one, other))
  scale = max(np.abs(x).max() for x in jax.tree.leaves(first["params"]))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale), second, first
  )


def alone(root, workdir, changes, devices=4):
  config = experiments.lm_run(root, root / "tower", "")
  config.optim.eps = 1e-3  # see test_meshes.EPS
  config.update_from_flattened_dict(changes)
  loop.train(config, workdir, devices=jax.devices()[:devices])


LATE = """
import sys
import jax
address, index = sys.argv[1:]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(address, num_processes=2, process_id=int(index))
from vilau_jax import checkpoint
there = index == "1"  # process 1 comes late, and finds what process 0 has written meanwhile
print("told", checkpoint.first_says(there), checkpoint.first_says(not there))
"""


@pytest.mark.slow
def test_processes_that_find_different_files_go_the_same_way():
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
  processes = [
    subprocess.Popen([sys.executable, "-c", LATE, address, str(i)], stdout=subprocess.PIPE,
                     env=os.environ | {"PYTHONPATH": path}, text=True)
    for i in range(2)
  ]  # fmt: skip
  said = [p.communicate(timeout=600)[0].splitlines()[-1] for p in processes]
  assert said == ["told False True"] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
  "mesh",
  [SPLIT, {"mesh.data": 1, "mesh.tensor": 2, "mesh.context": 2}],
  ids=["split rows", "same rows"],
)
def test_two_processes_equal_one(root, tmp_path, mesh):
  alone(root, tmp_path / "one", mesh)
  finished(start(root, tmp_path / "two", mesh))
  assert_close_runs(tmp_path / "one", tmp_path / "two")


@pytest.mark.nightly
def test_two_processes_go_on_exactly_when_one_is_killed_or_told_to_stop(root, tmp_path):
  changes = SPLIT | {"steps": 24, "ckpt.every": 2}
  finished(start(root, tmp_path / "whole", changes))
  processes = start(root, tmp_path / "cut", changes)
  wait_for(tmp_path / "cut", 7, processes)
  processes[1].send_signal(signal.SIGKILL)
  for process in processes:  # the other one does not wait for ever
    process.communicate(timeout=240)
  assert all(p.returncode for p in processes)
  kept = [int(p.name) for p in (tmp_path / "cut/checkpoints").iterdir() if p.name.isdigit()]
  assert max(kept) >= 4  # that of step 6 may have been under way
  processes = start(root, tmp_path / "cut", changes)
  wait_for(tmp_path / "cut", max(kept) + 2, processes)
  processes[1].send_signal(signal.SIGTERM)  # one is told, both save and stop
  said = finished(processes)
  assert all(x.split()[-2:] == ["False", str(int(signal.SIGTERM))] for x in said)
  stopped = int(said[0].split()[-3])
  assert (tmp_path / "cut/checkpoints" / str(stopped)).exists() and stopped < 24
  finished(start(root, tmp_path / "cut", changes))
  assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.nightly
def test_other_hosts_devices_and_meshes_continue_the_same_data(root, tmp_path):
  steps = {"optim.warmup": 1, "steps": 8}
  alone(root, tmp_path / "whole", SPLIT | steps)
  cut = tmp_path / "cut"
  stages = (
    (4, SPLIT, 1, 4),
    (6, SPLIT, 2, 2),
    (7, {"mesh.data": 1, "mesh.fsdp": 2}, 1, 2),
    (8, {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2}, 2, 4),
  )
  for until, mesh, processes, devices in stages:
    running = start(root, cut, mesh | steps | {"ckpt.every": 1}, processes, devices)
    if until < 8:
      wait_for(cut, until, running)
      for process in running:
        process.send_signal(signal.SIGKILL)
      for process in running:
        process.communicate()
    else:
      finished(running)
  assert_close_runs(tmp_path / "whole", cut)


@pytest.mark.slow
def test_two_slices_train_what_one_does(root, tmp_path):
  """Without slices, processes stand for them."""
  steps = {"optim.warmup": 1, "steps": 3}
  alone(root, tmp_path / "one", SPLIT | steps)
  slices = {"mesh.dcn_data": 2, "mesh.data": 1, "mesh.fsdp": 2}
  finished(start(root, tmp_path / "two", slices | steps))
  assert_close_runs(tmp_path / "one", tmp_path / "two")


@pytest.mark.nightly
def test_a_hung_peer_is_noticed(root, tmp_path):
  changes = SPLIT | {"steps": 4000, "ckpt.every": 1000, "guard.hang_after": 5.0}
  processes = start(root, tmp_path / "run", changes)
  wait_for(tmp_path / "run", 5, processes)
  processes[1].send_signal(signal.SIGSTOP)
  began = time.monotonic()
  said = processes[0].communicate(timeout=120)[0]
  took = time.monotonic() - began
  processes[1].kill()
  processes[1].communicate()
  assert processes[0].returncode == guard.HUNG and took < 40, (took, said)
  assert "no progress in 5 s" in said and "a peer hangs" in said
