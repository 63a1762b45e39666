"""generate, chat, reconstruct, tokenize and describe as typed, on the tiny model."""

import json
import os
import signal

import av
import golden_model
import numpy as np
import PIL.Image
import pytest

import vilau_jax
from vilau_jax.cli import main
from vilau_jax.data import imports
from vilau_jax.data.formats import folder
from vilau_jax.data.records import Records

PARAMETERS_7B = {"llm": 6_738_448_384, "depth": 527_145_984, "codebook": 16_777_216}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
  path = tmp_path_factory.mktemp("model") / "tiny"
  vilau_jax.VilaU.from_loaded(golden_model.tiny()).save(path)
  return str(path)


def picture(path, size=(40, 30)):
  PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)).save(path)
  return str(path)


def vilau(*argv: str) -> int:
  return main.run(list(argv))


def test_generate_writes_pictures_that_can_be_made_again(model, tmp_path, capsys):
  prompts = tmp_path / "prompts.txt"
  prompts.write_text("a dog\n\na red road\n")
  common = ("generate", "image", f"--model={model}", f"--output={tmp_path / 'out'}")
  assert vilau(*common, f"--prompts_file={prompts}", "--num=2", "--seed=3", "--batch_size=3") == 0
  entries = json.loads((tmp_path / "out" / "metadata.json").read_text())
  assert [e["seed"] for e in entries] == [3, 4, 5, 6]
  assert [e["prompt"] for e in entries] == ["a dog"] * 2 + ["a red road"] * 2
  assert (tmp_path / "out" / "grid.png").exists() and "grid.png" in capsys.readouterr().out
  loaded, entry = vilau_jax.load(model), entries[2]
  assert entry["model_id"] == loaded.identity()
  again = loaded.generate_images(entry["prompt"], seed=entry["seed"], **entry["settings"])
  stored = np.asarray(PIL.Image.open(tmp_path / "out" / entry["file"]))
  np.testing.assert_array_equal(again[0], stored)
  assert vilau(*common, "--prompt=a dog", "--seed=3") == 0  # goes on, overwrites nothing
  first, fifth = (PIL.Image.open(tmp_path / "out" / f"00000{i}.png") for i in (0, 4))
  np.testing.assert_array_equal(np.asarray(first), np.asarray(fifth))
  assert len(json.loads((tmp_path / "out" / "metadata.json").read_text())) == 5


def test_prompts_are_looked_at_before_any_is_drawn(model, tmp_path, capsys):
  prompts = tmp_path / "prompts.txt"
  prompts.write_bytes("\ufeffa dog\n".encode() + b"a cat\n" * 8 + b"sea " * 2000)
  typed = ["generate", "image", f"--model={model}", f"--output={tmp_path / 'out'}"]
  assert vilau(*typed, f"--prompts_file={prompts}", "--batch_size=2") == 2
  assert "prompt 9 has 6068 positions" in capsys.readouterr().err
  assert not list(tmp_path.glob("out/*.png"))
  prompts.write_bytes("\ufeffa dog\n".encode())
  assert vilau(*typed, f"--prompts_file={prompts}") == 0
  assert json.loads((tmp_path / "out" / "metadata.json").read_text())[0]["prompt"] == "a dog"
  assert vilau(*typed, "--prompt=a dog", "--num_frames=7", "--fps=3") == 2
  assert "--fps, --num_frames would have no effect here" in capsys.readouterr().err


def test_generate_video_writes_mp4(model, tmp_path):
  out = tmp_path / "out"
  assert vilau("generate", "video", f"--model={model}", "--prompt=a dog", f"--output={out}") == 0
  entry = json.loads((out / "metadata.json").read_text())[0]
  assert entry["file"] == "000000.mp4" and entry["num_frames"] == 2
  with av.open(str(out / "000000.mp4")) as container:
    assert container.streams.video[0].codec_context.name == "h264"
  assert (out / "000000.mp4").stat().st_size > 0


@pytest.mark.parametrize(
  ("extra", "words"),
  [
    (["--prompt="], "--prompt is empty"),
    ([], "either --prompt"),
    (["--prompt=a", "--num=0"], "--num must be at least 1"),
    (["--prompt=a", "--cfg_scale=-1"], "cfg_scale must be at least 0"),
    (["--prompt=a", "--top_k=0"], "top_k must be at least 1"),
    (["--prompt=" + "sea " * 2000], "context is 1024"),
    (["--prompt=a", "--model=nowhere"], "neither a model directory nor a workdir"),
    (["--prompts_file=nothing.txt"], "nothing.txt"),
  ],
)
def test_generate_explains_bad_input(model, tmp_path, capsys, extra, words):
  typed = ["generate", "image", f"--model={model}", f"--output={tmp_path / 'out'}", *extra]
  assert vilau(*typed) == 2
  assert words in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_drawn(
  model, tmp_path, capsys
):
  (tmp_path / "file").write_text("in the way")
  typed = ["generate", "image", f"--model={model}", "--prompt=a"]
  assert vilau(*typed, f"--output={tmp_path / 'file' / 'out'}") == 2
  assert "cannot write" in capsys.readouterr().err


def test_chat_answers_once(model, tmp_path, capsys):
  image = picture(tmp_path / "a.png")
  typed = ["chat", f"--model={model}", f"--image={image}", "--max_new_tokens=6"]
  assert vilau(*typed, "What is it?") == 0
  printed = capsys.readouterr().out.strip()
  talk = [vilau_jax.Image(image), "What is it?"]
  assert printed == vilau_jax.load(model).generate_text([talk], max_new_tokens=6)[0]


def test_chat_ends_between_two_words_when_interrupted(model, capsys, monkeypatch):
  def stream(*args, **kwargs):
    yield "one"
    os.kill(os.getpid(), signal.SIGINT)
    yield " two"
    yield " three"

  monkeypatch.setattr(vilau_jax.VilaU, "stream_text", stream)
  assert vilau("chat", f"--model={model}", "What?") == 130
  printed = capsys.readouterr()
  assert printed.out.strip() == "one two" and "Traceback" not in printed.err
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_chat_talks_until_an_empty_line(model, capsys, monkeypatch):
  lines = iter(["Hi", "/new", "Hello again", ""])
  monkeypatch.setattr("builtins.input", lambda _: next(lines))
  assert vilau("chat", f"--model={model}", "--max_new_tokens=3") == 0
  assert next(lines, None) is None


def test_chat_shows_pictures_at_any_turn(model, tmp_path, capsys, monkeypatch):
  image = picture(tmp_path / "a.png")
  lines = iter(["/image nowhere.png", "What?", "Hi", f"/image {image}", "What is it?", ""])
  monkeypatch.setattr("builtins.input", lambda _: next(lines))
  assert vilau("chat", f"--model={model}", "--max_new_tokens=4") == 0
  printed = capsys.readouterr().out.splitlines()
  assert "no image file at nowhere.png" in printed[1]
  assert "what was shown with it is forgotten" in printed[2]
  loaded, hello = vilau_jax.load(model), printed[-2].strip()
  talk = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": hello},
    {"role": "user", "content": [vilau_jax.Image(image), "What is it?"]},
  ]
  assert printed[-1].strip() == loaded.generate_text([talk], max_new_tokens=4)[0]


@pytest.mark.parametrize(
  ("extra", "words"),
  [
    (["  "], "question is empty"),
    (["a", "b"], "one question, in quotes"),
    (["--image=missing.png", "What?"], "no image file at missing.png"),
    (["--image={bad}", "What?"], "is not a picture"),
  ],
)
def test_chat_explains_bad_input(model, tmp_path, capsys, extra, words):
  (tmp_path / "bad.png").write_bytes(b"nothing")
  extra = [e.format(bad=tmp_path / "bad.png") for e in extra]
  assert vilau("chat", f"--model={model}", *extra) == 2
  assert words in capsys.readouterr().err


def test_reconstruct_writes_a_sheet_and_prints_psnr(model, tmp_path, capsys):
  image = picture(tmp_path / "a.png")
  typed = ["reconstruct", f"--model={model}", f"--image={image}", f"--output={tmp_path / 'out'}"]
  assert vilau(*typed) == 0
  assert "PSNR" in capsys.readouterr().out
  sheet = PIL.Image.open(tmp_path / "out" / "reconstruction-a.png")
  assert sheet.width > 4 * 128  # the picture and three depths
  (tmp_path / "other").mkdir()
  assert vilau(*typed, f"--image={picture(tmp_path / 'other' / 'a.png')}") == 0
  for name in ("reconstruction-a-0.png", "reconstruction-a-1.png"):  # one name, two pictures
    assert (tmp_path / "out" / name).exists()
  assert vilau("reconstruct", f"--model={model}", f"--image={picture(tmp_path / 'b.png', (1, 1))}",
               f"--output={tmp_path / 'out'}") == 0  # fmt: skip


def test_tokenize_adds_the_codes_that_the_model_sees(model, tmp_path, capsys):
  source = tmp_path / "pictures"
  source.mkdir()
  for i in range(3):
    picture(source / f"{i}.png")
    (source / f"{i}.txt").write_text(f"picture {i}")
  imports.run(folder.plan(source), tmp_path / "records")
  records = next(p.parent for p in (tmp_path / "records").rglob("dataset_info.json"))
  out = tmp_path / "codes"
  typed = ["tokenize", f"--model={model}", f"--records={records}", f"--output={out}"]
  assert vilau(*typed) == 0
  loaded = vilau_jax.load(model)
  assert loaded.tower_id() in capsys.readouterr().out
  written = Records(out)
  assert len(written) == 3
  record = written[0]
  codes = np.frombuffer(record["codes"], "<u2").reshape(record["codes_shape"])
  want = loaded.encode_images([record["images"][0]])
  np.testing.assert_array_equal(codes, want.reshape(codes.shape))
  assert vilau(*typed) == 0  # finished: returns at once


def test_describe_counts_the_released_model(model, capsys):
  assert vilau("describe", "--preset=vilau_7b_256", "--json") == 0
  found = json.loads(capsys.readouterr().out)
  assert {k: found["parameters"][k] for k in PARAMETERS_7B} == PARAMETERS_7B
  assert found["geometry"]["context"] == 8192
  assert vilau("describe", f"--model={model}") == 0
  assert vilau("describe", "--preset=quickstart") == 0
  assert vilau("describe", "--preset=quikstart") == 2
  assert "did you mean 'quickstart'" in capsys.readouterr().err
