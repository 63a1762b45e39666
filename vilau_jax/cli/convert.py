"""PyTorch checkpoints in and out, bit for bit

vilau convert import FORMAT --source=PATH --output=DIR [--tower_tokenizer=FILE]
    checkpoint -> model directory. FORMAT and what PATH is:
      vila-u  a release folder: config.json, llm/, vision_tower/, mm_projector/
      siglip  a Hugging Face folder, or big_vision's .npz
      llama   a Hugging Face folder (safetensors or .bin, one file or shards with their index)
      rqvae   a folder with config.yaml and model.pt
    PATH may be hf://owner/name (pip install -e '.[hub]'). Every tensor of the source is used
    or listed as not used with the reason; anything else is an error that lists all that is wrong.
    Tensors keep their dtype. manifest.json in DIR names each with its shape, dtype and SHA-256.
vilau convert export FORMAT --model=DIR --output=PATH [--dtype=bfloat16] [--shard_gb=5]
    model directory or training workdir -> checkpoint folder that transformers (llama, siglip), the
    VILA-U code (vila-u) or rq-vae-transformer (rqvae) open. A model with an extension that the
    format has no place for is refused. Releases of VILA-U are bfloat16; what is trained here is
    float32, and stays it without --dtype.
vilau convert verify --model=DIR --source=PATH
    reads both again and compares every bit.
vilau convert merge --model=DIR --output=DIR
    workdir of a run with adapters (config.lora) -> model directory in which they are added to the
    weights beside them; export takes that.

Both directions hold one tensor at a time in memory. An interrupted run leaves nothing behind.
"""

import difflib

from absl import flags, logging

from vilau_jax.cli.given import none

FLAGS = flags.FlagValues()
_SOURCE = flags.DEFINE_string(
  "source", None, "import, verify: checkpoint folder or file, or hf://owner/name", flag_values=FLAGS
)
_MODEL = flags.DEFINE_string(
  "model", None, "export, verify: model directory or training workdir", flag_values=FLAGS
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "import, export: what to write; must not exist yet", flag_values=FLAGS
)
_TEXTS = flags.DEFINE_string(
  "tower_tokenizer",
  None,
  "import: SigLIP's sentencepiece model (spiece.model), for embed_texts",
  flag_values=FLAGS,
)
_SHARD = flags.DEFINE_float(
  "shard_gb",
  5.0,
  "export: size of a safetensors file at most, in 10^9 bytes",
  lower_bound=1e-6,
  flag_values=FLAGS,
)
_DTYPE = flags.DEFINE_enum(
  "dtype", None, ["bfloat16", "float32"], "export: of all tensors; default as stored",
  flag_values=FLAGS,
)  # fmt: skip
_NEEDS = {"import": ("source", "output"), "export": ("model", "output"),
          "verify": ("model", "source"), "merge": ("model", "output")}  # fmt: skip


def main(argv: list[str]) -> int:
  action = argv[0] if argv else ""
  if action not in _NEEDS or len(argv) != (1 if action in ("verify", "merge") else 2):
    raise ValueError("expected import FORMAT, export FORMAT, verify or merge, got "
                     f"{' '.join(argv)!r}; see vilau convert --help")  # fmt: skip
  given = dict(source=_SOURCE.value, model=_MODEL.value, output=_OUTPUT.value)
  for name in _NEEDS[action]:
    if not given[name]:
      raise ValueError(f"--{name} is missing; see vilau convert --help")
  idle = {"source", "model", "output"} - set(_NEEDS[action])
  idle |= {"tower_tokenizer"} if action != "import" else set()
  idle |= {"shard_gb", "dtype"} if action != "export" else set()
  none(FLAGS, idle, f"{action} does not use it")
  from vilau_jax import convert  # flags first: jax takes seconds

  if action == "merge":
    return _merge(given["model"], given["output"])
  if action != "verify" and argv[1] not in convert.FORMATS:
    near = difflib.get_close_matches(argv[1], convert.FORMATS, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"unknown format {argv[1]!r}{hint}; known: {', '.join(convert.FORMATS)}")
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.FATAL)  # orbax logs the traceback of what it raises
  try:
    report = _convert(action, argv, given)
  finally:
    logging.set_verbosity(verbosity)
  print(report.table())
  print(f"{report.action} {report.source} -> {report.output} in {report.seconds:.1f} s")
  return 0


def _convert(action: str, argv: list[str], given: dict[str, str]):
  from vilau_jax import convert
  from vilau_jax.cli.interrupts import Interrupts
  from vilau_jax.cli.progress import Bar

  with Interrupts() as interrupts, Bar("tensors") as bar:

    def seen(done: int, total: int) -> None:
      bar.update(done, total)
      interrupts.check()

    if action == "import":
      return convert.import_checkpoint(
        argv[1], given["source"], given["output"], tower_tokenizer=_TEXTS.value, progress=seen
      )
    elif action == "export":
      return convert.export_checkpoint(
        argv[1], given["model"], given["output"], shard_bytes=int(_SHARD.value * 1e9),
        dtype=_DTYPE.value, progress=seen,
      )  # fmt: skip
    else:
      return convert.verify(given["model"], given["source"], progress=seen)


def _merge(model: str, output: str) -> int:
  from vilau_jax import checkpoint
  from vilau_jax.convert.importer import replacing

  if not checkpoint.read_config(model).get("experiment", {}).get("lora", {}).get("rank"):
    raise ValueError(f"{model} is no run with adapters: there is nothing to merge")
  with replacing(output) as partial:
    loaded = checkpoint.load_model(model)  # which merges
    checkpoint.save_model(
      partial, loaded.config, loaded.variables, loaded.tokenizer_path, loaded.tower_tokenizer_path
    )
  print(f"merged {model} -> {output}")
  return 0
