"""`vilau figures`: what a run's folder has is in the pictures, what it lacks is said."""

import json

import matplotlib.colors
import numpy as np
import PIL.Image

from vilau_jax.cli import main as cli
from vilau_jax.data import media
from vilau_jax.evaluate import report_charts
from vilau_jax.evaluate.charts import COLOURS
from vilau_jax.evaluate.parts import Parts

RED, BLUE, GREEN = (250, 3, 3), (3, 3, 250), (3, 250, 3)


def plain(colour) -> np.ndarray:
  return np.full((12, 12, 3), colour, np.uint8)


def amount(path, colour) -> int:
  with PIL.Image.open(path) as image:
    return int((np.abs(np.asarray(image.convert("RGB")).astype(int) - colour) < 3).all(-1).sum())


def rgb(colour: str) -> list[int]:
  return [round(255 * c) for c in matplotlib.colors.to_rgb(colour)]


def train(workdir, **losses) -> None:
  workdir.mkdir(parents=True)
  lines = [{"step": s, **{k: v / s for k, v in losses.items()}} for s in range(10, 400, 10)]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (workdir / "metrics.jsonl").write_text(text + '{"step": 40, "lo')  # still being written


def evaluate(run) -> None:
  parts = Parts(run / "parts", {"seed": 0}, say=lambda line: None)
  images = {f"{name}{end}": np.stack([plain(c)] * 2) for end, c in (("", RED), ("_one", BLUE))
            for name in ("scenes", "easy_vqa")}  # fmt: skip
  arrays = {n: images[n] for n in ("scenes", "easy_vqa")}
  arrays |= {
    f"{n}_by_depth": np.stack([images[f"{n}_one"], images[n]], 1) for n in ("scenes", "easy_vqa")
  }
  parts.get("pictures", lambda: ({"psnr_by_depth": {"scenes": [9.0, 60.0]}}, arrays))
  table = dict(table=[[3, 1, 0], [0, 4, 0]], rows=["fox", "owl"], columns=["fox", "owl", "nothing"])
  confusion = {"objects": table, "counts": table | dict(table=[[1, 1, 0], [1, 1, 0]])}
  parts.get("drawings", lambda: ({"confusion": confusion}, {}))


def figures(capsys, run, output) -> tuple[int, str]:
  code = cli.run(["figures", f"--run={run}", f"--output={output}"])
  said = capsys.readouterr()
  return code, said.out + said.err


def test_a_whole_run(tmp_path, capsys):
  run, out = tmp_path / "run", tmp_path / "out"
  train(run / "lm", loss=9.0, loss_text=2.0, loss_image=5.0)
  train(run / "tower", loss_pixel=1.0)
  for step, colour in ((100, GREEN), (400, RED)):
    media.write_image(plain(colour), run / "tower" / "samples" / f"{step:06}.png")
  evaluate(run)
  code, said = figures(capsys, run, out)
  assert code == 0 and "no samples of language model" in said
  names = [line.rpartition("/")[2] for line in said.splitlines() if not line.startswith("  note")]
  assert names == [
    "losses_tower.png", "losses_language_model.png", "samples_tower.png", "reconstructions.png",
    "confusion_objects.png", "confusion_counts.png",
  ]  # fmt: skip
  assert sorted(p.name for p in out.iterdir()) == sorted(names)
  curves = [amount(out / "losses_language_model.png", rgb(c)) > 200 for c in COLOURS[:3]]
  assert curves == [True, True, False]  # text and image; the total is their sum
  green, red = (amount(out / "samples_tower.png", c) for c in (GREEN, RED))
  assert green > 10_000 and 0.9 < green / red < 1.1
  red, blue = (amount(out / "reconstructions.png", c) for c in (RED, BLUE))
  assert blue > 10_000 and 1.9 < red / blue < 2.1  # original, first code, both codes
  sure, even = (amount(out / f"confusion_{n}.png", [88, 134, 219]) for n in ("objects", "counts"))
  assert sure > 10_000 and even == 0  # a row of one kind is dark, of two it is not


def test_a_workdir_by_itself(tmp_path, capsys):
  train(tmp_path / "own", loss_text=2.0)
  code, said = figures(capsys, tmp_path / "own", tmp_path / "out")
  assert code == 0 and [p.name for p in (tmp_path / "out").iterdir()] == ["losses_own.png"]
  for what in ("samples of own", "reconstructions", "confusion tables"):
    assert f"note: no {what}:" in said


def test_what_cannot_be_drawn_is_explained(tmp_path, capsys):
  for run, words in ((tmp_path, "has nothing to draw"), (tmp_path / "no", "no run's folder")):
    code, said = figures(capsys, run, tmp_path / "out")
    assert code == 2 and words in said and not (tmp_path / "out").exists()
  assert cli.run(["figures", f"--run={tmp_path}", "--output="]) == 2
  assert "--output=DIR is missing" in capsys.readouterr().err


def test_losses_without_a_logarithm_are_drawn_too(tmp_path, capsys):
  train(tmp_path / "own", loss_generator=-1.0, loss_pixel=1.0)
  assert figures(capsys, tmp_path / "own", tmp_path / "out")[0] == 0
  assert all(amount(tmp_path / "out" / "losses_own.png", rgb(c)) > 200 for c in COLOURS[:2])


def test_bad_files_leave_the_others(tmp_path, capsys, caplog):
  run, out = tmp_path / "run", tmp_path / "out"
  train(run / "tower", loss_pixel=1.0)
  with (run / "tower" / "metrics.jsonl").open("a") as f:
    f.write('\n[1, 2]\n{"step": 50, "loss_pixel": null}\n{"loss_pixel": 1.0}\n')
  samples = run / "tower" / "samples"
  media.write_image(plain(GREEN), samples / "000100.png")
  media.write_image(plain(RED), samples / "best.png")
  (samples / "000200.png").write_bytes((samples / "000100.png").read_bytes()[:40])
  evaluate(run)
  (run / "parts" / "pictures.npz").write_bytes(b"junk")
  code, said = figures(capsys, run, out)
  assert code == 0 and "no reconstructions" in said
  assert "pictures.npz" in caplog.text and "000200.png" in caplog.text
  assert amount(out / "losses_tower.png", rgb(COLOURS[0])) > 200
  assert amount(out / "samples_tower.png", GREEN) > 10_000
  assert amount(out / "samples_tower.png", RED) == 0
  assert (out / "confusion_counts.png").exists()


def test_names_of_rows_are_not_cut(tmp_path):
  report_charts.pictures(tmp_path / "a.png", "Samples", {"step 1234567": [plain(RED)]}, cell=3.0)
  with PIL.Image.open(tmp_path / "a.png") as image:
    assert (np.asarray(image.convert("RGB"))[:, :4] == 255).all()


def test_titles_say_what_is_counted(tmp_path, capsys, monkeypatch):
  titles = {}
  monkeypatch.setattr(report_charts, "table", lambda path, title, *_, **__: titles.update(
    {path.stem: title}))  # fmt: skip
  evaluate(tmp_path / "run")
  assert figures(capsys, tmp_path / "run", tmp_path / "out")[0] == 0
  assert titles["confusion_objects"].endswith("prompts of one kind: 8 objects in them")
  assert titles["confusion_counts"].endswith("prompts of one kind: 4 drawings")
