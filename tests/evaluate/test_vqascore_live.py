"""VQAScore by t2v-metrics 3.0 itself, its CLIP-FlanT5 tiny and of random weights; `bash
launch/live.sh` installs it. The 11 GB that GenAI-Bench is scored with have not run here."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import benchmark_files
import golden_model
import numpy as np
import pytest

import vilau_jax
from vilau_jax.evaluate import runner, vqascore
from vilau_jax.evaluate.benchmarks import genai_bench
from vilau_jax.evaluate.task import Options

PACKAGE = pathlib.Path(sys.prefix) / "t2v"


def with_ffmpeg(folder: pathlib.Path) -> str:
  """A PATH with some ffmpeg: the package asks for its version, and CLIP-FlanT5 never calls it."""
  if shutil.which("ffmpeg") is None:
    (folder / "ffmpeg").write_text("#!/bin/sh\n")
    (folder / "ffmpeg").chmod(0o755)
  return f"{os.environ['PATH']}{os.pathsep}{folder}"


def test_the_official_package_scores_our_drawings(tmp_path):
  if not (PACKAGE / "t2v_metrics").is_dir():
    pytest.skip("t2v-metrics is not installed; launch/live.sh does")
  benchmark_files.genai_bench(tmp_path / "data")
  model = vilau_jax.VilaU.from_loaded(golden_model.tiny())
  out, folder = tmp_path / "out", tmp_path / "model"
  folder.mkdir()

  def run(**options):
    return runner.run("genai-bench", data=tmp_path / "data", output=out, model=model,
                      options=Options(**options))  # fmt: skip

  assert f"python {vqascore.__file__} {out}" in run()["partial"]
  typed = [sys.executable, pathlib.Path(__file__).with_name("tiny_t2v.py"), vqascore.__file__, out,
           folder]  # fmt: skip
  environment = dict(os.environ, PYTHONPATH=str(PACKAGE), PATH=with_ffmpeg(tmp_path),
                     HF_HUB_OFFLINE="1")  # fmt: skip
  done = subprocess.run(typed, env=environment, cwd=tmp_path, capture_output=True, text=True,
                        timeout=300)  # fmt: skip
  assert done.returncode == 0, done.stderr[-3000:]
  scores = json.loads((out / vqascore.FILE).read_text())
  assert list(scores) == [str(i) for i in range(6)] and len(set(scores.values())) > 1
  seen = np.load(folder / "seen.npz")
  want = [genai_bench.geometric_mean(*pair) for pair in zip(seen["logits"], seen["labels"])]
  np.testing.assert_allclose(list(scores.values()), want, rtol=1e-5)
  result = run(external_scores=str(out / vqascore.FILE))
  assert result["partial"] is None
  assert result["metrics"]["all"] == pytest.approx(np.mean(list(scores.values())), rel=1e-12)
