r"""Quickstart, stage 1: a small vision tower on emoji scenes, emoji videos and easy-vqa.

vilau train --config=configs/quickstart_tower.py --workdir=runs/quickstart/tower

Two CPU cores, four to seven minutes. The recipe is a small search on exactly this data: 60-pixel
pictures in 25 patches, 4 codes a patch from 256 entries. Arguments: "smoke" (a few steps, to see
that all is well), "long" (several times the steps).
"""

from vilau_jax.train import defaults


def get_config(arg=""):
  c = defaults.tower()
  c.runs = "runs/quickstart"
  c.data.root = c.get_ref("runs") + "/data"
  c.steps = defaults.pick(arg, {"": 1550, "smoke": 24, "long": 6200})
  c.batch_size = 16
  c.model = dict(preset="quickstart", dtype="float32", remat="none")
  c.optim.update(
    dict(peak_lr=3e-3, b1=0.9, b2=0.98, weight_decay=0.01, end_lr_fraction=0.03, clip=1.0)
  )
  c.optim.muon = True  # a decibel more than AdamW after the same steps
  c.optim.warmup = 4 if arg == "smoke" else 50
  c.optim.freeze = ()  # nothing is pretrained: the text encoder learns too
  # Transformers want a smaller rate than the convolutions; at theirs the texts learn nothing.
  c.optim.lr_multipliers = {"tower/vision": 0.4, "tower/text": 0.35}
  c.loss.update(dict(contrastive=0.3, mse=1.0, l1=0.2, commitment=0.25))
  # Few captions are different in a batch of 16, so equal ones must not count as negatives.
  c.loss.update(dict(temperature=10.0, bias=-5.0, equal_captions=True))
  # Nor do chance pairs of a batch teach which of two objects is on the left, or which two they are.
  c.loss.wrong_captions = 2.0
  c.loss.quantizer_start = c.steps * 8 // 100
  shapes = 0.5 if arg == "long" else 0.45  # scenes are learned well before them
  c.data.mixture = (
    dict(path="emoji/train_scenes", weight=0.8 * (1 - shapes)),
    dict(path="emoji/train_videos", weight=0.2 * (1 - shapes)),
    dict(path="easy_vqa/train", weight=shapes),
  )
  c.data.augment = "none"
  c.data.tokenizer_size = 768
  c.data.threads = 1
  c.ckpt = dict(every=8 if arg == "smoke" else 100, keep=1, keep_every=0)
  c.log.update(
    dict(every=4, samples_every=c.steps)
    if arg == "smoke"
    else dict(every=25, samples_every=-(-c.steps // 4))  # the last of four after the last step
  )
  return c
