"""add a tower's codes to records

vilau tokenize --model=DIR --records=DIR --output=DIR
    copies records with the codes of their pictures and frames, which is what language-model
    training reads. Interrupted, it goes on with the first unfinished shard; finished, it returns at
    once. Batches are shared by the devices of this process.
vilau tokenize .. --process_index=0 --process_count=4
    one of four processes, on machines that share a disk: each takes every fourth shard, and the
    last one to end finishes the directory
"""

import time

from absl import flags

FLAGS = flags.FlagValues()
_MODEL = flags.DEFINE_string(
  "model", None, "tower: training workdir or model directory (required)", flag_values=FLAGS
)
_RECORDS = flags.DEFINE_string(
  "records", None, "directory of records (required)", flag_values=FLAGS
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "directory for the copy (required)", flag_values=FLAGS
)
_BATCH = flags.DEFINE_integer(
  "batch_size",
  None,
  "pictures encoded at once (as many as the devices take)",
  lower_bound=1,
  flag_values=FLAGS,
)
_INDEX = flags.DEFINE_integer(
  "process_index", 0, "which of the processes this is", lower_bound=0, flag_values=FLAGS
)
_PROCESSES = flags.DEFINE_integer(
  "process_count", 1, "processes at work", lower_bound=1, flag_values=FLAGS
)
_KEEP = flags.DEFINE_bool("keep_images", True, "keep the pictures in the copy", flag_values=FLAGS)


def main(argv: list[str]) -> int:
  if argv:
    raise ValueError(f"unexpected {argv}; see vilau tokenize --help")
  for flag in (_MODEL, _RECORDS, _OUTPUT):
    if not flag.value:
      raise ValueError(f"--{flag.name}=DIR is missing; see vilau tokenize --help")
  from vilau_jax import api  # flags first: jax takes seconds
  from vilau_jax.cli.progress import Bar
  from vilau_jax.data import codes

  model = api.load(_MODEL.value)
  identity = model.tower_id()  # refuses models without a tower
  tower = model.config.tower
  began = time.monotonic()

  def encode(images):
    return model.encode_images(images).reshape(len(images), tower.image_tokens, -1)

  with Bar("records") as bar:
    written = codes.add_codes(
      _RECORDS.value, _OUTPUT.value, encode, identity, image_size=tower.image_size,
      batch_size=_BATCH.value or model.runtime.vision.full_batch,
      keep_images=_KEEP.value, progress=bar.update,
      process=(_INDEX.value, _PROCESSES.value),
    )  # fmt: skip
  seconds = time.monotonic() - began
  if written is None:
    print(f"{_OUTPUT.value}: this process is done after {seconds:.1f} s, others are at work")
    return 0
  print(f"{_OUTPUT.value}: {len(written)} records with codes of tower {identity}, {seconds:.1f} s")
  return 0
