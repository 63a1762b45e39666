r"""Table 7, first row: the 256 px tower learns reconstruction alone, on 25 M pictures.

vilau train --config=configs/ablation_tower_recon_only.py --workdir=gs://BUCKET/tower_recon_only \
  --config.data.root=gs://BUCKET/records --config.init_from.siglip=gs://BUCKET/siglip_large_256

64 TPU v5e chips (v5e:8x8); one pass over 25 M pictures is 48,800 steps. A language model is then
trained on its codes with ShareGPT4V and MMC4 only, to compare understanding
(pretrain_7b_256.py with those two entries of data.mixture).

Planned by `vilau plan`:
  v5e:8x8: 3.94 of 16.00 GiB a device, FLOPs 1.08 x the model's, a step takes at least 0.0621 s
    (compute), MFU at most 93 %

Where the numbers come from: tower_256.py without the contrastive loss; the paper says no more.
"""

from vilau_jax.train import defaults


def get_config(arg=""):
  c = defaults.tower()
  c.model.preset = "vilau_7b_256"
  c.steps, c.batch_size = 48_800, 512
  c.mesh.update(dict(data=-1, fsdp=8))
  c.init_from.siglip = "models/siglip_large_256"
  c.optim.update(dict(peak_lr=8e-5, b1=0.5, b2=0.9, warmup=2_000, end_lr_fraction=0.5))
  c.optim.lr_multipliers = {"tower/vision": 0.5}
  c.loss.update(dict(contrastive=0.0))
  c.loss.update(dict(lpips=1.0, lpips_weights="models/lpips_vgg16.npz", gan=0.75))
  c.loss.disc.start_step = 5_000
  c.data.root = "records"
  c.data.mixture = (dict(path="coyo_25m", weight=1.0),)
  c.data.workers = 16
  c.ckpt = dict(every=2_000, keep=2, keep_every=10_000)
  c.log.update(dict(every=100, samples_every=5_000))
  return c
