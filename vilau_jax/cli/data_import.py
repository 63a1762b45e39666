"""raw data set -> records

vilau data import emoji --output=DIR [--scenes=8000 --videos=1500 --test_scenes=400 ...]
    scenes and videos composed of the emoji that come with vilau_jax
vilau data import easy-vqa --output=DIR [--size=60]
    the easy-vqa package (pip install easy-vqa), its own train and test split
vilau data import folder --source=FOLDER --output=DIR
    your pictures: NAME.png with NAME.txt, or captions.csv / captions.jsonl (file, caption)

What is finished is kept: run it again after an interruption. Same arguments, same bytes.
"""

import difflib
import time

from absl import flags

from vilau_jax.cli.progress import Bar
from vilau_jax.data.formats import easy_vqa, emoji, folder

FORMATS = ("emoji", "easy-vqa", "folder")

# Overridable, so that several commands can be imported into one process.
_SOURCE = flags.DEFINE_string(
  "source", None, "folder, easy-vqa: where the raw data is", allow_override=True
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "directory for the records (required)", allow_override=True
)
_SEED = flags.DEFINE_integer(
  "seed", 0, "emoji: what the scenes are drawn from", allow_override=True
)
_SCENES = flags.DEFINE_integer("scenes", 8000, "emoji: training pictures", lower_bound=1)
_VIDEOS = flags.DEFINE_integer("videos", 1500, "emoji: training videos", lower_bound=1)
_TEST_SCENES = flags.DEFINE_integer("test_scenes", 400, "emoji: test pictures", lower_bound=1)
_TEST_VIDEOS = flags.DEFINE_integer("test_videos", 120, "emoji: test videos", lower_bound=1)
_SIZE = flags.DEFINE_integer(
  "size",
  None,
  "side of the stored pictures; 0 keeps them (default: 60, folder: 0)",
  lower_bound=0,
  allow_override=True,
)
_LIMIT = flags.DEFINE_integer(
  "limit", 0, "easy-vqa: pictures a split, 0 = all", lower_bound=0, allow_override=True
)


def main(argv: list[str]) -> int:
  if len(argv) != 1 or argv[0] not in FORMATS:
    typed = " ".join(argv)
    near = difflib.get_close_matches(typed, FORMATS, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"give one format of {', '.join(FORMATS)}; got {typed!r}{hint}")
  if not _OUTPUT.value:
    raise ValueError("say where the records go: --output=DIR")
  began = time.monotonic()
  with Bar("records") as line:
    counts = _convert(argv[0], line.update)
  print(f"{_OUTPUT.value}: {', '.join(f'{n} {part}' for part, n in counts.items())}")
  print(f"{time.monotonic() - began:.1f} s; look at them with: vilau data inspect DIR")
  if counts.get("rejected"):
    print(f"why some were rejected: {_OUTPUT.value}/{folder.REJECTS}")
  return 0


def _convert(name: str, progress) -> dict[str, int]:
  size = _SIZE.value
  if name == "emoji":
    canvas = emoji.Canvas() if size is None else emoji.Canvas.of_size(size)
    return emoji.convert(
      _SOURCE.value, _OUTPUT.value, scenes=_SCENES.value, videos=_VIDEOS.value,
      test_scenes=_TEST_SCENES.value, test_videos=_TEST_VIDEOS.value, seed=_SEED.value,
      canvas=canvas, progress=progress,
    )  # fmt: skip
  if name == "easy-vqa":
    size = 60 if size is None else size
    return easy_vqa.convert(
      _SOURCE.value, _OUTPUT.value, size=size, limit=_LIMIT.value, progress=progress
    )
  return folder.convert(_SOURCE.value, _OUTPUT.value, size=size or 0, progress=progress)
