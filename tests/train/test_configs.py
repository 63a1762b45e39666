"""Every file in configs/ builds, and its step is traced for two steps without a single weight."""

import functools
import importlib.util
import pathlib
import re

import jax
import pytest
from ml_collections import ConfigDict

from vilau_jax import sharding
from vilau_jax.train import defaults, samples, step
from vilau_jax.train.experiment import CHANGEABLE, check_same, jsonable

FOLDER = pathlib.Path(__file__).parents[2] / "configs"
FILES = sorted(FOLDER.glob("*.py"))
ARGS = {"quickstart": ("", "smoke", "long"), "tower_recipes": ("c0", "c1", "c2", "c3", "c4")}
CASES = [
  (f, arg) for f in FILES for arg in next((ARGS[k] for k in ARGS if f.stem.startswith(k)), ("",))
]
# One of each kind in every run; the others are traced with the longer proofs.
OFTEN = ("quickstart_", "tower_256", "pretrain_7b_256", "lora_7b", "generation_1b3_unified")
TRACED = [
  (f, arg) if f.stem.startswith(OFTEN) and not arg else pytest.param(f, arg, marks=pytest.mark.slow)
  for f, arg in CASES
]


def load(file, arg=""):
  spec = importlib.util.spec_from_file_location(file.stem, file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config(arg) if arg else module.get_config()
  return ConfigDict(config.copy_and_resolve_references()).lock()


@pytest.mark.parametrize("file, arg", TRACED, ids=lambda x: getattr(x, "stem", x))
def test_two_steps_in_the_abstract(file, arg):
  config = load(file, arg)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  model = step.planned_model(config)
  stage = step.make_stage(config, model)
  state, frozen, batch, key = step.abstract_arguments(config, model, stage, mesh)
  frozen = stage.compressed(frozen)
  moved, metrics = jax.eval_shape(stage.step, state, frozen, batch, key)
  again, _ = jax.eval_shape(stage.step, moved, frozen, batch, key)
  assert jax.tree.structure(state) == jax.tree.structure(again)
  shapes = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, again)
  assert all(jax.tree.leaves(shapes))
  assert metrics["loss"].shape == ()


@pytest.mark.parametrize("file, arg", CASES, ids=lambda x: getattr(x, "stem", x))
def test_a_run_may_draw_what_it_wants_to_show(file, arg):
  samples.check(load(file, arg))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_the_command_in_the_header_names_fields_that_exist(file):
  for line in re.findall(r"^vilau train (?:.*\\\n)*.*$", load_docstring(file), re.MULTILINE):
    typed = line.replace("\\\n", " ").split()[2:]
    path, _, arg = typed[0].removeprefix("--config=").partition(":")
    assert FOLDER.parent / path == file
    config = ConfigDict(load(file, arg).to_dict())
    for flag in typed[1:]:
      name, _, value = flag.partition("=")
      if name != "--workdir":
        *parents, leaf = name.removeprefix("--config.").split(".")
        at = functools.reduce(lambda tree, key: tree[key], parents, config)
        assert leaf in at and value, f"{flag}: no such field"


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_the_header_says_how_to_run_it(file):
  header = load_docstring(file)
  argument = r":\w+" if file.stem == "tower_recipes" else ""
  assert re.search(rf"vilau train --config=configs/{file.name}{argument} --workdir=", header)
  assert re.search(r"cores|chips|H100", header)


PLANS = sorted((FOLDER / "plans").glob("*.train.*.txt"))


@pytest.mark.parametrize("plan", PLANS, ids=lambda f: f.stem)
def test_the_header_has_the_figures_of_the_plan(plan):
  """configs/plans/NAME.train.MACHINE.txt, whose second line is `vilau plan`'s summary."""
  header = load_docstring(FOLDER / f"{plan.name.split('.')[0]}.py")
  assert plan.read_text().splitlines()[1] in " ".join(header.split())


@pytest.mark.parametrize("plan", sorted((FOLDER / "plans").glob("*.txt")), ids=lambda p: p.stem)
def test_the_header_says_what_the_stored_plan_does(plan):
  """The first two lines of a plan are its command and its headline."""
  command, headline = plan.read_text().splitlines()[:2]
  name = re.search(r"--config=configs/(\w+)\.py", command)[1]
  header = " ".join(load_docstring(FOLDER / f"{name}.py").split())
  if "--workload=train" in command:
    assert headline in header
  else:
    topology, memory = re.match(r"(\S+): (.*?)( a device)?, ", headline).group(1, 2)
    assert topology in header and memory in header


def load_docstring(file):
  spec = importlib.util.spec_from_file_location(file.stem, file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.__doc__


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_config_has_exactly_the_fields_of_its_stage(file):
  config = load(file)
  defaults.check(config)
  other = ConfigDict(config.to_dict())
  other.optim.peak_lrr = 1.0
  del other.data.threads
  message = r"'optim.peak_lrr' \(did you mean 'optim.peak_lr'\?\); missing field 'data.threads'"
  with pytest.raises(ValueError, match=message):
    defaults.check(other)


def test_an_unknown_argument_is_named():
  with pytest.raises(
    ValueError, match="unknown config argument 'smok'; known: '', 'smoke', 'long'"
  ):
    load(FOLDER / "quickstart_tower.py", "smok")


def test_the_same_config_is_the_same_after_json_and_length_may_change():
  config = load(FOLDER / "quickstart_lm.py")
  stored = {"experiment": jsonable(config)}
  longer = ConfigDict(config.to_dict())
  longer.steps, longer.ckpt.every = 2, 1
  check_same(stored, longer, FOLDER)
  assert set(CHANGEABLE) >= {"steps", "log", "ckpt"}
  rate, longer.optim.peak_lr = config.optim.peak_lr, 1.0
  with pytest.raises(ValueError, match=rf"optim.peak_lr: {rate} there, 1.0 now"):
    check_same(stored, longer, FOLDER)
