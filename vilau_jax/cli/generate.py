"""draw or animate

vilau generate image --model=DIR --prompt="two foxes on a blue background" --output=out [--num=4]
vilau generate video --model=DIR --prompt="a fox moves to the right" --output=out
vilau generate image --model=DIR --prompts_file=prompts.txt --output=out
    one picture (PNG) or video (MP4) for every prompt and --num, 000000.png on; a directory that has
    some already is continued. metadata.json says for each file what made it; grid.png shows all
    pictures at once. Output i has seed --seed + i, whatever else is drawn with it.
"""

import dataclasses
import os
import pathlib
import time

from absl import flags

# Overridable, so that several commands can be imported into one process.
_MODEL = flags.DEFINE_string(
  "model", None, "model directory or training workdir (required)", allow_override=True
)
_PROMPT = flags.DEFINE_string("prompt", None, "what to draw", allow_override=True)
_PROMPTS_FILE = flags.DEFINE_string(
  "prompts_file", None, "text file with one prompt a line, instead of --prompt", allow_override=True
)
_OUTPUT = flags.DEFINE_string("output", None, "directory (required)", allow_override=True)
_NUM = flags.DEFINE_integer("num", 1, "pictures or videos a prompt", allow_override=True)
_CFG = flags.DEFINE_float(
  "cfg_scale", None, "guidance, 1 is none (this and the next three: default of the model)",
  allow_override=True,
)  # fmt: skip
_TEMPERATURE = flags.DEFINE_float(
  "temperature", None, "0 always takes the most likely code", allow_override=True
)
_TOP_K = flags.DEFINE_integer("top_k", None, "draw among so many codes", allow_override=True)
_TOP_P = flags.DEFINE_float("top_p", None, "draw among this share", allow_override=True)
_FRAMES = flags.DEFINE_integer("num_frames", None, "video: frames", allow_override=True)
_FPS = flags.DEFINE_float("fps", 8, "video: frames a second of the file", allow_override=True)
_SEED = flags.DEFINE_integer("seed", 0, "same seed, same pictures", allow_override=True)
_BATCH = flags.DEFINE_integer("batch_size", 8, "outputs drawn at once", allow_override=True)
_INT8 = flags.DEFINE_bool(
  "int8", False, "weights in eight bits, for small devices", allow_override=True
)
_COLUMNS = flags.DEFINE_integer("columns", 8, "pictures a row of grid.png", allow_override=True)


def main(argv: list[str]) -> int:
  if argv not in (["image"], ["video"]):
    raise ValueError(f"say what to generate, image or video; got {' '.join(argv)!r}")
  for flag in (_MODEL, _OUTPUT):
    if not flag.value:
      raise ValueError(f"--{flag.name}=DIR is missing; see vilau generate --help")
  for flag in (_NUM, _BATCH, _COLUMNS):
    if flag.value < 1:
      raise ValueError(f"--{flag.name} must be at least 1, got {flag.value}")
  if _FPS.value <= 0:
    raise ValueError(f"--fps must be above 0, got {_FPS.value}")
  prompts = _prompts()
  from vilau_jax import api  # flags first: jax takes seconds
  from vilau_jax.cli.progress import Bar
  from vilau_jax.generate.gallery import Gallery

  gallery = Gallery(_OUTPUT.value)
  print(f"loading {_MODEL.value}", flush=True)
  model = api.load(_MODEL.value, quantize="int8" if _INT8.value else None)
  tasks = list(enumerate((prompt for prompt in prompts for _ in range(_NUM.value)), _SEED.value))
  began = time.monotonic()
  with Bar("compiling, drawing: positions") as bar:
    for start in range(0, len(tasks), _BATCH.value):
      batch = tasks[start : start + _BATCH.value]
      seen = lambda p, start=start: bar.update(  # noqa: E731
        p.total * start + p.done * len(p.outputs), p.total * len(tasks)
      )
      made_by = _made_by(model)
      for (seed, prompt), pixels in zip(batch, _draw(model, argv[0], batch, seen)):
        gallery.add(pixels, {"prompt": prompt, "seed": seed, **made_by}, _FPS.value)
  seconds = time.monotonic() - began
  grid = gallery.sheet(_COLUMNS.value)
  shown = ", ".join(gallery.names[:4]) + (", ..." if len(gallery.names) > 4 else "")
  print(f"{len(tasks)} {argv[0]}(s) in {seconds:.1f} s: {shown} in {_OUTPUT.value}")
  if grid:
    print(f"all of them: {grid}")
  return 0


def _prompts() -> list[str]:
  if (_PROMPT.value is None) == (_PROMPTS_FILE.value is None):
    raise ValueError("give either --prompt=TEXT or --prompts_file=FILE")
  if _PROMPT.value is not None:
    if not _PROMPT.value.strip():
      raise ValueError("--prompt is empty: write what to draw")
    return [_PROMPT.value]
  lines = pathlib.Path(_PROMPTS_FILE.value).read_text(encoding="utf-8").splitlines()
  prompts = [line.strip() for line in lines if line.strip()]
  if not prompts:
    raise ValueError(f"{_PROMPTS_FILE.value} holds no prompt")
  return prompts


def _given() -> dict[str, float]:
  flags_ = (_CFG, _TEMPERATURE, _TOP_K, _TOP_P)
  return {flag.name: flag.value for flag in flags_ if flag.value is not None}


def _made_by(model) -> dict:
  settings = dataclasses.asdict(model.config.sampling) | _given()
  where = os.path.abspath(_MODEL.value)
  return {"settings": settings, "model": where, "model_id": model.identity()}


def _draw(model, kind: str, batch: list[tuple[int, str]], on_progress):
  seeds, prompts = zip(*batch)
  common = dict(seed=seeds, batch_size=_BATCH.value, on_progress=on_progress, **_given())
  if kind == "image":
    return model.generate_images(prompts, **common)
  return model.generate_videos(prompts, num_frames=_FRAMES.value, **common)
