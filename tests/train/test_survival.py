"""Runs survive: damage is found and gone round, a workdir has one run, a step may be left out."""

import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vilau_jax import checkpoint, manifest, metrics
from vilau_jax.train import checkpoints, guard, lock
from vilau_jax.train.optim import State

ROOT = pathlib.Path(__file__).parents[2]


def state(step):
  params = {"llm": {"norm": jnp.full((64,), float(step))}}
  return State(jnp.int32(step), params, {"mu": jnp.arange(64.0) * step}, {})


ABSTRACT = jax.eval_shape(lambda: state(0))
ABSTRACT = jax.tree.map(
  lambda x: jax.ShapeDtypeStruct(
    x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
  ),
  ABSTRACT,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A workdir with checkpoints 2, 4 and 6."""
  workdir = tmp_path_factory.mktemp("saved")
  with_steps = checkpoints.TrainingCheckpoints(workdir, every=2, keep=3)
  for step in (2, 4, 6):
    with_steps.save(step, state(step), {"tower_id": None}, {"step": step, "anchor": [step, 9]})
  with_steps.close()
  return workdir


def opened(saved, tmp_path):
  shutil.copytree(saved, tmp_path / "run")
  return tmp_path / "run"


def newest_good(workdir):
  found = checkpoints.TrainingCheckpoints(workdir, every=2, keep=3)
  try:
    step = found.newest_good()
    return step, None if step is None else found.restore(step, ABSTRACT), found.position(step or 0)
  finally:
    found.close()


def flip(file, place=-1):
  data = bytearray(file.read_bytes())
  data[place] ^= 1
  file.write_bytes(data)


def files(directory):
  return sorted(f for f in directory.rglob("*") if f.is_file())


def test_a_checkpoint_carries_checksums_and_the_data_position(saved, tmp_path, capsys):
  workdir = opened(saved, tmp_path)
  stored = json.loads((workdir / "checkpoints/6/manifest.json").read_text())
  assert stored["step"] == 6 and all(len(e["sha256"]) == 64 for e in stored["files"].values())
  step, restored, position = newest_good(workdir)
  assert step == 6 and position == {"step": 6, "anchor": [6, 9]} and not capsys.readouterr().err
  np.testing.assert_array_equal(restored.params["llm"]["norm"], np.full(64, 6.0))


def test_any_flipped_byte_is_found_named_and_gone_round(saved, tmp_path, capsys):
  names = [f.relative_to(saved / "checkpoints/6") for f in files(saved / "checkpoints/6")]
  assert len(names) > 8
  for number, name in enumerate(names):
    workdir = opened(saved, tmp_path / str(number))
    flip(workdir / "checkpoints/6" / name, 0)
    step, restored, _ = newest_good(workdir)
    said = capsys.readouterr().err
    if name.name in manifest.UNSEALED and name.name != manifest.NAME:  # orbax's marks: no harm
      assert step == 6
      np.testing.assert_array_equal(restored.params["llm"]["norm"], np.full(64, 6.0))
      continue
    assert step == 4, name
    assert str(name) in said and "checkpoint 6 is damaged" in said and "checkpoint 4" in said
    np.testing.assert_array_equal(restored.params["llm"]["norm"], np.full(64, 4.0))
    assert (workdir / "damaged" / "6" / name).exists()


def test_truncated_missing_and_mixed_up_files_are_named(saved, tmp_path, capsys):
  workdir = opened(saved, tmp_path)
  largest = max(files(workdir / "checkpoints/6/params"), key=lambda f: f.stat().st_size)
  size = largest.stat().st_size
  largest.write_bytes(largest.read_bytes()[:-7])
  (workdir / "checkpoints/4/config/metadata").unlink()
  assert newest_good(workdir)[0] == 2
  said = capsys.readouterr().err
  assert f"{largest} has {size - 7} bytes, {size} were written" in said
  assert "config/metadata is missing" in said


def test_a_checkpoint_under_another_steps_name_is_refused(saved, tmp_path, capsys):
  workdir = opened(saved, tmp_path)
  shutil.copytree(workdir / "checkpoints/2", workdir / "checkpoints/8")
  assert newest_good(workdir)[0] == 6
  assert "is of step 2, not 8" in capsys.readouterr().err
  shutil.rmtree(workdir / "checkpoints/6/params")  # now parameters of 4 with the optimizer of 6
  shutil.copytree(workdir / "checkpoints/4/params", workdir / "checkpoints/6/params")
  assert newest_good(workdir)[0] == 4


def test_without_a_good_one_the_run_stops_and_says_so(saved, tmp_path):
  workdir = opened(saved, tmp_path)
  for step in (2, 4, 6):
    flip(workdir / f"checkpoints/{step}/manifest.json", 0)
  with pytest.raises(ValueError, match=r"(?s)no checkpoint of .* is good.*begin at step 0"):
    newest_good(workdir)
  assert newest_good(workdir)[0] is None  # they are in damaged/, and the run begins again


def test_half_written_checkpoints_are_cleared_away(saved, tmp_path):
  workdir = opened(saved, tmp_path)
  half = workdir / "checkpoints/8.orbax-checkpoint-tmp"
  shutil.copytree(workdir / "checkpoints/6", half)
  assert newest_good(workdir)[0] == 6
  until = time.monotonic() + 60
  while half.exists():  # a thread of orbax's clears away
    assert time.monotonic() < until
    time.sleep(0.05)


def test_loading_a_model_goes_round_a_damaged_checkpoint(saved, tmp_path, caplog):
  from vilau_jax.config import VilaUConfig

  workdir = opened(saved, tmp_path)
  config = VilaUConfig.from_preset("tiny").to_dict()
  checkpoint.write_json(workdir / "config.json", {"format_version": 1, "model": config})
  flip(max(files(workdir / "checkpoints/6/params"), key=lambda f: f.stat().st_size))
  loaded = checkpoint.load_model(workdir)
  np.testing.assert_array_equal(loaded.variables["params"]["llm"]["norm"], np.full(64, 4.0))
  assert "checkpoint 6" in caplog.text and (workdir / "checkpoints/6").exists()


def test_the_frozen_part_is_sealed_too(tmp_path):
  tree = {"params": {"tower": {"kernel": np.ones((4, 4), np.float32)}}}
  checkpoint.save_frozen(tmp_path, tree, "id")
  leaf = jax.ShapeDtypeStruct((4, 4), jnp.float32, sharding=ABSTRACT.step.sharding)
  abstract = {"params": {"tower": {"kernel": leaf}}}
  checkpoint.load_frozen(tmp_path, abstract)
  flip(max(files(tmp_path / "frozen/variables"), key=lambda f: f.stat().st_size))
  with pytest.raises(ValueError, match="frozen part is damaged"):
    checkpoint.load_frozen(tmp_path, abstract)


def test_checking_can_be_shared_and_be_shallow(tmp_path):
  for name in "abc":
    (tmp_path / name).write_text(name)
  manifest.write(tmp_path, step=1)
  (tmp_path / "b").write_text("x")
  parts = [manifest.problems(tmp_path, part=(i, 2)) for i in range(2)]
  assert [len(p) for p in parts] == [0, 1] and "b is not what was written" in parts[1][0]
  assert manifest.problems(tmp_path, contents=False) == []
  assert manifest.problems(tmp_path, below=("a",)) == []


HOLDER = """
import pathlib, sys, time
from vilau_jax.train import lock
with lock.only_run(pathlib.Path(sys.argv[1])):
  print("held", flush=True)
  time.sleep(60)
"""


def test_a_second_run_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
  path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
  holder = subprocess.Popen(
    [sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True,
    env=os.environ | {"PYTHONPATH": path},
  )  # fmt: skip
  assert holder.stdout.readline() == "held\n"
  with pytest.raises(ValueError, match=f"in use by another run .process {holder.pid} on "):
    with lock.only_run(tmp_path):
      pass
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  began = time.monotonic()
  with lock.only_run(tmp_path):
    pass
  assert time.monotonic() - began < 10  # a foreign lock is watched for 20


def test_a_run_on_another_machine_is_known_by_its_beat(tmp_path):
  file, stop = tmp_path / lock.NAME, threading.Event()

  def elsewhere(beat):
    file.write_text(json.dumps({"machine": "other", "host": "far", "pid": 7, "beat": beat}))

  def beating():
    beat = 0
    while not stop.wait(0.05):
      elsewhere(beat := beat + 1)

  elsewhere(0)
  began = time.monotonic()
  with lock.only_run(tmp_path, beat=0.1, patience=0.4):  # silent: it is dead
    assert time.monotonic() - began >= 0.4
    while json.loads(file.read_text())["beat"] < 3:
      assert time.monotonic() - began < 30
      time.sleep(0.05)
  elsewhere(0)
  thread = threading.Thread(target=beating)
  thread.start()
  try:
    with pytest.raises(ValueError, match=r"in use by another run .process 7 on far"):
      with lock.only_run(tmp_path, beat=0.1, patience=2):
        pass
  finally:
    stop.set()
    thread.join()
  elsewhere(0)
  file.write_text(json.dumps({"machine": "other", "ended": True}))
  began = time.monotonic()
  with lock.only_run(tmp_path, beat=0.1, patience=30):  # it ended well: nothing to wait for
    assert time.monotonic() - began < 15


def test_where_files_cannot_be_locked_beats_must_do(tmp_path, monkeypatch):
  def flock(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")

  monkeypatch.setattr(lock.fcntl, "flock", flock)
  with lock.only_run(tmp_path, beat=0.1, patience=0.4):
    with pytest.raises(ValueError, match="in use by another run"):
      with lock.only_run(tmp_path, beat=0.1, patience=2):
        pass
  with lock.only_run(tmp_path, beat=0.1, patience=30):
    pass


HANGS = """
import time
from vilau_jax.train import guard
dog = guard.Watchdog(2)
for step in range(12):
  dog.at(f"step {step}")
  time.sleep(0.2)
dog.pause()
time.sleep(2.5)
dog.at("step 9")
time.sleep(30)
"""


def test_a_process_that_hangs_ends_with_a_message():
  path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
  began = time.monotonic()
  run = subprocess.run(
    [sys.executable, "-c", HANGS], capture_output=True, text=True, check=False,
    env=os.environ | {"PYTHONPATH": path},
  )  # fmt: skip
  assert run.returncode == guard.HUNG and time.monotonic() - began < 25
  assert "no progress in 2 s (step 9" in run.stderr and "Thread" in run.stderr


def test_a_start_that_hangs_ends_with_a_message():
  path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
  code = "import time\nfrom vilau_jax.train import guard\nguard.Watchdog(0, 0.5)\ntime.sleep(30)"
  run = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=False,
    env=os.environ | {"PYTHONPATH": path},
  )  # fmt: skip
  assert run.returncode == guard.HUNG and "no progress in 0.5 s (the start" in run.stderr


class Poisoned:
  """A stage whose gradients are not finite at some steps."""

  def __init__(self, at):
    self.at = at

  def step(self, state, frozen, batch, key):
    bad = jnp.isin(state.step, jnp.array(self.at))
    params = jax.tree.map(lambda x: x + jnp.where(bad, jnp.nan, 1.0), state.params)
    loss = jnp.where(bad, jnp.inf, 1.0)
    metrics = {"loss": jnp.float32(2), "grad_norm": loss}
    return state.replace(step=state.step + 1, params=params), metrics


def test_a_step_that_is_not_finite_can_be_left_out(tmp_path):
  stage, value = guard.SkipNonFinite(Poisoned((1, 3))), state(0)
  writer = metrics.MetricWriter(tmp_path, start=0, steps=6, every=2, skips=2)
  for step in range(5):
    value, told = jax.jit(stage.step)(value, {}, {}, jax.random.key(0))
    writer.add(step + 1, told)
  writer.check()
  assert int(value.step) == 5 and writer.skipped == 2
  np.testing.assert_array_equal(value.params["llm"]["norm"], np.full(64, 3.0))
  writer.close()
  lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  assert [(x["step"], x["skipped"], x["grad_norm"]) for x in lines] == [
    (2, 1.0, 1.0),
    (4, 2.0, 1.0),
  ]
  writer = metrics.MetricWriter(tmp_path, start=5, steps=9, every=2, skips=2, skipped=2)
  bad = {"loss": jnp.float32(jnp.nan), "skipped": jnp.float32(1)}
  with pytest.raises(metrics.NonFiniteError, match=r"step 6: loss not finite\. 3 steps were left"):
    writer.add(6, bad)
  writer.close()
