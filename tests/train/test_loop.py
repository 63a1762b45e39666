"""Whole runs: resumed ones are exact, wrong ones are refused, what they leave loads."""

import json
import os
import signal
import threading
import time

import experiments
import jax
import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict

from vilau_jax import checkpoint
from vilau_jax.config import VilaUConfig
from vilau_jax.metrics import TIMINGS, NonFiniteError
from vilau_jax.train import experiment, loop


def train(config, workdir, profile=None):
  """On one device where the mesh is left alone, else on all eight."""
  alone = config.mesh.data == -1
  return loop.train(config, workdir, profile, devices=jax.devices()[:1] if alone else None)


STEPS = 24  # enough for a signal to arrive in the middle


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def tower_run(root):
  """A finished tower run: (config, workdir)."""
  config, workdir = experiments.tower_run(root), root / "tower"
  config.steps, config.ckpt.every, config.log.samples_every = STEPS, 8, 12
  train(config, workdir, profile=(STEPS - 2, STEPS + 9))
  return config, workdir


@pytest.fixture(scope="module")
def lm_run(root, tower_run):
  """A finished language-model run on that tower's codes."""
  identity = checkpoint.tower_id(checkpoint.load_model(tower_run[1]).variables)
  config, workdir = experiments.lm_run(root, tower_run[1], identity), root / "lm"
  config.steps, config.ckpt.every = STEPS, 8
  train(config, workdir)
  return config, workdir


def lines(workdir):
  return [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]


def kept(line):
  return {k: v for k, v in line.items() if k not in TIMINGS}


def interrupted(config, workdir, after):
  """Runs until metrics.jsonl shows step `after`, then gets SIGTERM."""

  def watch():
    file = workdir / "metrics.jsonl"
    while not (file.exists() and f'"step": {after},' in file.read_text()):
      time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=watch, daemon=True).start()
  return train(config, workdir)


def assert_same_run(one, other):
  assert [kept(x) for x in lines(one)] == [kept(x) for x in lines(other)]
  first, second = (checkpoint.load_model(path).variables for path in (one, other))
  jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_tower_run_leaves_a_model_logs_and_samples(tower_run):
  workdir = tower_run[1]
  loaded = checkpoint.load_model(workdir)
  assert set(loaded.variables) == {"params", "quantizer"} and loaded.config.llm is None
  assert loaded.config.tower.text.vocab_size > 0 and loaded.tower_tokenizer_path
  assert [x["step"] for x in lines(workdir)] == list(range(1, STEPS + 1))
  assert {"loss", "loss_contrastive", "perplexity/3", "restarted/1", "psnr"} <= set(
    lines(workdir)[0]
  )
  assert {"usage/3", "seconds_per_step", "images_per_s", "data_wait", "goodput"} <= set(
    lines(workdir)[-1]
  )
  (trace,) = (workdir / "profile").rglob("*.xplane.pb")  # written though the run ended inside
  assert trace.stat().st_size > 10_000 and b"train" in trace.read_bytes()
  assert sorted(p.name for p in (workdir / "samples").iterdir()) == ["000012.png", "000024.png"]
  assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["16", "24"]


BOTH_MESHES = pytest.mark.parametrize(
  "mesh",
  [dict(data=-1), pytest.param(dict(data=2, fsdp=2, tensor=2), marks=pytest.mark.nightly)],
  ids=str,
)


@BOTH_MESHES
def test_a_stopped_tower_run_goes_on_exactly(tower_run, tmp_path, mesh):
  config = ConfigDict(tower_run[0].to_dict())
  config.mesh.update(mesh)
  config.log.samples_every = 0
  whole = tower_run[1]
  if mesh != dict(data=-1):
    train(config, tmp_path / "whole")
    whole = tmp_path / "whole"
  config.ckpt.every = 100
  stopped = interrupted(config, tmp_path / "cut", after=2)
  assert not stopped["finished"] and 2 <= stopped["step"] < STEPS
  assert train(config, tmp_path / "cut")["finished"]
  assert_same_run(whole, tmp_path / "cut")


@pytest.mark.parametrize("stage", ["tower_run", "lm_run"])
def test_processes_that_read_ahead_change_nothing(stage, request, tmp_path):
  config, workdir = request.getfixturevalue(stage)
  other = ConfigDict(config.to_dict())
  other.data.workers = 2
  train(other, tmp_path / "run")
  assert [kept(x) for x in lines(tmp_path / "run")] == [kept(x) for x in lines(workdir)]


def test_drawings_that_cannot_be_made_are_refused_at_once(lm_run, tmp_path):
  config = ConfigDict(lm_run[0].to_dict())
  config.log.samples_every = 4
  with pytest.raises(ValueError, match=r"log\.samples_every is set, but log\.prompts is empty"):
    train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


@BOTH_MESHES
def test_a_stopped_lm_run_goes_on_exactly(lm_run, tmp_path, mesh):
  config = ConfigDict(lm_run[0].to_dict())
  config.mesh.update(mesh)
  whole = lm_run[1]
  if mesh != dict(data=-1):
    train(config, tmp_path / "whole")
    whole = tmp_path / "whole"
  config.ckpt.every = 100
  stopped = interrupted(config, tmp_path / "cut", after=2)
  assert not stopped["finished"]
  assert train(config, tmp_path / "cut")["finished"]
  assert_same_run(whole, tmp_path / "cut")


def test_an_lm_run_carries_its_tower_and_loads_whole(tower_run, lm_run):
  tower = checkpoint.load_model(tower_run[1])
  loaded = checkpoint.load_model(lm_run[1])
  assert set(loaded.variables["params"]) == {"tower", "llm", "projector", "depth"}
  jax.tree.map(
    np.testing.assert_array_equal,
    loaded.variables["params"]["tower"],
    tower.variables["params"]["tower"],
  )
  assert loaded.config.tower == tower.config.tower
  assert loaded.tokenizer_path and loaded.tower_tokenizer_path
  assert {"loss_text", "loss_image", "loss_code/3", "fill"} <= set(lines(lm_run[1])[0])
  step = lm_run[1] / "checkpoints" / "24"
  assert {p.name for p in step.iterdir()} >= {"params", "opt"}


@pytest.mark.slow
def test_fine_tuning_starts_from_the_whole_model_and_keeps_the_frozen(lm_run, tmp_path):
  config = ConfigDict(lm_run[0].to_dict())
  config.init_from = dict(whole=str(lm_run[1]))
  config.optim.freeze = ("llm", "projector")
  config.steps = 2
  train(config, tmp_path / "tuned")
  before, after = (
    checkpoint.load_model(p).variables["params"] for p in (lm_run[1], tmp_path / "tuned")
  )
  for part in ("llm", "projector", "tower"):
    jax.tree.map(np.testing.assert_array_equal, before[part], after[part])
  moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before["depth"], after["depth"])
  assert min(jax.tree.leaves(moved["classifier"])) > 0
  assert train(config, tmp_path / "tuned")["step"] == 2


@pytest.mark.slow
def test_a_tower_can_start_from_parts_of_another(tower_run, tmp_path):
  config = ConfigDict(tower_run[0].to_dict())
  config.init_from = dict(decoder=str(tower_run[1]), text=str(tower_run[1]))
  config.seed, config.steps, config.optim.peak_lr, config.optim.ema = 5, 1, 0.0, 0.5
  config.log.samples_every = 0
  config.optim.freeze = ("tower/text",)
  train(config, tmp_path / "run")
  before, after = (checkpoint.load_model(p).variables["params"]["tower"]
                   for p in (tower_run[1], tmp_path / "run"))  # fmt: skip
  for part in ("decoder", "post_quant", "text"):
    jax.tree.map(np.testing.assert_array_equal, before[part], after[part])
  assert not np.array_equal(before["vision"]["embed"]["kernel"], after["vision"]["embed"]["kernel"])
  config.init_from = dict(llm=str(tower_run[1]))
  with pytest.raises(ValueError, match=r"init_from\.llm: stage 'tower' has no such part"):
    train(config, tmp_path / "run2")


@pytest.mark.slow
def test_code_scale_can_be_measured(lm_run, tmp_path):
  config = ConfigDict(lm_run[0].to_dict())
  config.code_scale, config.steps = "auto", 1
  train(config, tmp_path / "run")
  scale = checkpoint.load_model(tmp_path / "run").config.code_scale
  assert scale != 1.0 and 1e-3 < scale < 1e3
  assert train(config, tmp_path / "run")["finished"]


def changed(config, **values):
  config = ConfigDict(config.to_dict())
  with config.unlocked():
    for key, value in values.items():
      config[key] = value
  return config


def test_a_workdir_of_another_experiment_is_refused(tower_run, lm_run):
  config, workdir = tower_run
  with pytest.raises(ValueError, match=r"another experiment:\n  seed: 0 there, 1 now"):
    train(changed(config, seed=1), workdir)
  other = ConfigDict(config.to_dict())
  other.model.tower.quantizer = dict(entries=16)
  other.ckpt.every = 5
  with pytest.raises(ValueError, match=r"model\.tower\.quantizer\.entries: None there, 16 now"):
    train(other, workdir)
  with pytest.raises(ValueError, match="stage: 'tower' there, 'lm' now"):
    train(lm_run[0], workdir)


def test_a_directory_that_is_no_run_is_left_alone(tower_run, tmp_path):
  # What a start that was killed while it looked through the records leaves is no obstacle.
  (tmp_path / "scanned").mkdir()
  (tmp_path / "tokenizer.model").write_bytes(b"")
  assert not experiment.check(tower_run[0], tmp_path)
  (tmp_path / "holiday.jpg").write_bytes(b"")
  with pytest.raises(ValueError, match="neither empty nor a run"):
    train(tower_run[0], tmp_path)


def test_files_may_move_and_nonsense_is_named(tower_run, tmp_path):
  config, workdir = tower_run
  other = ConfigDict(config.to_dict())
  other.loss.lpips_weights = "elsewhere.npz"
  assert experiment.check(other, workdir)
  for path, value, said in (
    ("ckpt.keep", 0, "ckpt.keep .0. must be at least 1"),
    ("log.every", 0, "log.every must be at least 1, got 0"),
    ("loss.disc.optim", {"peak_lrr": 5.0}, "loss.disc.optim: unknown peak_lrr"),
    ("loss.contrastive", 0.0, "vocab_size is 0"),
  ):
    wrong = ConfigDict(config.to_dict())
    if path == "loss.contrastive":
      wrong.loss.wrong_captions = 0.0
      wrong.model.tower.text = dict(vocab_size=0)
    with wrong.unlocked():
      wrong.update_from_flattened_dict({path: value})
    with pytest.raises(ValueError, match=said):
      train(wrong, tmp_path / path)


def test_a_trace_that_cannot_be_written_stops_nothing(tmp_path, caplog):
  (tmp_path / "profile").write_bytes(b"")
  trace = loop._Trace(epath.Path(tmp_path), (4, 5), 0, 9)
  for step in range(9):
    trace.at(step)
  assert "the trace could not be written" in caplog.text
  loop._Trace(epath.Path(tmp_path), (4, 5), 6, 9).close()
  assert "no trace of step 4: this run goes from 6 to 9" in caplog.text


@pytest.mark.slow
def test_a_longer_schedule_goes_on(tower_run, tmp_path):
  config = changed(tower_run[0], steps=2)
  config.log.samples_every = 0
  train(config, tmp_path / "run")
  config.steps = 3
  assert train(config, tmp_path / "run")["step"] == 3


def test_codes_of_another_tower_or_none_are_refused(root, lm_run, tmp_path):
  config = ConfigDict(lm_run[0].to_dict())
  model = VilaUConfig.from_preset("tiny")
  experiments.write_codes(root / "pictures", tmp_path / "codes", model, "0123456789abcdef")
  config.data.root = str(tmp_path)
  with pytest.raises(ValueError, match=r"made by tower 0123456789abcdef.*vilau tokenize"):
    train(config, tmp_path / "run")
  config.data.root = str(root)
  config.data.mixture = (dict(path="pictures", form="t2i", weight=1.0),)
  with pytest.raises(ValueError, match="no codes: run `vilau tokenize`"):
    train(config, tmp_path / "run2")
  config.data.mixture = (dict(path="code", form="t2i", weight=1.0),)
  with pytest.raises(ValueError, match=r"no records at .*code \(did you mean 'codes'\?\)"):
    train(config, tmp_path / "run3")
  config.data.mixture = (dict(path="codes", weight=1.0),)
  with pytest.raises(ValueError, match="lacks form"):
    train(config, tmp_path / "run4")


def test_an_lm_run_needs_its_tower(lm_run, tower_run, tmp_path):
  config = ConfigDict(lm_run[0].to_dict())
  config.init_from = ConfigDict()
  with pytest.raises(ValueError, match=r"needs init_from\.tower"):
    train(config, tmp_path / "run")
  config = ConfigDict(lm_run[0].to_dict())
  config.model.tower.quantizer = dict(entries=64)
  with pytest.raises(ValueError, match=r"tower\.quantizer\.entries: 32 there, 64 in the preset"):
    train(config, tmp_path / "run2")


@pytest.mark.slow
def test_what_is_not_finite_stops_the_run_before_the_next_checkpoint(tower_run, tmp_path):
  config = ConfigDict(tower_run[0].to_dict())
  config.optim.update(dict(peak_lr=1e30, clip=0.0))
  config.log.update(dict(every=100, samples_every=0))
  config.ckpt.every = 1
  with pytest.raises(NonFiniteError, match=r"step \d: .*loss.* not finite") as caught:
    train(config, tmp_path / "run")
  told = json.loads((tmp_path / "run" / f"nonfinite-{caught.value.step}.json").read_text())
  assert told["step"] == caught.value.step and "loss" in told["parts"]
  assert len(told["rows"]) == config.batch_size
  assert all(set(r) == {"path", "number", "id"} for row in told["rows"] for r in row)
  assert str(tmp_path) in caught.value.__notes__[0]
  for leaf in jax.tree.leaves(checkpoint.load_model(tmp_path / "run").variables["quantizer"]):
    assert np.isfinite(leaf).all()
