"""`vilau bench` on a tiny model: every workload runs and its figures agree with each other."""

import json
import math
import pathlib
import subprocess
import sys

import jax
import pytest

from vilau_jax.bench import model
from vilau_jax.bench.workloads import Bench, Sizes
from vilau_jax.cli import main
from vilau_jax.config import VilaUConfig


@pytest.mark.slow
def test_every_workload_is_timed():
  sizes = Sizes(batch=2, prompt=7, length=32, positions=8)
  result = model.measure(VilaUConfig.from_preset("tiny"), sizes, rounds=3)
  rows = {row["name"]: row for row in result["rows"]}
  assert list(rows) == list(model.NAMES)
  assert rows["prefill"]["unit"] == "positions" and rows["text"]["unit"] == "tokens"
  for name, row in rows.items():
    assert row["ms"] > 0
    assert row["per_s"] * row["ms_per_unit"] == pytest.approx(1000), name
    assert ("gb_per_s" in row) == (name in ("text", "image", "speculative"))
  # Drawing reads the language model once and the depth transformer R times.
  read = {name: rows[name]["gb_per_s"] * rows[name]["ms"] * 1e6 for name in ("text", "image")}
  llm = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128 + 2 * 64) + 64
  head = 2 * (12 * 32 * 32 - 4 * 32 * 32 + 9 * 32 + 2 * 32) + 3 * 32 + 2 * 32 + 32 * 32 + 32
  cache = 2 * 2 * 2 * (7 + 8) * 16
  projector = 32 * 64 + 64 + 64 * 64 + 64
  assert read["text"] == pytest.approx(4 * (llm + 2 * cache + 64 * 516), rel=1e-6)
  assert read["image"] > 4 * (llm + 3 * head * 0.9 + projector)


@pytest.mark.parametrize("stage", ["tower", pytest.param("lm", marks=pytest.mark.slow)])
def test_a_config_s_own_step_is_timed(stage, tmp_path):
  rows, length = dict(tower=(2, 25), lm=(1, 256))[stage]
  path = tmp_path / "step.json"
  run = subprocess.run(  # a process of its own: ml_collections looks for overrides in its arguments
    [sys.executable, "-m", "vilau_jax.cli.main", "bench", "--rounds=2", f"--json_file={path}",
     f"--config=configs/quickstart_{stage}.py:smoke", f"--config.batch_size={rows}",
     "--config.mesh.data=1"],
    cwd=pathlib.Path(__file__).parents[2], capture_output=True, text=True,
  )  # fmt: skip
  assert run.returncode == 0, run.stderr
  assert "s a step" in run.stdout and "tokens/s" in run.stdout
  found = json.loads(path.read_text())
  assert found["tokens_per_s"] * found["step_s"] == pytest.approx(rows * length)
  assert found["step_s"] > 0 and math.isfinite(found["metrics"]["loss"])
  assert found["model_flops"] > 0 and found["mfu"] is None  # nobody knows this CPU's peak


def test_the_command_writes_a_table_and_json(tmp_path, capsys):
  path = tmp_path / "bench.json"
  assert not main.run([
    "bench", "--preset=tiny", "--only=text", "--set=llm.depth=1,llm.tied=true", "--rounds=2",
    "--positions=4", f"--json_file={path}",
  ])  # fmt: skip
  assert "tokens" in capsys.readouterr().out
  written = json.loads(path.read_text())
  assert written["config"]["llm"]["depth"] == 1 and written["config"]["llm"]["tied"]
  assert written["copy_gb_per_s"] > 0
  capsys.readouterr()
  typed = ["bench", "--preset=tiny", "--only=text", "--rounds=1", "--positions=4", "--json"]
  assert not main.run(typed)
  assert json.loads(capsys.readouterr().out)["rows"][0]["name"] == "text"


def test_what_does_not_fit_is_a_row_and_the_rest_is_kept(tmp_path, capsys, monkeypatch):
  path, messages = tmp_path / "bench.json", ["RESOURCE_EXHAUSTED: Out of memory", "INTERNAL: other"]

  def fails(bench):
    raise jax.errors.JaxRuntimeError(messages.pop(0))

  monkeypatch.setattr(Bench, "prefill", fails)
  typed = ["bench", "--preset=tiny", "--only=prefill,text", "--rounds=1", "--positions=4"]
  assert main.run([*typed, f"--json_file={path}"]) == 1
  printed = capsys.readouterr()
  assert "prefill: out of memory" in printed.err and "out of memory" in printed.out
  first, second = json.loads(path.read_text())["rows"]
  assert first == {"name": "prefill", "error": "out of memory"} and second["ms"] > 0
  assert json.loads(path.read_text())["device"].endswith("(cpu, one of 8)")
  typed[2] = "--only=text,prefill"
  with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):  # a fault, and not the memory
    main.run([*typed, f"--json_file={path}"])
  assert [row["name"] for row in json.loads(path.read_text())["rows"]] == ["text"]
  assert main.run([*typed, f"--json_file={tmp_path / 'none' / 'a.json'}"]) == 2
  assert "none/a.json" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("arguments", "said"),
  [
    (["--preset=tiny", "--set=llm.depht=1"], "did you mean 'depth'"),
    (["--preset=tiny", "--set=llm"], "FIELD=VALUE"),
    (["--preset=tiny", "--only=speed"], "unknown workloads"),
    (["--preset=tiny", "--rounds=0"], "--rounds must be at least 1"),
    (["--preset=quickstart", "--only=text"], "llm.vocab_size"),
    (["--preset=rqvae_256", "--only=text"], "needs a llm"),
    ([], "--preset=NAME"),
    (
      ["--config=configs/quickstart_tower.py", "--batch_size=8", "--set=llm.depth=1"],
      "--batch_size, --set would have no effect here",
    ),
  ],
)
def test_bad_input_is_named(arguments, said, capsys):
  assert main.run(["bench", *arguments]) == 2
  assert said in capsys.readouterr().err
