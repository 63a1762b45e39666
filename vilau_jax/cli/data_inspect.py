"""what records hold: counts, sizes, samples and a contact sheet

vilau data inspect DIR [--output=FILE.png --count=40]
    DIR holds records, or directories of records
vilau data inspect DIR --as_batch --form=t2i [--model=DIR]
    also a packed row as the language model gets it; the records need codes (vilau tokenize)
"""

import pathlib
import tempfile

from absl import flags
from etils import epath

from vilau_jax import checkpoint
from vilau_jax.data import forms, inspect, media
from vilau_jax.data.records import INFO, Records
from vilau_jax.data.tokenizer import Tokenizer, record_texts, train_tokenizer

FLAGS = flags.FlagValues()
_OUTPUT = flags.DEFINE_string(
  "output", None, "file or folder of the pictures (default: inside DIR)", flag_values=FLAGS
)
_COUNT = flags.DEFINE_integer("count", 40, "records on the sheet", lower_bound=1, flag_values=FLAGS)
_AS_BATCH = flags.DEFINE_bool("as_batch", False, "draw a packed row", flag_values=FLAGS)
_FORM = flags.DEFINE_enum(
  "form",
  None,
  forms.FORMS,
  "how records become sequences (default: by their kind)",
  flag_values=FLAGS,
)
_LENGTH = flags.DEFINE_integer(
  "length", 320, "positions of the drawn row", lower_bound=8, flag_values=FLAGS
)
_MODEL = flags.DEFINE_string(
  "model",
  None,
  "take template and tokenizer.model from here (default: a tokenizer for DIR)",
  flag_values=FLAGS,
)


def main(argv: list[str]) -> int:
  if len(argv) != 1:
    raise ValueError(f"give one directory of records, got {argv}")
  root = epath.Path(argv[0])
  if not root.is_dir():
    raise ValueError(f"no directory at {root}")
  parts = [root] if (root / INFO).exists() else sorted(p.parent for p in root.glob(f"*/{INFO}"))
  if not parts:
    raise ValueError(f"{root} holds no records, nor does a directory in it: vilau data import ..")
  for part in parts:
    records = Records(part)
    print(inspect.summary(records))
    if any(record.get("images") or record.get("frames") for record in records):
      sheet = inspect.sheet(records, _COUNT.value)
      print(f"  sheet      {_write(sheet, part, 'sheet', alone=len(parts) == 1)}")
    if _AS_BATCH.value:
      print(f"  row        {_write(_row(records), part, 'row')}")
  return 0


def _write(picture, part: epath.Path, what: str, alone: bool = False) -> pathlib.Path:
  if "://" in str(part) and not _OUTPUT.value:
    raise ValueError(f"{part} is an object store: say with --output=DIR where pictures go")
  path = pathlib.Path(_OUTPUT.value or part)
  if path.suffix.lower() != ".png" or not alone:
    folder = path.parent if path.suffix.lower() == ".png" else path
    path = (
      folder / f"{what}.png" if str(folder) == str(part) else folder / f"{part.name}-{what}.png"
    )
  return media.write_image(picture, path)


def _row(records: Records):
  """A row of the first samples, with the model's template or a plain one."""
  with tempfile.TemporaryDirectory() as folder:
    if _MODEL.value:
      model = checkpoint.model_config(_MODEL.value)
      settings = forms.SequenceSettings.from_model(model, caption_turn=True)
      tokenizer = Tokenizer(pathlib.Path(_MODEL.value) / checkpoint.TOKENIZER)
    else:
      settings = forms.SequenceSettings(system_prompt="", frames=0, caption_turn=True)
      path = train_tokenizer(record_texts(records), pathlib.Path(folder) / "tokenizer.model")
      tokenizer = Tokenizer(path)
  form = _FORM.value or inspect.default_form(records)
  row = inspect.first_row(records, form, tokenizer, settings, _LENGTH.value)
  return inspect.draw_row(row, tokenizer)
