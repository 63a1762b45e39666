"""vilau generate: what it says, what it leaves when it is interrupted, and making files again."""

import json
import os
import pathlib
import signal
import threading
import time

import golden_model
import numpy as np
import PIL.Image
import pytest

import vilau_jax
from vilau_jax.cli import main
from vilau_jax.cli.interrupts import Interrupts
from vilau_jax.generate.gallery import Gallery


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
  path = tmp_path_factory.mktemp("model") / "tiny"
  vilau_jax.VilaU.from_loaded(golden_model.tiny()).save(path)
  return str(path)


def vilau(*argv: str) -> int:
  return main.run(["generate", *argv])


def test_files_are_made_again_bit_for_bit(model, tmp_path, capsys):
  out, first = tmp_path / "out", tmp_path / "first.png"
  PIL.Image.fromarray(np.arange(1200, dtype=np.uint8).reshape(20, 20, 3)).save(first)
  common = (f"--model={model}", f"--output={out}", "--prompt=a dog")
  assert vilau("image", *common, "--num=3", "--temperature=0.9", "--batch_size=2") == 0
  said = capsys.readouterr().out
  for words in ("loading", "compiling", "positions/s", "first row of positions after"):
    assert words in said
  assert vilau("video", *common, "--seed=5", f"--first_frame={first}") == 0
  metadata = out / "metadata.json"
  assert vilau(f"--from_metadata={metadata}", f"--output={tmp_path / 'again'}") == 0
  assert "4 of 4 are the same" in capsys.readouterr().out
  for name in ("000000.png", "000002.png", "000003.mp4"):
    again = (tmp_path / "again" / name).read_bytes()
    if name.endswith("mp4"):
      assert again == (out / name).read_bytes()
    else:
      pictures = [np.asarray(PIL.Image.open(d / name)) for d in (out, tmp_path / "again")]
      np.testing.assert_array_equal(*pictures)
  entries = json.loads(metadata.read_text())
  entries[1]["pixels_sha256"] = "0" * 64
  metadata.write_text(json.dumps(entries))
  assert vilau(f"--from_metadata={metadata}", f"--output={tmp_path / 'third'}") == 1
  assert "000001.png -> 000001.png: DIFFERS" in capsys.readouterr().out


def test_what_is_drawn_of_pictures_is_made_again(model, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  PIL.Image.fromarray(np.arange(1200, dtype=np.uint8).reshape(20, 20, 3)).save("first.png")
  lines = [{"prompt": [{"image": "first.png"}, "in winter"]}, {"prompt": "a dog"}]
  (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  assert vilau("batch", f"--model={model}", "--prompts=p.jsonl", f"--output={tmp_path}/out") == 0
  (tmp_path / "away").mkdir()
  monkeypatch.chdir("away")
  typed = [f"--from_metadata={tmp_path}/out/results.jsonl", f"--model={model}", "--output=again"]
  assert vilau(*typed) == 0
  assert "2 of 2 are the same" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("content", "words"),
  [
    ("{", "not readable JSON"),
    ("[]", "not a list of generated files"),
    (
      '[{"file": "a.png"}]',
      "entry 0 cannot be made again: it lacks kind, prompt, seed, settings, mo",
    ),
    ("[3]", "it lacks file"),
    (dict(kind="song"), "kind must be"),
    (dict(settings=None), "settings must be an object of cfg_scale"),
    (dict(settings={"topk": 3}), "settings must be an object of cfg_scale"),
    (dict(settings={"temperature": None}), "temperature must be a number, got None"),
    (dict(settings={"top_k": 2.5}), "top_k must be an integer"),
    (dict(settings={"speculative": "8"}), "speculative must be an integer"),
    (dict(seed="0"), "seed must be an integer"),
    (dict(seed=-1), "2**32 - 1"),
    (dict(kind="video"), "lacks num_frames"),
    (dict(kind="video", num_frames=1.5), "num_frames must be an integer"),
    (dict(kind="video", num_frames=2, fps="8"), "frames a second, got '8'"),
    (dict(model=3), "model must be a text"),
    (dict(prompt=[{"image": "missing.png"}, "in winter"]), "missing.png, which its prompt shows"),
    (dict(prompt=3), "a prompt is a text or a list of parts"),
    (None, "no metadata at"),
    (dict(), "was made by model 0123"),
  ],
)
def test_broken_metadata_is_explained(model, tmp_path, capsys, content, words):
  path = tmp_path / "metadata.json"
  if isinstance(content, dict):
    entry = dict(file="a.png", kind="image", prompt="a", seed=0, settings={}, model_id="0123")
    content = json.dumps([entry | content])
  if content is not None:
    path.write_text(content)
  typed = [f"--from_metadata={path}", f"--output={tmp_path / 'out'}", f"--model={model}"]
  assert vilau(*typed) == 2
  assert words in capsys.readouterr().err


def test_an_interrupted_command_keeps_what_was_finished(model, tmp_path, capsys):
  out = tmp_path / "out"

  def interrupt():
    while not (out / "000001.png").exists():
      time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)

  threading.Thread(target=interrupt, daemon=True).start()
  typed = ["image", f"--model={model}", f"--output={out}", "--prompt=a dog", "--num=500"]
  assert vilau(*typed, "--batch_size=1") == 130
  assert "what was finished is kept" in capsys.readouterr().err
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
  entries = json.loads((out / "metadata.json").read_text())
  pictures = sorted(p.name for p in pathlib.Path(out).glob("0*.png"))
  assert 2 <= len(entries) < 500 and [e["file"] for e in entries] == pictures


def test_int8_is_made_again_in_int8(model, tmp_path, capsys):
  out, again = tmp_path / "out", tmp_path / "again"
  assert vilau("image", f"--model={model}", f"--output={out}", "--prompt=a dog", "--int8") == 0
  assert vilau(f"--from_metadata={out / 'metadata.json'}", f"--output={again}") == 0
  assert "1 of 1 are the same" in capsys.readouterr().out
  assert json.loads((again / "metadata.json").read_text())[0]["quantize"] == "int8"
  entries = json.loads((out / "metadata.json").read_text())
  plain = {k: v for k, v in entries[0].items() if k != "quantize"}
  (out / "both.json").write_text(json.dumps([*entries, plain]))
  assert vilau(f"--from_metadata={out / 'both.json'}", f"--output={again}") == 2
  assert "some of these files were made with --int8" in capsys.readouterr().err


def test_what_metadata_says_is_not_changed_by_flags(model, tmp_path, capsys):
  typed = [f"--from_metadata={tmp_path / 'm.json'}", f"--output={tmp_path / 'out'}"]
  assert vilau(*typed, "--top_k=3", "--int8") == 2
  assert "--int8, --top_k would have no effect here" in capsys.readouterr().err


def test_making_again_keeps_what_was_finished_and_takes_any_text(model, tmp_path, capsys):
  out, again, prompts = tmp_path / "out", tmp_path / "again", tmp_path / "prompts.jsonl"
  prompts.write_text('{"prompt": "a\u2028dog"}\n')
  typed = ["batch", f"--model={model}", f"--prompts={prompts}", f"--output={out}", "--num=40"]
  assert vilau(*typed) == 0

  def interrupt():
    while not (again / "metadata.json").exists():
      time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)

  threading.Thread(target=interrupt, daemon=True).start()
  typed = [f"--from_metadata={out / 'results.jsonl'}", f"--model={model}", f"--output={again}"]
  assert vilau(*typed, "--batch_size=1") == 130
  assert 0 < len(json.loads((again / "metadata.json").read_text())) < 40


def test_an_interrupted_batch_goes_on(model, tmp_path, capsys):
  out, prompts = tmp_path / "out", tmp_path / "prompts.txt"
  prompts.write_text("a dog\na cat\n")
  typed = ["batch", f"--model={model}", f"--prompts={prompts}", f"--output={out}", "--num=40"]

  def interrupt():
    while not (out / "results.jsonl").exists():
      time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)

  threading.Thread(target=interrupt, daemon=True).start()
  assert vilau(*typed, "--batch_size=2") == 130
  kept = (out / "results.jsonl").read_text()
  assert 0 < len(kept.splitlines()) < 80
  assert vilau(*typed, "--batch_size=2") == 0
  assert "80 made" not in capsys.readouterr().out
  whole = (out / "results.jsonl").read_text()
  assert whole.startswith(kept) and len(whole.splitlines()) == 80


def test_what_is_drawn_is_kept_and_a_command_that_is_done_is_not_interrupted(
  model, tmp_path, monkeypatch
):
  add, told = Gallery.add, []

  def interrupted(self, *args, **kwargs):
    if self.directory not in told:  # while the first of a batch is written
      told.append(self.directory)
      os.kill(os.getpid(), signal.SIGINT)
    return add(self, *args, **kwargs)

  monkeypatch.setattr(Gallery, "add", interrupted)
  out, again = tmp_path / "out", tmp_path / "again"
  typed = ["image", f"--model={model}", f"--output={out}", "--prompt=a dog", "--num=2"]
  assert vilau(*typed) == 0
  assert vilau(f"--from_metadata={out / 'metadata.json'}", f"--output={again}") == 0
  assert told == [out, again]
  for folder in told:
    assert len(json.loads((folder / "metadata.json").read_text())) == 2


def test_a_second_interrupt_does_not_wait():
  with pytest.raises(KeyboardInterrupt), Interrupts() as interrupts:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(100):
      time.sleep(0.001)
    with pytest.raises(KeyboardInterrupt):
      interrupts.check()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_video_of_one_frame_is_a_file(model, tmp_path):
  typed = ["video", f"--model={model}", f"--output={tmp_path / 'out'}", "--prompt=a dog"]
  assert vilau(*typed, "--num_frames=1") == 0
  from vilau_jax.data import media

  assert len(media.read_video(tmp_path / "out" / "000000.mp4", 1)) == 1
