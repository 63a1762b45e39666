"""Notebooks: their two forms agree and hold no output; each runs from top to bottom."""

import importlib.util
import os
import pathlib
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.py"))

jupytext = pytest.importorskip("jupytext", reason="pip install '.[notebooks]'")
nbclient = pytest.importorskip("nbclient", reason="pip install '.[notebooks]'")


def cells(path: pathlib.Path) -> list[tuple[str, str]]:
  return [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]


@pytest.mark.parametrize("name", NAMES)
def test_the_two_forms_agree_and_hold_no_output(name):
  script, notebook = (ROOT / "notebooks" / f"{name}.{end}" for end in ("py", "ipynb"))
  assert cells(script) == cells(notebook), "run: jupytext --update --to ipynb notebooks/*.py"
  assert not any(cell.get("outputs") for cell in jupytext.read(notebook).cells)
  assert cells(script)[1][1].startswith("# In Colab: clones and installs.")


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> pathlib.Path:
  """A quickstart's run: the one that CI has just made, or a tiny model with random weights."""
  if os.environ.get("VILAU_RUN"):
    return pathlib.Path(os.environ["VILAU_RUN"]).absolute()
  import quickstart_model

  from vilau_jax.cli import main

  root = tmp_path_factory.mktemp("run")
  quickstart_model.write_data(root / "data")
  quickstart_model.write_model(root / "finetune", root / "data", preset="quickstart")
  part = "emoji/train_scenes"
  flags = [
    f"--model={root}/finetune",
    f"--records={root}/data/{part}",
    f"--output={root}/codes/{part}",
  ]
  assert main.run(["tokenize", *flags]) == 0
  return root


@pytest.mark.nightly
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_from_top_to_bottom(name, run, tmp_path, monkeypatch):
  if "plan" in name and importlib.util.find_spec("libtpu") is None:
    pytest.skip("needs libtpu, of the extra plan")
  given = dict(
    VILAU_RUN=run, VILAU_MODEL=run / "finetune", VILAU_WORK=tmp_path, VILAU_STEPS=16,
    VILAU_RELEASE=ROOT / "tests" / "golden" / "a" / "checkpoint",
    VILAU_IMPORTED=tmp_path / "imported", JAX_PLATFORMS="cpu",
  )  # fmt: skip
  for key, value in given.items():
    monkeypatch.setenv(key, str(value))
  monkeypatch.delenv("XLA_FLAGS")  # those of conftest.py: a notebook compiles as users do
  notebook = jupytext.read(ROOT / "notebooks" / f"{name}.ipynb")
  began = time.monotonic()
  where = {"metadata": {"path": str(ROOT / "notebooks")}}
  nbclient.NotebookClient(notebook, timeout=900, resources=where).execute()
  print(f"{name}: {time.monotonic() - began:.0f} s")
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert any("assert" in cell.source for cell in code)
