r"""Quickstart, stage 3: fine-tuning on drawings, films and questions, tables of words frozen.

vilau train --config=configs/quickstart_finetune.py --workdir=runs/quickstart/finetune

Two CPU cores, one or two minutes. Starts from runs/quickstart/lm with a smaller learning rate;
shows how parts are frozen by path. Arguments: "smoke", "long".
"""

from vilau_jax.train import defaults

SCENES, VIDEOS, VQA = "emoji/train_scenes", "emoji/train_videos", "easy_vqa/train"


def get_config(arg=""):
  c = defaults.lm()
  c.runs = "runs/quickstart"
  c.init_from = dict(whole=c.get_ref("runs") + "/lm")
  c.data.root = c.get_ref("runs") + "/data"
  c.data.codes = c.get_ref("runs") + "/codes"
  c.steps = defaults.pick(arg, {"": 230, "smoke": 8, "long": 450})
  c.batch_size = 8
  c.model = dict(preset="quickstart", dtype="float32", remat="none")
  c.optim.update(dict(peak_lr=1.5e-3, b1=0.9, b2=0.98, weight_decay=0.02, warmup=5, clip=1.0))
  c.optim.muon = True
  c.optim.freeze = ("llm/embed_tokens", "llm/lm_head")
  c.loss.text = 2.0  # less than before: answers are learned by now, drawings still gain
  c.loss.code_depth_weights = (1.5, 1.2, 0.8, 0.5)
  # Weight: share of samples. Twice the films of the stage before, which learns their motion last.
  c.data.mixture = (
    dict(path=SCENES, form="t2i", weight=0.42),
    dict(path=SCENES, form="i2t", weight=0.2),
    dict(path=VIDEOS, form="t2v", weight=0.22),
    dict(path=VIDEOS, form="v2t", weight=0.06),
    dict(path=VQA, form="i2t", weight=0.08),
    dict(path=VQA, form="t2i", weight=0.02),
  )
  c.data.row = dict(length=256, slots=200, targets=100, window=512)
  c.data.cfg_dropout = 0.1
  c.data.max_turns, c.data.shuffle_turns, c.data.caption_turn = 7, True, True
  c.data.independent_turns = True
  c.data.threads = 1
  c.ckpt = dict(every=4 if arg == "smoke" else 50, keep=1, keep_every=0)
  c.log.update(dict(every=2 if arg == "smoke" else 10, samples_every=0, prompts=()))
  return c
