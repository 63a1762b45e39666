"""MJHQ-30K, the guidance sweep, GenAI-Bench and VBench on a few prompts, with the tiny model."""

import functools
import json
import pathlib
import sys
import tempfile

import benchmark_files
import golden_model
import narrow_inception
import numpy as np
import PIL.Image
import pytest

import vilau_jax
from vilau_jax.data import media
from vilau_jax.evaluate import fid, runner, vqascore
from vilau_jax.evaluate.benchmarks import vbench
from vilau_jax.evaluate.task import Options
from vilau_jax.models.inception import load_inception


@functools.cache
def model() -> vilau_jax.VilaU:
  return vilau_jax.VilaU.from_loaded(golden_model.tiny())


@functools.cache
def weights() -> str:
  root = pathlib.Path(tempfile.mkdtemp(prefix="vilau_inception_"))
  return narrow_inception.write(root / "inception.safetensors")


@functools.cache
def mjhq() -> pathlib.Path:
  root = pathlib.Path(tempfile.mkdtemp(prefix="vilau_mjhq_"))
  rows = {f"{i:02x}": {"category": ("animals", "food")[i % 2], "prompt": f"a thing {i}"}
          for i in range(4)}  # fmt: skip
  benchmark_files.dump(root / "meta_data.json", rows)
  for name, row in rows.items():
    benchmark_files.picture(root / row["category"] / f"{name}.jpg", (64, 48))
  return root


def run(name, data, output, **options):
  options = Options(**{"batch_size": 4} | options)
  return runner.run(name, data=data, output=output, model=model(), options=options)


def test_mjhq(tmp_path):
  result = run("mjhq-30k", mjhq(), tmp_path, inception=weights(), seed=5)
  assert result["protocol"] == "clean" and set(result["categories"]["category"]) == {
    "animals", "food",
  }  # fmt: skip
  rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").open()]
  assert [row["seed"] for row in rows] == [5, 6, 7, 8]
  drawn = np.stack([np.asarray(PIL.Image.open(tmp_path / row["file"])) for row in rows])
  want = model().generate_images([row["prompt"] for row in rows], seed=5)
  np.testing.assert_array_equal(drawn, want)
  run("mjhq-30k", mjhq(), tmp_path / "one", seed=5, batch_size=1)
  for row in rows:  # batches change nothing
    assert (tmp_path / "one" / row["file"]).read_bytes() == (tmp_path / row["file"]).read_bytes()
  true = [media.open_image(mjhq() / ("animals", "food")[i % 2] / f"{i:02x}.jpg") for i in range(4)]
  network, sides = load_inception(weights()), []
  for pictures in (true, drawn):
    sides.append(fid.Statistics())
    sides[-1].add(fid.features(network, map(np.asarray, pictures), "clean"))
  assert result["metrics"]["fid"] == pytest.approx(fid.fid(*sides), rel=1e-6)
  # Category FIDs are of their own pictures, and features are read again the second time.
  before = {p: p.stat().st_mtime_ns for p in (tmp_path / "features").iterdir()}
  again = run("mjhq-30k", mjhq(), tmp_path, inception=weights(), seed=5)
  assert again["metrics"] == result["metrics"]
  assert {p: p.stat().st_mtime_ns for p in (tmp_path / "features").iterdir()} == before


def test_mjhq_without_weights_is_an_export(tmp_path):
  result = run("mjhq-30k", mjhq(), tmp_path)
  assert result["metrics"] == {} and "no FID: give --inception" in result["partial"]
  assert len(list((tmp_path / "images").rglob("*.png"))) == 4
  with pytest.raises(ValueError, match="no reference picture animals/00"):
    run("mjhq-30k", mjhq(), tmp_path, inception=weights(), reference=str(tmp_path))


def test_drawings_are_not_scored_from_files_of_answers(tmp_path):
  (tmp_path / "answers.jsonl").write_text('{"id": "00", "answer": "x"}\n')
  with pytest.raises(ValueError, match="mjhq-30k can't be scored from a file of answers"):
    runner.run("mjhq-30k", data=mjhq(), output=tmp_path / "o",
               predictions=tmp_path / "answers.jsonl")  # fmt: skip


def test_guidance_sweep(tmp_path):
  result = run("cfg-sweep", mjhq(), tmp_path, inception=weights(), cfg_scales=(1.0, 2e3), limit=8)
  assert set(result["metrics"]) == {"fid_cfg_1", "fid_cfg_2000"}
  rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").open()]
  assert {row["settings"]["cfg_scale"] for row in rows} == {1.0, 2e3}
  assert rows[0]["seed"] == rows[4]["seed"] and rows[0]["file"] == "images/cfg-1/animals/00.png"
  drawn = np.stack([np.asarray(PIL.Image.open(tmp_path / row["file"])) for row in rows])
  prompts = [row["prompt"] for row in rows[4:]]  # so little does the tiny model listen to them
  want = model().generate_images(prompts, seed=[row["seed"] for row in rows[4:]], cfg_scale=2e3)
  np.testing.assert_array_equal(drawn[4:], want)
  assert (drawn[4:] != drawn[:4]).mean() > 0.5
  with pytest.raises(ValueError, match="a scale twice"):
    run("cfg-sweep", mjhq(), tmp_path / "x", cfg_scales=(1.0, 1.0))


@functools.cache
def genai() -> pathlib.Path:
  root = pathlib.Path(tempfile.mkdtemp(prefix="vilau_genai_"))
  benchmark_files.genai_bench(root)
  return root


def test_genai_bench(tmp_path):
  result = run("genai-bench", genai(), tmp_path)
  assert "environment of t2v-metrics 3.0" in result["partial"]
  files = sorted(p.name for p in (tmp_path / "images" / "vilau_jax").iterdir())
  assert files == [f"{i:05d}.jpeg" for i in range(6)]
  with PIL.Image.open(tmp_path / "images" / "vilau_jax" / files[0]) as image:
    assert image.format == "JPEG" and image.width == model().config.tower.image_size
  scores = tmp_path / "scores.json.txt"
  scores.write_text(json.dumps({str(i): s for i, s in enumerate((0.9, 0.8, 0.7, 0.6, 0.5, 0.3))}))
  result = run("genai-bench", genai(), tmp_path, external_scores=str(scores))
  metrics = {name: round(value, 2) for name, value in result["metrics"].items()}
  assert result["partial"] is None and metrics["basic"] == 0.75 and metrics["counting"] == 0.5
  assert metrics["advanced"] == 0.4 and metrics["all"] == 0.63
  for content, words in (('{"0": 1, "9": 1}', "unknown prompts"), ('["a"]', "must hold a score")):
    scores.write_text(content)
    with pytest.raises(ValueError, match=words):
      run("genai-bench", genai(), tmp_path, external_scores=str(scores))


# What t2v-metrics 3.0 takes and returns; its own classes run in test_vqascore_live.py.
SCORER = """
import numpy as np, PIL.Image, torch

def list_all_vqascore_models():
  return ["clip-flant5-xxl", "clip-flant5-xl"]

class VQAScore:
  def __init__(self, model, device="cuda", cache_dir="./hf_cache/", **kwargs):
    assert model == "clip-flant5-xxl"
    self.device = device
    assert device == ("cuda" if torch.cuda.is_available() else "cpu")

  def __call__(self, images=None, texts=None, num_frames=8, question_template=None,
               answer_template=None):
    assert torch.is_autocast_enabled(self.device)
    assert question_template.format(texts[0]).startswith('Does this figure show "prompt ')
    assert answer_template == "Yes" and len(images) == len(texts) == 1
    return torch.tensor([[np.asarray(PIL.Image.open(images[0])).mean() / 255]])
"""


@pytest.mark.parity
def test_genai_bench_asks_the_official_package(tmp_path, monkeypatch):
  torch = pytest.importorskip("torch")
  package = tmp_path / "site" / "t2v_metrics"
  package.mkdir(parents=True)
  (package / "__init__.py").write_text(SCORER)
  monkeypatch.syspath_prepend(tmp_path / "site")
  result = run("genai-bench", genai(), tmp_path / "out")
  paths = sorted((tmp_path / "out" / "images" / "vilau_jax").iterdir())
  scores = [np.asarray(PIL.Image.open(path)).mean() / 255 for path in paths]
  assert result["partial"] is None
  assert result["metrics"]["all"] == pytest.approx(np.mean(scores), rel=1e-5)
  # Its scripts keep such tensors.
  torch.save(torch.tensor(scores).reshape(-1, 1, 1), tmp_path / "scores.pt")
  again = run("genai-bench", genai(), tmp_path / "out", external_scores=str(tmp_path / "scores.pt"))
  assert again["metrics"] == pytest.approx(result["metrics"], rel=1e-5)
  # In an environment of its own, killed and run again, and of a version that lacks the scorer.
  file = tmp_path / "out" / vqascore.FILE
  file.write_text('{"0": 0.125}')
  vqascore.main(str(tmp_path / "out"))
  found = json.loads(file.read_text())
  assert list(found) == list("012345")
  assert list(found.values()) == pytest.approx([0.125, *scores[1:]], rel=1e-5)
  monkeypatch.setattr(sys.modules["t2v_metrics"], "list_all_vqascore_models", lambda: ["other"])
  file.unlink()
  with pytest.raises(ValueError, match=r"install t2v-metrics==3\.0"):
    vqascore.main(str(tmp_path / "out"))
  with pytest.raises(ValueError, match=r"no predictions\.jsonl in"):
    vqascore.main(str(tmp_path))


def test_vbench(tmp_path):
  rows = [{"prompt_en": "a person is running", "dimension": ["human_action"]},
          {"prompt_en": "a still road", "dimension": ["temporal_flickering"]}]  # fmt: skip
  benchmark_files.dump(tmp_path / "data" / "VBench_full_info.json", rows)
  options = Options()
  wanted = vbench.Vbench(tmp_path / "data", options).requests()
  assert len(wanted) == 30 and wanted[5].content.file == "videos/a still road-0.mp4"
  assert len({r.content.seed for r in wanted}) == 30
  out = tmp_path / "out"
  result = run("vbench", tmp_path / "data", out, num=1)
  assert "run vbench on" in result["partial"] and result["n"] == 2
  names = sorted(p.name for p in (out / "videos").iterdir())
  assert names == ["a person is running-0.mp4", "a still road-0.mp4"]
  assert vbench.action_of(names[0]) == "running" and vbench.prompt_of(names[1]) == "a still road"
  assert len(media.read_video(out / "videos" / names[0], 2)) == 2
  golden = pathlib.Path(__file__).parent.parent / "golden" / "eval" / "vbench.json"
  case = json.loads(golden.read_text())["cases"][2]
  results = tmp_path / "results"
  for i, (name, value) in enumerate(case["raw"].items()):
    content = {name.replace(" ", "_"): [value, [{"video_path": "x", "video_results": value}]]}
    benchmark_files.dump(results / f"r{i}_eval_results.json", content)
  result = run("vbench", tmp_path / "data", out, num=1, external_scores=str(results))
  assert result["partial"] is None
  assert result["metrics"]["total"] == pytest.approx(100 * case["total"], abs=5e-5)
  (results / "r3_eval_results.json").unlink()
  result = run("vbench", tmp_path / "data", out, num=1, external_scores=str(results))
  assert "no total without them" in result["partial"] and result["metrics"] == {}
  (out / "videos" / "other.gif").write_bytes(b"")
  with pytest.raises(ValueError, match=r"not VBench's \['other.gif'\]"):
    run("vbench", tmp_path / "data", out, num=1)
