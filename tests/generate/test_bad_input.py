"""What people get wrong at the command line is one line that says so, and exit code 2."""

import dataclasses

import golden_model
import jax
import numpy as np
import PIL.Image
import pytest

import vilau_jax
from vilau_jax.cli import main
from vilau_jax.data import media

PICTURE = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
  path = tmp_path_factory.mktemp("model") / "tiny"
  vilau_jax.VilaU.from_loaded(golden_model.tiny()).save(path)
  return str(path)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> str:
  """A model whose heads have become NaN."""
  loaded = golden_model.tiny()
  params = dict(loaded.variables["params"])
  for part, name in (("depth", "pos_emb_d"), ("llm", "lm_head")):
    broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), params[part][name])
    params[part] = params[part] | {name: broken}
  loaded = dataclasses.replace(loaded, variables=loaded.variables | {"params": params})
  path = tmp_path_factory.mktemp("damaged") / "tiny"
  vilau_jax.VilaU.from_loaded(loaded).save(path)
  return str(path)


@pytest.fixture(scope="module")
def unpainted(tmp_path_factory) -> str:
  """A model that draws as well as ever, and whose pixel decoder has become NaN."""
  loaded = golden_model.tiny()
  tower = dict(loaded.variables["params"]["tower"])
  tower["decoder"] = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), tower["decoder"])
  params = loaded.variables["params"] | {"tower": tower}
  loaded = dataclasses.replace(loaded, variables=loaded.variables | {"params": params})
  path = tmp_path_factory.mktemp("unpainted") / "tiny"
  vilau_jax.VilaU.from_loaded(loaded).save(path)
  return str(path)


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
  """Names -> paths of things that are not what they should be, and of some that are."""
  (tmp_path / "bad.png").write_bytes(b"nothing")
  (tmp_path / "bad.mp4").write_bytes(b"nothing")
  (tmp_path / "way").write_text("in the way")
  (tmp_path / "prompts.txt").write_text("a dog\n")
  PIL.Image.fromarray(PICTURE).save(tmp_path / "good.png")
  media.write_video(PICTURE[None], tmp_path / "one.mp4", 8)
  names = ("bad.png", "bad.mp4", "good.png", "one.mp4", "prompts.txt", "folder", "way")
  (tmp_path / "folder").mkdir()
  return {name.replace(".", "_"): str(tmp_path / name) for name in names}


@pytest.mark.parametrize(
  ("typed", "words"),
  [
    ("generate image --prompt=", "--prompt is empty"),
    ("generate image --prompts_file={folder}", "Is a directory"),
    ("generate image --prompt=a --speculative=-1", "--speculative must be at least 0"),
    ("generate video --prompt=a --num_frames=0", "num_frames must be at least 1"),
    ("generate video --prompt=a --first_frame={bad_png}", "is not a picture"),
    ("generate video --prompt=a --first_frame={folder}", "Is a directory"),
    ("generate batch --prompts={prompts_txt} --cfg_scale=-1", "cfg_scale must be at least 0"),
    ("generate batch --prompts={prompts_txt} --top_k=0", "top_k must be at least 1"),
    ("generate batch --prompts={prompts_txt} --num=0", "--num must be at least 1"),
    ("reconstruct --image={bad_png}", "is not a picture"),
  ],
)
def test_bad_input_is_one_line(model, files, tmp_path, capsys, typed, words):
  typed = [part.format(**files) for part in typed.split()]
  assert main.run([*typed, f"--model={model}", f"--output={tmp_path / 'out'}"]) == 2
  said = capsys.readouterr().err
  assert words in said and said.count("\n") == 1


@pytest.mark.parametrize(
  ("typed", "words"),
  [
    ("generate image --prompt=a --top_p=2", "top_p must be above 0 and at most 1"),
    ("generate image --prompt=a --temperature=1e-9", "temperature must be at least 0"),
    ("generate image --prompt=a --cfg_scale=1e39", "cfg_scale must be at least 0"),
    ("generate image --prompt=a --seed=-1", "--seed=-1 is no seed for 1 output(s)"),
    ("generate image --prompt=a --seed=4294967295 --num=2", "is no seed for 2 output(s)"),
    ("generate video --prompt=a --num_frames=0", "--num_frames must be at least 1"),
    ("generate batch --prompts={prompts_txt} --top_k=0", "top_k must be at least 1"),
    ("generate batch --prompts={prompts_txt} --num=2 --seed=4294967295", "no seed for 2 output(s)"),
    ("generate batch --prompts={prompts_txt} --kind=video --num_frames=0", "at least 1"),
    ("generate batch --prompts=nothing.txt", "no file of prompts at nothing.txt"),
    ("generate batch --prompts={prompts_txt} --output=gs://bucket/out", "is in an object store"),
    ("generate image --prompt=a --output=gs://bucket/out", "is in an object store"),
    ("reconstruct --image={good_png} --output=s3://bucket/out", "is in an object store"),
  ],
)
def test_what_needs_no_model_is_refused_before_it_is_loaded(
  files, tmp_path, capsys, monkeypatch, typed, words
):
  monkeypatch.chdir(tmp_path)
  typed = [part.format(**files) for part in typed.split()]
  output = [] if any(part.startswith("--output") for part in typed) else ["--output=out"]
  assert main.run([*typed, "--model=nowhere", *output]) == 2
  printed = capsys.readouterr()
  assert words in printed.err and "loading" not in printed.out
  assert not list(tmp_path.glob("*:"))


@pytest.mark.parametrize(
  ("typed", "words"),
  [
    (["--video={bad_mp4}", "What?"], "bad.mp4"),
    (["sea " * 2000], "context is 1024"),
    (["--top_p=0", "--temperature=1", "What?"], "top_p must be above 0"),
    (["--seed=-1", "What?"], "--seed=-1 is no seed"),
  ],
)
def test_bad_questions_are_one_line(model, files, capsys, typed, words):
  assert main.run(["chat", f"--model={model}", *[part.format(**files) for part in typed]]) == 2
  said = [line for line in capsys.readouterr().err.splitlines() if line != f"loading {model}"]
  assert words in said[0] and len(said) == 1


def test_a_video_file_of_one_frame_is_seen(model, files, capsys):
  typed = ["chat", f"--model={model}", f"--video={files['one_mp4']}", "--max_new_tokens=2", "What?"]
  assert main.run(typed) == 0


@pytest.mark.parametrize(
  "model_, said, typed",
  [
    ("damaged", "not finite (NaN or infinity)", "generate image --prompt=a"),
    ("damaged", "not finite (NaN or infinity)", "generate image --prompt=a --speculative=2"),
    ("damaged", "not finite (NaN or infinity)", "generate batch --prompts={prompts_txt}"),
    ("unpainted", "the tower's decoder are damaged", "generate image --prompt=a"),
    ("unpainted", "the tower's decoder are damaged", "generate batch --prompts={prompts_txt}"),
    ("unpainted", "the tower's decoder are damaged", "reconstruct --image={good_png}"),
  ],
)
def test_damaged_weights_leave_no_black_picture(
  request, files, tmp_path, capsys, model_, said, typed
):
  out, broken = tmp_path / "out", request.getfixturevalue(model_)
  typed = [part.format(**files) for part in typed.split()]
  assert main.run([*typed, f"--model={broken}", f"--output={out}"]) == 2
  assert said in capsys.readouterr().err
  assert not list(out.rglob("*.png"))


def test_damaged_weights_write_nothing(damaged, capsys):
  assert main.run(["chat", f"--model={damaged}", "What?"]) == 2
  assert "not finite (NaN or infinity)" in capsys.readouterr().err


@pytest.mark.parametrize(
  "typed",
  [
    "generate image --prompt=a",
    "generate batch --prompts={prompts_txt}",
    "reconstruct --image={good_png}",
  ],
)
def test_an_output_in_the_way_is_refused(model, files, capsys, typed):
  """Before the model is loaded, and also for root, who may write everywhere."""
  typed = [part.format(**files) for part in typed.split()]
  assert main.run([*typed, f"--model={model}", f"--output={files['way']}"]) == 2
  printed = capsys.readouterr()
  assert "cannot write to" in printed.err and "loaded" not in printed.out
