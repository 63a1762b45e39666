r"""The RQ-VAE baseline of Table 8: a CNN tower with 16x16x4 codes and no text alignment.

vilau train --config=configs/rqvae_256.py --workdir=gs://BUCKET/rqvae_256 \
  --config.data.root=gs://BUCKET/records

8 TPU v5e chips (v5e:2x4); ten passes over ImageNet (1.28 M pictures) are 100,000 steps of 128. The
paper quotes rFID 1.30 for this geometry, which was never released.

Planned by `vilau plan`:
  v5e:2x4: 9.94 of 16.00 GiB a device, FLOPs 1.05 x the model's, a step takes at least 0.186 s
    (memory), MFU at most 59 %

Where the numbers come from: RQ-VAE's released ImageNet configs: Adam (0.5, 0.9), a constant 4e-5
after half an epoch of warm-up, batch 128, float32, no clipping, adversarial weight 0.75 from the
start, random squares half of which are mirrored. The 16x16 geometry (channel multipliers
1,1,2,2,4) is the paper's.
"""

from vilau_jax.train import defaults


def get_config(arg=""):
  c = defaults.tower()
  c.model.update(dict(preset="rqvae_256", dtype="float32"))
  c.steps, c.batch_size = 100_000, 128
  c.optim.update(dict(peak_lr=4e-5, b1=0.5, b2=0.9, warmup=5_000, end_lr_fraction=1.0, clip=0.0))
  c.optim.freeze = ()
  c.loss.update(dict(contrastive=0.0, lpips=1.0, lpips_weights="models/lpips_vgg16.npz", gan=0.75))
  c.loss.disc.start_step = 0
  c.data.root = "records"
  c.data.mixture = (dict(path="imagenet_train", weight=1.0),)
  c.data.augment = "crop_flip"
  c.data.workers = 16
  c.ckpt = dict(every=5_000, keep=2, keep_every=20_000)
  c.log.update(dict(every=100, samples_every=5_000))
  return c
