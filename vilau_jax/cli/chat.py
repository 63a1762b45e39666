"""ask about pictures and videos, or just talk

vilau chat --model=DIR --image=cat.png "What is this?"
    one answer, as it is written; --image and --video may be given several times
vilau chat --model=DIR
    a prompt; the conversation goes on until an empty line, /new starts another one, /image FILE and
    /video FILE show something with the next question
It answers in words; where the model begins to draw, the answer ends and a line says so.
"""

import os
import sys

from absl import flags

from vilau_jax.cli import given
from vilau_jax.cli.interrupts import Interrupts
from vilau_jax.cli.loading import Loading

FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string(
  "model", None, "model directory or training workdir (required)", flag_values=FLAGS
)
_IMAGE = flags.DEFINE_multi_string("image", [], "picture to talk about", flag_values=FLAGS)
_VIDEO = flags.DEFINE_multi_string(
  "video", [], "video file or folder of frames to talk about", flag_values=FLAGS
)
_TOKENS = flags.DEFINE_integer(
  "max_new_tokens",
  None,
  "longest answer, in tokens (default: 512, or where the context ends)",
  lower_bound=1,
  flag_values=FLAGS,
)
_TEMPERATURE = flags.DEFINE_float(
  "temperature", 0.0, "0 always writes the most likely token", flag_values=FLAGS
)
_TOP_P = flags.DEFINE_float("top_p", 1.0, "draw among this share", flag_values=FLAGS)
_SEED = flags.DEFINE_integer("seed", 0, "same seed, same answer", flag_values=FLAGS)
_LOADING = Loading(FLAGS)


def main(argv: list[str]) -> int:
  if len(argv) > 1:
    raise ValueError(f"give one question, in quotes; got {argv}")
  if argv and not argv[0].strip():
    raise ValueError("the question is empty")
  if not _MODEL.value:
    raise ValueError("--model=DIR is missing; see vilau chat --help")
  given.can_be_drawn({"temperature": _TEMPERATURE.value, "top_p": _TOP_P.value}, _SEED.value, 1)
  from vilau_jax import api  # flags first: jax takes seconds
  from vilau_jax.cli.compile_cache import use_compile_cache

  use_compile_cache()
  shown = [*map(api.Image, _IMAGE.value), *map(api.Video, _VIDEO.value)]
  print(f"loading {_MODEL.value}", file=sys.stderr, flush=True)  # answers alone go to stdout
  model = api.load(_MODEL.value, **_LOADING.arguments())
  if argv:
    answer(model, [{"role": "user", "content": [*shown, argv[0]]}])
  else:
    talk(model, shown)
  return 0


def answer(model, turns: list[dict]) -> str:
  """Prints the answer to the turns as it is written, and returns it."""
  written, drawing = "", []
  pieces = model.stream_text(
    [turns], max_new_tokens=_TOKENS.value, temperature=_TEMPERATURE.value, top_p=_TOP_P.value,
    seed=_SEED.value, on_draw=drawing.append,
  )  # fmt: skip
  with Interrupts() as interrupts:
    for piece in pieces:
      print(piece, end="", flush=True)
      written += piece
      interrupts.check()
  print()
  for kind in drawing:
    print(
      f"(here the model began to draw, which chat does not do: vilau generate {kind} "
      f'--model={_MODEL.value} --prompt=".." --output=DIR draws)',
      file=sys.stderr,
    )
  return written.strip()


def talk(model, shown: list) -> None:
  """A conversation at the prompt; pictures belong to the question behind them."""
  from vilau_jax import api

  print("ask; /image FILE and /video FILE show something, /new starts again, an empty line ends")
  turns: list[dict] = []
  while True:
    try:
      question = input("> ").strip()
    except EOFError:
      return
    if not question:
      return
    command, _, file = question.partition(" ")
    if command == "/new":
      turns, shown = [], []
    elif command in ("/image", "/video"):
      file = os.path.expanduser(file.strip())
      shown = [*shown, (api.Image if command == "/image" else api.Video)(file)]
    else:
      turns.append({"role": "user", "content": [*shown, question]})
      try:
        written = answer(model, turns)
      except ValueError as error:
        forgotten = "what was shown with it is forgotten, " if shown else ""
        print(f"{error}\n({forgotten}/new starts again)")
        written, shown = "", []
      if written:
        turns.append({"role": "assistant", "content": written})
        shown = []
      else:  # an empty answer can't stand in the conversation
        turns.pop()
