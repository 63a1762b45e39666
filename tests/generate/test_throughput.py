"""Files of prompts: every output is the same alone, after a crash, on eight devices and in two
processes; broken records are named and the others go on."""

import functools
import json
import pathlib
import socket
import subprocess
import sys
import time

import golden_model
import jax
import numpy as np
import PIL.Image
import pytest

import vilau_jax
from vilau_jax import sharding
from vilau_jax.cli import main
from vilau_jax.data import media
from vilau_jax.generate import throughput
from vilau_jax.generate.orders import PromptFile
from vilau_jax.generate.sampling import Sampling
from vilau_jax.generate.throughput import Settings

TEXT = Sampling(temperature=0.8, top_k=20)
LINES = ["a dog", "two red cats", "", "the sea", "sea " * 2000, "a fox moves", "a panda"]


@functools.cache
def tiny(devices: int = 1) -> vilau_jax.VilaU:
  mesh = sharding.make_mesh(devices=jax.devices()[:devices]) if devices > 1 else None
  return vilau_jax.VilaU.from_loaded(golden_model.tiny(), mesh)


@pytest.fixture
def prompts(tmp_path) -> pathlib.Path:
  path = tmp_path / "prompts.txt"
  path.write_text("\n".join(LINES) + "\n")
  return path


def run(path, output, kind="image", devices=1, **kwargs):
  model = tiny(devices)
  how = {k: kwargs.pop(k) for k in ("num", "seed", "max_new_tokens", "num_frames") if k in kwargs}
  wish = TEXT if kind == "text" else model.runtime.visual_wish()
  return throughput.run(
    model.runtime, path, output, Settings(kind, sampling=wish, **how), identity=model.identity(),
    **{"batch_size": 2, **kwargs},
  )  # fmt: skip


def files(directory) -> dict[str, bytes]:
  return {
    str(p.relative_to(directory)): p.read_bytes()
    for p in sorted(pathlib.Path(directory).rglob("*.png"))
  }


def rows(directory, name="results") -> list[dict]:
  found = pathlib.Path(directory).glob(f"{name}*.jsonl")
  read = [json.loads(line) for path in found for line in path.read_text().splitlines()]
  return sorted(read, key=lambda row: row.get("output", row["line"]))


def test_outputs_are_those_of_generate_images_and_bad_lines_are_named(prompts, tmp_path):
  summary = run(prompts, tmp_path / "out", num=2, seed=10)
  assert (summary.made, summary.found, summary.rejected) == (10, 0, 2)
  wrong = rows(tmp_path / "out", "rejects")
  assert [row["line"] for row in wrong] == [3, 5]
  assert "the prompt is empty" in wrong[0]["reason"] and "context is 1024" in wrong[1]["reason"]
  good = [i for i in range(7) if i not in (2, 4)]
  assert [row["seed"] for row in rows(tmp_path / "out")] == [
    10 + 2 * i + j for i in good for j in (0, 1)
  ]
  for row in rows(tmp_path / "out"):
    want = tiny().generate_images(row["prompt"], seed=row["seed"])[0]
    np.testing.assert_array_equal(PIL.Image.open(tmp_path / "out" / row["file"]), want)
  assert (tmp_path / "out" / "000001-1.png").exists()


def test_a_run_goes_on_where_it_was_and_gives_the_same_files(prompts, tmp_path):
  run(prompts, tmp_path / "whole")
  run(prompts, tmp_path / "broken")
  want, results = files(tmp_path / "whole"), tmp_path / "broken" / "results.jsonl"
  assert len(want) == 5
  lines = results.read_text().splitlines(keepends=True)
  results.write_text("".join(lines[:3]) + lines[3][:20])  # killed while it wrote a row
  (tmp_path / "broken" / json.loads(lines[0])["file"]).unlink()
  summary = run(prompts, tmp_path / "broken", batch_size=3)
  assert (summary.made, summary.found) == (3, 2)
  assert files(tmp_path / "broken") == want
  assert {r["output"]: r["pixels_sha256"] for r in rows(tmp_path / "broken")} == {
    r["output"]: r["pixels_sha256"] for r in rows(tmp_path / "whole")
  }
  with pytest.raises(ValueError, match="holds another run: seed differ"):
    run(prompts, tmp_path / "whole", seed=1)


class Stop(Exception):
  pass


@pytest.mark.parametrize(("kind", "until", "step"), [("image", 48, 8), ("text", 12, 2)])
def test_nothing_that_is_finished_is_lost_and_an_end_comes_soon(tmp_path, kind, until, step):
  """Neither the chunk that waits for its writer, nor one that is filled in part."""
  path, steps = tmp_path / "p.txt", []
  path.write_text("".join(f"a dog {i}\n" for i in range(5)))

  def seen(summary):
    steps.append((summary.steps, summary.ended))
    if summary.steps == until:  # two outputs, and half of two more
      raise Stop

  how = dict(max_new_tokens=4) if kind == "text" else {}
  with pytest.raises(Stop):
    run(path, tmp_path / "out", kind, on_progress=seen, **how)
  assert len(rows(tmp_path / "out")) == 2
  assert steps == [(s, False) for s in range(0, until + 1, step)]  # every row, every token
  summary = run(path, tmp_path / "out", kind, on_progress=lambda s: steps.append(s.ended), **how)
  assert (summary.made, summary.found) == (3, 2) and steps[-2:] == [False, True]


def test_a_chunk_that_is_filled_in_part_is_kept(tmp_path, monkeypatch):
  path, drawn = tmp_path / "p.txt", throughput.slots.draw
  path.write_text("a dog\na cat\nthe sea\n")

  def broken(*args, **kwargs):
    for i, output in enumerate(drawn(*args, **kwargs)):
      if i == 1:
        raise ValueError("not finite")
      yield output

  monkeypatch.setattr(throughput.slots, "draw", broken)
  with pytest.raises(ValueError, match="not finite"):
    run(path, tmp_path / "out")
  assert len(rows(tmp_path / "out")) == len(files(tmp_path / "out")) == 1


def test_eight_devices_and_two_processes_give_the_same_files(prompts, tmp_path):
  run(prompts, tmp_path / "one")
  run(prompts, tmp_path / "eight", devices=8, batch_size=8)
  assert files(tmp_path / "eight") == files(tmp_path / "one")
  for index in (1, 0):
    run(prompts, tmp_path / "two", process=(index, 2))
  assert files(tmp_path / "two") == files(tmp_path / "one")
  assert len(list((tmp_path / "two").glob("results-*-of-00002.jsonl"))) == 2
  assert [row["line"] for row in rows(tmp_path / "two", "rejects")] == [3, 5]


def test_texts_about_pictures(tmp_path):
  PIL.Image.fromarray(np.arange(1200, dtype=np.uint8).reshape(20, 20, 3)).save(tmp_path / "a.png")
  records = [
    {"prompt": [{"image": "a.png"}, "What is it?"], "name": "first"},
    {"prompt": [{"image": "missing.png"}, "What?"]},
    {"prompt": "Hi", "seed": 7},
    {"prompt": 3},
    {"prompt": "Hi", "name": "../out"},
    {"prompt": "again", "name": "first"},
    {"prompt": "Hi", "seed": -1},
  ]
  lines = [json.dumps(r) for r in records] + ["{broken"]
  (tmp_path / "p.jsonl").write_text("\n".join(lines))
  summary = run(tmp_path / "p.jsonl", tmp_path / "out", "text", max_new_tokens=6, devices=8)
  assert (summary.made, summary.rejected) == (2, 6)
  reasons = {row["line"]: row["reason"] for row in rows(tmp_path / "out", "rejects")}
  for line, words in {2: "missing.png", 4: "list of parts", 5: "relative path", 6: "another record",
                      7: "2**32", 8: "Expecting"}.items():  # fmt: skip
    assert words in reasons[line]
  talks = [[vilau_jax.Image(tmp_path / "a.png"), "What is it?"], "Hi"]
  want = tiny().generate_text(talks, seed=[0, 7], max_new_tokens=6, temperature=0.8, top_k=20)
  assert [row["text"] for row in rows(tmp_path / "out")] == want


def test_videos_and_the_files_of_benchmarks(tmp_path):
  (tmp_path / "meta_data.json").write_text(
    json.dumps({"0f": {"category": "animals", "prompt": "a dog"}, "1a": {"prompt": ""}})
  )
  summary = run(tmp_path / "meta_data.json", tmp_path / "out", "video", num_frames=2)
  assert (summary.made, summary.rejected) == (1, 1)
  row = rows(tmp_path / "out")[0]
  assert row["file"] == "animals/0f.mp4" and row["num_frames"] == 2 and row["line"] == "0f"
  assert len(media.read_video(tmp_path / "out" / row["file"], 2)) == 2


@pytest.mark.parametrize(
  ("name", "content", "words"),
  [("a.txt", "", "holds no prompt"), ("a.json", "[1]", "not an object"), ("a.json", "{", "JSON")],
)
def test_files_without_prompts_are_refused(tmp_path, name, content, words):
  (tmp_path / name).write_text(content)
  with pytest.raises(ValueError, match=words):
    PromptFile.open(tmp_path / name)
  with pytest.raises(ValueError, match="no file of prompts"):
    PromptFile.open(tmp_path / "nothing.txt")


@pytest.mark.parametrize(
  ("record", "words"),
  [
    ({"prompt": "a", "name": "n" * 300}, "more than 200 bytes"),
    ({"prompt": "a", "name": "a\ud800"}, "half a surrogate pair"),
    ({"prompt": "a", "name": "run.json/x"}, "must not end like a file"),
    ({"prompt": "a\ud800b"}, "half a surrogate pair"),
  ],
)
def test_a_record_that_cannot_be_written_costs_only_itself(tmp_path, record, words):
  good = {"prompt": "sea", "name": "n" * 200}
  (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n" + json.dumps(good) + "\n")
  summary = run(tmp_path / "a.jsonl", tmp_path / "out")
  assert (summary.made, summary.rejected) == (1, 1)
  reject = rows(tmp_path / "out", "rejects")[0]
  assert reject["line"] == 1 and words in reject["reason"]


def test_names_that_a_record_without_a_name_may_have_are_taken(tmp_path):
  (tmp_path / "a.jsonl").write_text('{"prompt": "a", "name": "000001"}\n{"prompt": "b"}\n')
  orders = list(PromptFile.open(tmp_path / "a.jsonl").orders())
  assert orders[0].reason == "the name '000001' is that of another record"
  assert orders[1].reason is None and orders[1].name == "000001"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
  path = tmp_path_factory.mktemp("model") / "tiny"
  tiny().save(path)
  return str(path)


def vilau(*argv: str) -> int:
  return main.run(list(argv))


def test_the_command(model, prompts, tmp_path, capsys):
  typed = ["generate", "batch", f"--model={model}", f"--prompts={prompts}", "--batch_size=1"]
  assert vilau(*typed, f"--output={tmp_path / 'out'}") == 1
  assert "5 made, 0 were there, 2 records rejected" in capsys.readouterr().out
  run(prompts, tmp_path / "one")
  assert files(tmp_path / "out") == files(tmp_path / "one")
  for extra, words in (
    (["--num=0"], "--num must be at least 1"),
    (["--cfg_scale=-1"], "cfg_scale must be at least 0"),
    (["--top_k=0"], "top_k must be at least 1"),
    (["--kind=text", "--cfg_scale=2"], "guidance is not defined for texts"),
    (["--process_index=2", "--process_count=2"], r"must be in 0..1"),
    (["--tensor=3"], "cannot be divided by 3"),
    (["--fps=0.001"], "frames a second"),
    (["--num_frames=2", "--fps=3"], "--fps, --num_frames would have no effect here: --kind=image"),
    (["--kind=text", "--fps=3"], "--fps would have no effect here"),
    (["--output=" + str(prompts / "out")], "cannot write"),
  ):
    assert vilau(*typed, f"--output={tmp_path / 'new'}", *extra) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_processes_that_join_share_the_prompts(model, prompts, tmp_path):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  typed = [
    sys.executable, "-m", "vilau_jax.cli.main", "generate", "batch", f"--model={model}",
    f"--prompts={prompts}", f"--output={tmp_path / 'out'}", "--batch_size=2",
  ]  # fmt: skip
  processes = [
    subprocess.Popen([*typed, f"--distributed={address},{i},2"], stdout=subprocess.PIPE, text=True)
    for i in range(2)
  ]
  said = [process.communicate(timeout=600)[0].splitlines()[-1] for process in processes]
  assert [process.returncode for process in processes] == [1, 0], said
  made = [
    f"{tmp_path / 'out'}: {n} made" for n in (2, 3)
  ]  # the broken lines are those of the first
  assert all(line.startswith(words) for line, words in zip(said, made)), said
  for i in range(2):
    assert (tmp_path / "out" / f"results-0000{i}-of-00002.jsonl").exists()
  run(prompts, tmp_path / "one")
  assert len(files(tmp_path / "out")) == len(files(tmp_path / "one")) == 5
  assert vilau(*typed[3:], "--distributed=auto", "--process_index=0", "--process_count=2") == 2


@pytest.mark.nightly
def test_a_killed_process_loses_nothing_that_was_written(model, tmp_path):
  prompts = tmp_path / "prompts.txt"
  prompts.write_text("".join(f"a dog and {i} cats\n" for i in range(40)))
  out = tmp_path / "out"
  typed = [
    "generate", "batch", f"--model={model}", f"--prompts={prompts}", f"--output={out}",
    "--batch_size=2",
  ]  # fmt: skip
  process = subprocess.Popen([sys.executable, "-m", "vilau_jax.cli.main", *typed])
  deadline = time.monotonic() + 300
  while not (out / "results.jsonl").exists() and time.monotonic() < deadline:
    time.sleep(0.05)
  process.kill()
  process.wait()
  made = len((out / "results.jsonl").read_text().splitlines())
  assert 0 < made < 40
  kept = files(out)
  assert vilau(*typed) == 0
  run(prompts, tmp_path / "whole")
  assert files(out) == files(tmp_path / "whole") and kept.items() <= files(out).items()
