"""Two processes (CPU, Gloo) train what one does."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import experiments
import jax
import numpy as np
import pytest

from vilau_jax import checkpoint
from vilau_jax.train import loop

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
import json, pathlib, sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.config.update("jax_default_matmul_precision", "highest")
address, index, root, workdir, mesh = sys.argv[1:]
jax.distributed.initialize(address, num_processes=2, process_id=int(index))
import experiments
from vilau_jax import checkpoint
from vilau_jax.train import loop
root = pathlib.Path(root)
config = experiments.lm_run(root, root / "tower", "")
config.mesh.update(json.loads(mesh))
config.optim.eps = 1e-3
loop.train(config, workdir)
"""


pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize(
  "mesh", [dict(data=2, fsdp=2), dict(data=1, tensor=2, context=2)], ids=["split rows", "same rows"]
)
def test_two_processes_equal_one(root, tmp_path, mesh):
  config = experiments.lm_run(root, root / "tower", "")
  config.mesh.update(mesh)
  config.optim.eps = 1e-3  # see test_meshes.EPS
  loop.train(config, tmp_path / "one", devices=jax.devices()[:4])
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  paths = [str(ROOT), str(ROOT / "tests/train"), os.environ.get("PYTHONPATH", "")]
  environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", PROGRAM, address, str(i), root, tmp_path / "two", json.dumps(mesh)],
      env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    for i in range(2)
  ]  # fmt: skip
  said = [p.communicate(timeout=600)[0] for p in processes]
  assert [p.returncode for p in processes] == [0, 0], said
  logs = []
  for run in ("one", "two"):
    lines = (tmp_path / run / "metrics.jsonl").read_text().splitlines()
    logs.append([json.loads(line) for line in lines])
  assert len(logs[0]) == len(logs[1]) == 6
  for one, two in zip(*logs):
    for name in ("loss", "loss_text", "loss_image", "grad_norm", "fill"):
      np.testing.assert_allclose(two[name], one[name], rtol=1e-5)
  first, second = (checkpoint.load_model(tmp_path / run).variables for run in ("one", "two"))
  scale = max(np.abs(x).max() for x in jax.tree.leaves(first["params"]))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * scale), second, first
  )
