"""Every field of an experiment with its default; files in configs/ start here and change what
differs.

The values are those of the paper and its released code where they are known: RQ-VAE's losses for
the tower stage, the released scripts for the language-model stage.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

# Dicts whose keys are the user's.
FREE = ("model", "init_from", "optim.lr_multipliers", "loss.disc.optim")
Value = TypeVar("Value")


def _shared() -> ConfigDict:
  c = ConfigDict()
  c.seed = 0
  c.mesh = dict(data=-1, fsdp=1, tensor=1, context=1, dcn_data=1)  # see sharding.make_mesh
  # every, keep: in steps and number of checkpoints; keep_every: multiples of it stay for good.
  c.ckpt = dict(every=500, keep=2, keep_every=0)
  c.log = dict(every=50, samples_every=1000, peak_flops=0.0)  # peak_flops: of a device that
  # plan/chips.py does not know, for MFU
  c.guard = dict(
    nonfinite_skips=0,  # steps with a loss or gradient that is not finite to leave out; then stop
    start_within=7200.0,  # seconds until the first step is done, which compiles; 0 = endless
    hang_after=1800.0,  # seconds without progress until a process gives up; 0 = never
  )
  # Component ("whole", "tower", "siglip", "decoder", "llm", ...) -> directory of a model.
  c.init_from = dict()
  # Adapters instead of weights: rank 0 = off; targets: path prefixes of the parts that get them
  # ("llm", "projector", "depth", "tower/vision", ..); base: type of the frozen projections in
  # memory, "" (theirs), "int8", "int4" or "nf4".
  c.lora = dict(rank=0, alpha=16.0, targets=("llm",), base="")
  c.runs = ""  # directory of sibling runs, for configs that build on each other
  # code_scale "auto": 1 / standard deviation of the tower's code sums, measured at the start.
  c.code_scale = "preset"
  return c


def _optim(**values) -> dict:
  base = dict(
    peak_lr=1e-4,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    weight_decay=0.0,
    decay_1d=False,  # also decay biases, norm scales and contrastive scalars
    warmup=0,
    end_lr_fraction=0.0,
    clip=1.0,  # global gradient norm; 0 = off
    accumulate=1,
    lr_multipliers=dict(),  # path prefix -> factor
    muon=False,  # extension: Muon for the matrices of transformer blocks, Adam for the rest
    ema=0.0,  # extension: decay of an averaged copy of the weights, which is what loads; 0 = off
  )
  return base | values


def tower() -> ConfigDict:
  """Fields of a stage "tower" experiment."""
  c = _shared()
  c.stage, c.steps, c.batch_size = "tower", 1_000_000, 512
  c.model = dict(preset="vilau_7b_256", dtype="bfloat16", remat="nothing_saveable")
  c.optim = _optim(peak_lr=8e-5, b1=0.5, b2=0.9, warmup=10_000, end_lr_fraction=0.5)
  c.optim.freeze = ("tower/text",)
  c.loss = dict(
    contrastive=1.0,
    reconstruction=1.0,
    mse=1.0,
    l1=0.0,
    commitment=0.25,
    lpips=0.0,
    lpips_weights="",  # VGG16 and lin weights, .safetensors or .npz
    gan=0.0,
    gan_mode="adaptive",
    gan_weight_low=0.0,
    gan_weight_high=1e4,
    temperature=10.0,  # where training starts from random weights
    bias=-10.0,
    contrastive_chunked=False,  # texts travel around the devices; for batches of many thousands
    equal_captions=False,  # extension: equal captions of a batch are positives
    # Extension: weight of telling a picture's caption from one that says one thing wrong; without
    # it, chance pairs of a batch hardly ever differ in order or number alone.
    wrong_captions=0.0,
    quantizer_start=0,  # extension: steps without quantiser, while the codebook already follows
  )
  # optim: what the discriminator's optimizer changes of the one above.
  c.loss.disc = dict(
    channels=64, layers=2, norm="batch", loss="hinge", start_step=20_000, optim=dict()
  )
  c.data = dict(
    root="",
    mixture=(),
    tower_tokenizer="",
    tokenizer_size=0,  # > 0: without a file, one of so many pieces is trained on the records
    canon="lower",
    augment="mix",
    threads=8,
    workers=0,
  )
  return c


def lm() -> ConfigDict:
  """Fields of a stage "lm" experiment: pre-training and fine-tuning."""
  c = _shared()
  c.stage, c.steps, c.batch_size = "lm", 6_000, 4096
  c.log.samples_every, c.log.prompts = 0, ()  # prompts: what samples are drawn for
  c.model = dict(preset="vilau_7b_256", dtype="bfloat16", remat="nothing_saveable")
  c.optim = _optim(peak_lr=5e-5, warmup=180)
  c.optim.freeze = ()
  c.loss = dict(
    text=1.0,
    image=1.0,
    code_depth_weights=(),  # extension: one weight a depth; () = ones
    text_chunk=1024,  # text positions of a row whose logits exist at once
    code_chunk=256,  # visual slots of a row that the depth transformer reads at once
    head_block=2048,  # vocabulary or codebook entries whose logits exist at once
    visual_fraction=1.0,  # extension: share of the supervised visual slots drawn at every step
  )
  c.data = dict(
    root="",
    mixture=(),
    codes="",  # where the mixture's paths begin, if not at root
    tokenizer="",
    tokenizer_size=0,  # > 0: without a file, one of so many pieces is trained on the records
    cfg_dropout=0.1,
    max_turns=0,
    shuffle_turns=False,
    caption_turn=False,
    independent_turns=False,
    threads=8,
    workers=0,
  )
  c.data.row = dict(length=4096, slots=2048, targets=2048, window=4096)
  return c


def pick(arg: str, choices: Mapping[str, Value]) -> Value:
  """What a config file's argument stands for.

  Raises:
    ValueError: for an unknown argument.
  """
  if arg not in choices:
    known = ", ".join(repr(k) for k in choices)
    raise ValueError(f"unknown config argument {arg!r}; known: {known}")
  return choices[arg]


def check(config: ConfigDict) -> None:
  """Checks that an experiment has exactly the fields of its stage.

  Raises:
    ValueError: naming unknown fields, with the nearest known one, and missing ones, or a number
      that must be at least 1.
  """
  stages = {"tower": tower, "lm": lm}
  stage = config.get("stage")
  if stage not in stages:
    raise ValueError(f"config.stage must be one of {sorted(stages)}, got {stage!r}")
  known, given = (set(_fields(c.to_dict())) for c in (stages[stage](), config))
  wrong = []
  for name in sorted(given - known):
    near = difflib.get_close_matches(name, known, 1)
    wrong.append(f"unknown field {name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
  wrong += [f"missing field {name!r}" for name in sorted(known - given)]
  if wrong:
    more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
    raise ValueError(f"this config is not a stage {stage!r} one: {'; '.join(wrong[:8])}{more}")
  positive = ("steps", "batch_size", "log.every", "ckpt.every", "optim.accumulate",
              "loss.text_chunk", "loss.code_chunk")  # fmt: skip
  for name in positive:
    section, _, field = name.rpartition(".")
    value = (config[section] if section else config).get(field, 1)
    if value < 1:
      raise ValueError(f"{name} must be at least 1, got {value}")


def _fields(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
  for key, value in tree.items():
    name = f"{prefix}{key}"
    if isinstance(value, Mapping) and name not in FREE:
      yield from _fields(value, f"{name}.")
    else:
      yield name
