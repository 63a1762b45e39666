"""components, parameters and geometry of a model or preset

vilau describe --model=DIR        a model directory, a training workdir or a VILA-U release
vilau describe --preset=vilau_7b_256 [--json]
    counts come from the shapes; nothing is allocated. Rows that pad the vocabulary, the codebook's
    moving averages, and vocabularies that a preset leaves to the tokenizer are not counted.
"""

import dataclasses
import json

from absl import flags

FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string(
  "model", None, "model directory or training workdir", flag_values=FLAGS
)
_PRESET = flags.DEFINE_string("preset", None, "name of an architecture", flag_values=FLAGS)
_JSON = flags.DEFINE_bool("json", False, "print one JSON object", flag_values=FLAGS)


def main(argv: list[str]) -> int:
  if argv or (_MODEL.value is None) == (_PRESET.value is None):
    raise ValueError("give either --model=DIR or --preset=NAME")
  from vilau_jax import checkpoint, convert  # flags first: jax takes seconds
  from vilau_jax.config import VilaUConfig

  if _PRESET.value is not None:
    config = VilaUConfig.from_preset(_PRESET.value)
  elif convert.is_release(_MODEL.value):
    config = convert.read_architecture("vila-u", _MODEL.value)
  else:
    config = checkpoint.model_config(_MODEL.value)
  result = {
    "name": config.name,
    "parameters": counts(config),
    "geometry": geometry(config),
    "config": config.to_dict(),
  }
  if _JSON.value:
    print(json.dumps(result))
  else:
    show(result)
  return 0


def counts(config) -> dict[str, int]:
  """Parameters by component; a vocabulary that comes with the tokenizer (size 0) counts nothing."""
  from vilau_jax.models.vilau import describe_parameters

  rows = {}  # component -> parameters of one vocabulary row
  tower, llm = config.tower, config.llm
  if llm is not None and not llm.vocab_size:
    rows["llm"] = llm.width * (1 if llm.tied else 2)
    config = dataclasses.replace(config, llm=dataclasses.replace(llm, vocab_size=1))
  if tower is not None and tower.text is not None and not tower.text.vocab_size:
    rows["text"] = tower.text.width
    tower = dataclasses.replace(tower, text=dataclasses.replace(tower.text, vocab_size=1))
    config = dataclasses.replace(config, tower=tower)
  parameters = describe_parameters(config)
  rows["total"] = sum(rows.values())
  return {name: count - rows.get(name, 0) for name, count in parameters.items()}


def geometry(config) -> dict:
  """Sizes that people ask for."""
  facts = {}
  if config.tower is not None:
    tower, codes = config.tower, config.tower.quantizer
    facts |= {
      "image": [tower.image_size] * 2, "grid": [tower.grid] * 2, "positions": tower.image_tokens,
      "codes_per_position": codes.depth, "codebook_entries": codes.entries,
      "code_width": codes.width * codes.fold**2, "video_frames": config.video_frames,
    }  # fmt: skip
  if config.llm is not None:
    facts |= {
      "vocabulary": config.llm.vocab_size,
      "context": int(config.llm.max_positions * config.llm.rope_scaling),
    }
  return facts


def show(result: dict) -> None:
  """Prints the tables."""
  from rich.console import Console
  from rich.table import Table

  console = Console()
  table = Table("component", "parameters", "float32", title=result["name"], title_justify="left")
  for name, count in result["parameters"].items():
    if name == "total":
      table.add_section()
    table.add_row(name, f"{count:,}", f"{count * 4 / 2**20:,.1f} MiB")
  console.print(table)
  facts = Table("geometry", "")
  for name, value in result["geometry"].items():
    shown = " x ".join(map(str, value)) if isinstance(value, list) else f"{value:,}"
    facts.add_row(name.replace("_", " "), shown)
  console.print(facts)
