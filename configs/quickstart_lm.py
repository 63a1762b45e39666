r"""Quickstart, stage 2: a small language model that reads and draws with that tower's codes.

vilau train --config=configs/quickstart_lm.py --workdir=runs/quickstart/lm

Two CPU cores, six to eleven minutes. Needs runs/quickstart/tower and its codes (`vilau tokenize`)
in runs/quickstart/codes. Rows of 256 positions hold five drawings, two videos, or two pictures with
all their questions. Arguments: "smoke" (a few steps), "long" (several times the steps).
"""

from vilau_jax.train import defaults

SCENES, VIDEOS, VQA = "emoji/train_scenes", "emoji/train_videos", "easy_vqa/train"


def get_config(arg=""):
  c = defaults.lm()
  c.runs = "runs/quickstart"
  c.init_from = dict(tower=c.get_ref("runs") + "/tower")
  c.data.root = c.get_ref("runs") + "/data"
  c.data.codes = c.get_ref("runs") + "/codes"
  c.steps = defaults.pick(arg, {"": 1260, "smoke": 16, "long": 6600})
  c.batch_size = 8
  c.model = dict(preset="quickstart", dtype="float32", remat="none")
  c.code_scale = "auto"
  c.optim.update(
    dict(peak_lr=3.5e-3, b1=0.9, b2=0.98, weight_decay=0.02, end_lr_fraction=0.02, clip=1.0)
  )
  c.optim.muon = True  # drawings are right after half of AdamW's steps
  c.optim.warmup = 4 if arg == "smoke" else 50
  # Answers are few tokens: at 1.5 which side a thing is on stays unlearned; at 3.5 drawings suffer.
  c.loss.text = 3.0
  # The first codes carry the object, the last ones its texture.
  c.loss.code_depth_weights = (1.5, 1.2, 0.8, 0.5)
  c.data.mixture = (  # weight: share of samples
    dict(path=SCENES, form="t2i", weight=0.5),
    dict(path=SCENES, form="i2t", weight=0.21),
    dict(path=VIDEOS, form="t2v", weight=0.11),
    dict(path=VIDEOS, form="v2t", weight=0.08),
    dict(path=VQA, form="i2t", weight=0.08),
    dict(path=VQA, form="t2i", weight=0.02),
  )
  c.data.row = dict(length=256, slots=200, targets=100, window=512)
  c.data.cfg_dropout = 0.1
  # Questions about a picture share its codes, but none sees another's answer.
  c.data.max_turns, c.data.shuffle_turns, c.data.caption_turn = 7, True, True
  c.data.independent_turns = True
  c.data.tokenizer_size = 768
  c.data.threads = 1
  c.ckpt = dict(every=8 if arg == "smoke" else 150, keep=1, keep_every=0)
  c.log.update(dict(every=4 if arg == "smoke" else 25, samples_every=0, prompts=()))
  return c
