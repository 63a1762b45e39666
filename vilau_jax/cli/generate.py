"""draw or animate

vilau generate image --model=DIR --prompt="two foxes on a blue background" --output=out [--num=4]
vilau generate video --model=DIR --prompt="a fox moves to the right" --output=out
vilau generate image --model=DIR --prompts_file=prompts.txt --output=out
    one picture (PNG) or video (MP4) for every prompt and --num, 000000.png on; a directory that has
    some already is continued. metadata.json says for each file what made it; grid.png shows all
    pictures at once. Output i has seed --seed + i, whatever else is drawn with it.
vilau generate video --model=DIR --prompt=.. --first_frame=fox.png --output=out
    a video that begins with a picture
vilau generate image --model=DIR --prompt=.. --output=out --speculative=8
    drafts 8 positions a pass and keeps those that the model would have drawn. Pictures are as
    likely as without it, but the picture of a seed is another; which is faster depends on the model
    and the machine, and the last line says how many positions a pass there were. Not with --int8,
    --tensor or --first_frame.
vilau generate --from_metadata=out/metadata.json --output=again [--model=DIR]
    makes the files of a metadata.json or results.jsonl again, and says whether they are the same
    bit for bit (exit code 1 if not)
Thousands of prompts: vilau generate batch --help
"""

import os
import pathlib

from absl import flags

from vilau_jax.cli import given
from vilau_jax.cli.loading import Loading
from vilau_jax.data import media

FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string(
  "model", None, "model directory or training workdir (required)", flag_values=FLAGS
)
_PROMPT = flags.DEFINE_string("prompt", None, "what to draw", flag_values=FLAGS)
_PROMPTS_FILE = flags.DEFINE_string(
  "prompts_file", None, "text file with one prompt a line, instead of --prompt", flag_values=FLAGS
)
_OUTPUT = flags.DEFINE_string("output", None, "directory (required)", flag_values=FLAGS)
_NUM = flags.DEFINE_integer("num", 1, "pictures or videos a prompt", flag_values=FLAGS)
_CFG = flags.DEFINE_float(
  "cfg_scale",
  None,
  "guidance, 1 is none (this and the next three: default of the model)",
  flag_values=FLAGS,
)
_TEMPERATURE = flags.DEFINE_float(
  "temperature", None, "0 always takes the most likely code", flag_values=FLAGS
)
_TOP_K = flags.DEFINE_integer("top_k", None, "draw among so many codes", flag_values=FLAGS)
_TOP_P = flags.DEFINE_float("top_p", None, "draw among this share", flag_values=FLAGS)
_FRAMES = flags.DEFINE_integer("num_frames", None, "video: frames", flag_values=FLAGS)
_FPS = flags.DEFINE_float("fps", 8, "video: frames a second of the file", flag_values=FLAGS)
_SEED = flags.DEFINE_integer("seed", 0, "same seed, same pictures", flag_values=FLAGS)
_BATCH = flags.DEFINE_integer("batch_size", 8, "outputs drawn at once", flag_values=FLAGS)
_FIRST = flags.DEFINE_string(
  "first_frame", None, "video: picture that all of them begin with", flag_values=FLAGS
)
_AGAIN = flags.DEFINE_string(
  "from_metadata", None, "make the files of this metadata.json again", flag_values=FLAGS
)
_LOADING = Loading(FLAGS)
_SPECULATIVE = flags.DEFINE_integer(
  "speculative", 0, "drafted positions a pass, 0 draws one after the other", flag_values=FLAGS
)
_COLUMNS = flags.DEFINE_integer("columns", 8, "pictures a row of grid.png", flag_values=FLAGS)


_WITH_METADATA = ("from_metadata", "output", "model", "batch_size", "tensor")
_KEPT = ("prompt", "seed", "settings", "model_id", "quantize")  # of an entry that is made again


def main(argv: list[str]) -> int:
  if argv not in (["image"], ["video"]) and not (_AGAIN.value and not argv):
    raise ValueError(f"say what to generate, image or video; got {' '.join(argv)!r}")
  for flag in (_OUTPUT,) if _AGAIN.value else (_MODEL, _OUTPUT):
    if not flag.value:
      raise ValueError(f"--{flag.name}=DIR is missing; see vilau generate --help")
  for flag in (_NUM, _BATCH, _COLUMNS):
    if flag.value < 1:
      raise ValueError(f"--{flag.name} must be at least 1, got {flag.value}")
  media.check_fps(_FPS.value)
  if _SPECULATIVE.value < 0:
    raise ValueError(f"--speculative must be at least 0, got {_SPECULATIVE.value}")
  others = {"int8": _LOADING.quantize, "first_frame": _FIRST.value, "tensor": _LOADING.tensor > 1}
  for other, there in others.items():
    if _SPECULATIVE.value and there:
      raise ValueError(f"--speculative and --{other} do not go together")
  if _FRAMES.value is not None and _FRAMES.value < 1:
    raise ValueError(f"--num_frames must be at least 1, got {_FRAMES.value}")
  if _AGAIN.value:
    given.only(FLAGS, _WITH_METADATA, "--from_metadata takes everything else from the file")
    return again()
  if argv == ["image"]:
    given.none(FLAGS, ("num_frames", "fps", "first_frame"), "they are for videos")
  prompts = _prompts()
  given.can_be_drawn(_settings(), _SEED.value, len(prompts) * _NUM.value)
  return draw(argv[0], prompts)


def draw(kind: str, prompts: list[str]) -> int:
  """Draws every prompt --num times into the gallery."""
  from vilau_jax.cli.watch import Watch  # flags first: jax takes seconds
  from vilau_jax.generate.gallery import Gallery

  gallery, watch = Gallery(_OUTPUT.value), Watch()
  model = watch.load(_MODEL.value, **_LOADING.arguments())
  frames = 1 if kind == "image" else model.runtime.check_frames(_FRAMES.value)
  model.runtime.drawing(prompts, 1, kind, 0, frames=frames)  # all fit, or none is drawn
  tasks = list(enumerate((prompt for prompt in prompts for _ in range(_NUM.value)), _SEED.value))
  with watch.drawing(len(tasks)):
    for start in range(0, len(tasks), _BATCH.value):
      watch.interrupts.check()
      batch = tasks[start : start + _BATCH.value]
      for (seed, prompt), pixels in zip(batch, _draw(model, kind, batch, watch.seen)):
        gallery.add(pixels, _made_by(model, prompt, seed), _FPS.value)
  grid = gallery.sheet(_COLUMNS.value)
  shown = ", ".join(gallery.names[:4]) + (", ..." if len(gallery.names) > 4 else "")
  print(f"{len(tasks)} {kind}(s) {watch.summary()}: {shown} in {_OUTPUT.value}")
  if grid:
    print(f"all of them: {grid}")
  return 0


def again() -> int:
  """Draws what metadata says, and compares."""
  from vilau_jax import paths
  from vilau_jax.cli.watch import Watch  # flags first: jax takes seconds
  from vilau_jax.generate.again import draw_again, quantization, read_entries
  from vilau_jax.generate.gallery import Gallery

  entries = read_entries(_AGAIN.value)
  if not (_MODEL.value or entries[0].get("model")):
    raise ValueError(f"{_AGAIN.value} does not say where its model is; give --model=DIR")
  gallery, watch = Gallery(_OUTPUT.value), Watch()
  how = _LOADING.arguments() | {"quantize": quantization(entries)}
  model = watch.load(_MODEL.value or entries[0]["model"], **how)
  where, found = {"model": os.fspath(paths.absolute(model.path))}, {}
  with watch.drawing(len(entries)):
    for batch in draw_again(model, entries, _BATCH.value, watch.seen):
      for i, pixels in batch:
        kept = {k: v for k, v in entries[i].items() if k in _KEPT}
        found[i] = gallery.compare(pixels, kept | where, entries[i])
      if len(found) < len(entries):
        watch.interrupts.check()
  for i, (name, equal) in sorted(found.items()):
    print(f"{entries[i]['file']} -> {name}: {'the same, bit for bit' if equal else 'DIFFERS'}")
  same = sum(equal for _, equal in found.values())
  print(f"{same} of {len(entries)} are the same {watch.summary()}")
  return 0 if same == len(entries) else 1


def _prompts() -> list[str]:
  if (_PROMPT.value is None) == (_PROMPTS_FILE.value is None):
    raise ValueError("give either --prompt=TEXT or --prompts_file=FILE")
  if _PROMPT.value is not None:
    if not _PROMPT.value.strip():
      raise ValueError("--prompt is empty: write what to draw")
    return [_PROMPT.value]
  lines = pathlib.Path(_PROMPTS_FILE.value).read_text(encoding="utf-8-sig").splitlines()
  prompts = [line.strip() for line in lines if line.strip()]
  if not prompts:
    raise ValueError(f"{_PROMPTS_FILE.value} holds no prompt")
  return prompts


def _settings() -> dict[str, float]:
  flags_ = (_CFG, _TEMPERATURE, _TOP_K, _TOP_P)
  return {flag.name: flag.value for flag in flags_ if flag.value is not None}


def _given() -> dict[str, float]:
  return _settings() | ({"speculative": _SPECULATIVE.value} if _SPECULATIVE.value else {})


def _made_by(model, prompt: str, seed: int) -> dict:
  from vilau_jax import paths
  from vilau_jax.generate.again import made_by

  where = {"model": os.fspath(paths.absolute(_MODEL.value))}
  if _FIRST.value:
    where["first_frame"] = os.fspath(paths.absolute(_FIRST.value))
  return made_by(model, prompt, seed, _given()) | where


def _draw(model, kind: str, batch: list[tuple[int, str]], on_progress):
  seeds, prompts = zip(*batch)
  common = dict(seed=seeds, batch_size=_BATCH.value, on_progress=on_progress, **_given())
  if kind == "image":
    return model.generate_images(prompts, **common)
  first = [_FIRST.value] * len(prompts) if _FIRST.value else None
  return model.generate_videos(prompts, num_frames=_FRAMES.value, first_frames=first, **common)
