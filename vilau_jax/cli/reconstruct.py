"""image -> codes -> image

vilau reconstruct --model=DIR --image=cat.png [--output=DIR]
    writes reconstruction-cat.png: the picture as the tower sees it, and what it makes of the first
    1, 2, .. R codes of every position; prints the PSNR of each. --image may be given several times.
"""

import pathlib

from absl import flags

FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string(
  "model", None, "model directory or training workdir (required)", flag_values=FLAGS
)
_IMAGE = flags.DEFINE_multi_string("image", [], "picture (required)", flag_values=FLAGS)
_OUTPUT = flags.DEFINE_string("output", ".", "directory for the sheet", flag_values=FLAGS)
_GEOMETRY = flags.DEFINE_enum(
  "geometry", "resize", ["resize", "crop", "pad"], "how a picture is made square", flag_values=FLAGS
)


def main(argv: list[str]) -> int:
  if argv:
    raise ValueError(f"unexpected {argv}; pictures are given by --image=FILE")
  if not _MODEL.value or not _IMAGE.value:
    raise ValueError("--model=DIR and --image=FILE are needed; see vilau reconstruct --help")
  import numpy as np  # flags first: jax takes seconds
  from rich.console import Console
  from rich.table import Table

  from vilau_jax import api
  from vilau_jax.data import media
  from vilau_jax.generate.gallery import writable

  output = writable(_OUTPUT.value)
  model = api.load(_MODEL.value)
  if model.config.tower is None:
    raise ValueError(f"{_MODEL.value} has no vision tower")
  side, depth = model.config.tower.image_size, model.config.tower.quantizer.depth
  squares = np.stack([media.to_square(path, side, _GEOMETRY.value) for path in _IMAGE.value])
  codes = model.encode_images(squares)
  steps = [model.decode_codes(codes[..., :r]) for r in range(1, depth + 1)]
  depths = [f"{r} code{'s' * (r > 1)}" for r in range(1, depth + 1)]
  stems = [pathlib.Path(path).stem for path in _IMAGE.value]
  table = Table("picture", *depths, title="PSNR in dB", title_justify="left")
  for i, path in enumerate(_IMAGE.value):
    figures = [f"{psnr(squares[i], step[i]):.2f}" for step in steps]
    table.add_row(pathlib.Path(path).name, *figures)
    captions = ["picture", *(f"{d}: {f} dB" for d, f in zip(depths, figures))]
    scale = max(1, 128 // side)
    sheet = media.contact_sheet(
      [squares[i], *(step[i] for step in steps)], depth + 1, captions, scale=scale
    )
    number = f"-{i}" if stems.count(stems[i]) > 1 else ""
    print(media.write_image(sheet, output / f"reconstruction-{stems[i]}{number}.png"))
  Console().print(table)
  return 0


def psnr(want, got) -> float:
  """Peak signal-to-noise ratio of uint8 pictures, in dB."""
  import numpy as np

  error = np.mean((want.astype(np.float64) - got) ** 2)
  return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))
