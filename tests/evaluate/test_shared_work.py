"""Evaluations on many devices and in several processes, killed and resumed: one and the same."""

import functools
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading

import benchmark_files
import golden_model
import jax
import pytest

import vilau_jax
from vilau_jax.evaluate import runner
from vilau_jax.evaluate.replicas import PerDevice, Replicas
from vilau_jax.evaluate.store import Store
from vilau_jax.evaluate.task import Options, Request

# Draws as process 1 of 2, on one device, and dies by SIGKILL once a picture is there.
KILLED = """
import os, signal, sys
import jax
jax.config.update("jax_default_matmul_precision", "highest")
from vilau_jax.evaluate import runner
from vilau_jax.evaluate.task import Options
assert len(jax.devices()) == 1
runner.CHUNK = 1

def progress(done, total):
  if done:
    os.kill(os.getpid(), signal.SIGKILL)

model, data, output = sys.argv[1:4]
runner.run("mjhq-30k", data=data, output=output, model=model, options=Options(batch_size=1, seed=3),
           process=(1, 2), progress=progress)
"""


@functools.cache
def place() -> pathlib.Path:
  root = pathlib.Path(tempfile.mkdtemp(prefix="vilau_shared_"))
  vilau_jax.VilaU.from_loaded(golden_model.tiny()).save(root / "model")
  rows = {f"{i:02x}": {"category": "food", "prompt": f"a thing {i}"} for i in range(8)}
  benchmark_files.dump(root / "mjhq" / "meta_data.json", rows)
  benchmark_files.gqa(root / "gqa")
  return root


def run(name, output, model=None, process=(0, 1), **options):
  options = Options(**{"batch_size": 1, "seed": 3} | options)
  return runner.run(name, data=place() / name.partition("-")[0], output=output,
                    model=model or place() / "model", options=options, process=process)  # fmt: skip


def files(root: pathlib.Path) -> dict[str, bytes]:
  return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("images/**/*.png"))}


def rows(root: pathlib.Path) -> list[str]:
  found = [line for p in root.glob("predictions*.jsonl") for line in p.read_text().splitlines()]
  return sorted(found)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The pictures that one device draws."""
  root = tmp_path_factory.mktemp("whole")
  model = vilau_jax.load(place() / "model")
  return root, run("mjhq-30k", root, model, batch_size=4), run("gqa", root / "gqa", model)


@pytest.mark.parametrize("count", [2, pytest.param(8, marks=pytest.mark.nightly)])
def test_devices_draw_what_one_draws(count, whole, tmp_path):
  devices, drawn_on = jax.local_devices()[:count], set()
  model = Replicas.load(place() / "model", devices)

  def watched(call, batches):
    def noted(m, batch):
      drawn_on.add(jax.config.jax_default_device)
      return call(m, batch)

    return Replicas.map(model, noted, batches)

  model.map = watched
  found = run("mjhq-30k", tmp_path, model)
  assert drawn_on == set(devices)
  assert files(tmp_path) == files(whole[0]) and len(files(tmp_path)) == 8
  assert rows(tmp_path) == rows(whole[0])
  assert found["data"] == whole[1]["data"] and found["model"]["id"] == whole[1]["model"]["id"]


def test_devices_answer_what_one_answers(whole, tmp_path):
  devices = jax.local_devices()[:2]
  model = Replicas.load(place() / "model", devices)
  found = run("gqa", tmp_path, model)
  assert found["metrics"] == whole[2]["metrics"]
  assert rows(tmp_path) == rows(whole[0] / "gqa")


def test_processes_that_are_killed_and_resumed_draw_what_one_draws(whole, tmp_path):
  environment = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=os.getcwd(), XLA_FLAGS="")
  typed = [sys.executable, "-c", KILLED, place() / "model", place() / "mjhq", tmp_path]
  assert subprocess.run(typed, env=environment, timeout=300).returncode == -signal.SIGKILL
  assert len((tmp_path / "predictions.1.jsonl").read_text().splitlines()) == 1
  with open(tmp_path / "predictions.1.jsonl", "a") as f:
    f.write('{"id": "0')  # as if it had been killed while writing
  model, results = vilau_jax.load(place() / "model"), []
  first = threading.Thread(
    target=lambda: results.append(run("mjhq-30k", tmp_path, model, process=(0, 2)))
  )
  first.start()  # and waits for the other's part
  assert run("mjhq-30k", tmp_path, model, process=(1, 2)) == {
    "benchmark": "mjhq-30k", "predicted": 4,
  }  # fmt: skip
  first.join(timeout=300)
  assert results[0]["n"] == 8 and results[0]["missing"] == 0
  assert (tmp_path / "scores.json").exists()
  assert rows(tmp_path) == rows(whole[0]) and files(tmp_path) == files(whole[0])
  again = run("mjhq-30k", tmp_path, model)  # alone: all is there, whoever predicted it
  assert again["metrics"] == results[0]["metrics"] and len(rows(tmp_path)) == 8


def test_a_store_reads_what_others_add(tmp_path):
  first, second = Store(tmp_path, {"a": 1}), Store(tmp_path, {"a": 1}, process=1)
  second.add([Request("x", None)], [{"answer": "\u2028yes"}], {})
  with open(second.path, "a") as f:
    f.write('{"id": "y", "ans')  # another process is at it
  first.refresh()
  assert set(first.rows) == {"x"} and first.rows["x"]["answer"] == "\u2028yes"
  with open(second.path, "a") as f:
    f.write('wer": "no"}\n')
  first.refresh()
  first.refresh()
  assert set(first.rows) == {"x", "y"}
  with open(second.path, "a") as f:
    f.write('{"id": "x", "answer": "no"}\n')
  with pytest.raises(ValueError, match="id x appears twice"):
    first.refresh()


def test_replicas_keep_the_order_and_hand_errors_on():
  replicas = Replicas([nothing(i) for i in range(3)], jax.local_devices()[:3])
  made = PerDevice(object)
  found = replicas.map(lambda model, n: (n, made.get()), range(20))
  assert [n for n, _ in found] == list(range(20)) and len({id(o) for _, o in found}) <= 3

  def fail(model, n):
    if n == 2:
      raise ValueError("record 2 is broken")

  with pytest.raises(ValueError, match="record 2 is broken"):
    replicas.map(fail, range(4))
  assert len(replicas.map(lambda m, n: n, range(9))) == 9  # every device is free again


def nothing(i: int):
  class Model:
    path = str(i)

  return Model()
