r"""The VQGAN baseline of Table 1: the CNN tower of rqvae_256.py with one code a position.

vilau train --config=configs/vqgan_256.py --workdir=gs://BUCKET/vqgan_256 \
  --config.data.root=gs://BUCKET/records

8 TPU v5e chips (v5e:2x4); ten passes over ImageNet (1.28 M pictures) are 100,000 steps of 128. The
paper quotes rFID 4.98 for VQGAN with 16x16 codes.

Where the numbers come from: as in rqvae_256.py, whose quantiser has depth 1 here; the codebook of
16384 entries is that of the published VQGAN. Codes of a depth of 1 are learned by moving averages
here, not by VQGAN's gradient.
"""

from vilau_jax.train import defaults


def get_config(arg=""):
  c = defaults.tower()
  c.model.update(dict(preset="rqvae_256", dtype="float32"))
  c.model.tower = dict(quantizer=dict(depth=1))
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
