"""Training runs of a few seconds: --config=tests/chaos/configs.py:STAGE,ROOT."""

import copy

from vilau_jax.train import defaults

SMALL = dict(
  vision=dict(depth=2),
  text=dict(depth=1, vocab_size=0),
  decoder=dict(multipliers=(1, 2), blocks=0, attention_resolutions=(), pixel_shuffle=4),
)
STEPS = {"tower": 40, "lm": 40}
SCENES = "emoji/train_scenes"


def get_config(arg=""):
  stage, root = arg.split(",")
  model = dict(preset="tiny", dtype="float32", remat="none", tower=copy.deepcopy(SMALL))
  if stage == "tower":
    c = defaults.tower()
    c.data.root, c.data.mixture = f"{root}/data", (dict(path=SCENES, weight=1.0),)
    c.data.augment = "none"
    c.optim.freeze = ()
  else:
    c = defaults.lm()
    model["llm"], model["system_prompt"] = dict(vocab_size=0), ""
    c.init_from = dict(tower=f"{root}/tower")
    c.data.root = f"{root}/codes"
    c.data.mixture = (
      dict(path=SCENES, form="t2i", weight=1.0),
      dict(path=SCENES, form="i2t", weight=1.0),
    )
    c.data.max_turns = 2
    c.data.row.update(dict(length=192, slots=64, targets=48, window=32))
  c.model = model
  c.steps, c.batch_size, c.data.tokenizer_size, c.data.threads = STEPS[stage], 8, 300, 1
  c.optim.update(dict(peak_lr=1e-3, warmup=2))
  c.ckpt.update(dict(every=4, keep=3))
  c.log.update(dict(every=1, samples_every=0))
  c.guard.hang_after, c.guard.start_within = 240.0, 400.0
  return c
