r"""Stage 1 at 384 px: SigLIP-SO400M tower with 27x27x16 codes.

vilau train --config=configs/tower_384.py --workdir=gs://BUCKET/tower_384 \
  --config.data.root=gs://BUCKET/records --config.init_from.siglip=gs://BUCKET/siglip_so400m_384

64 TPU v5e chips (v5e:8x8); one pass over 700 M pairs is 1.37 M steps. The paper reports rFID
1.25 and 78.0 % ImageNet zero-shot top-1 (Table 1).

Planned by `vilau plan`:
  v5e:8x8: 7.94 of 16.00 GiB a device, FLOPs 1.10 x the model's, a step takes at least 0.285 s
    (memory), MFU at most 65 %

Where the numbers come from: as in tower_256.py. The latent grid of 24 (27 resized) follows from the
decoder's factor of 16; the learning rate of the smaller model is kept.
"""

from vilau_jax.train import defaults


def get_config(arg=""):
  c = defaults.tower()
  c.model.preset = "vilau_7b_384"
  c.steps, c.batch_size = 1_370_000, 512
  c.mesh.update(dict(data=-1, fsdp=16))
  c.init_from.siglip = "models/siglip_so400m_384"
  c.optim.update(dict(peak_lr=8e-5, b1=0.5, b2=0.9, warmup=10_000, end_lr_fraction=0.5))
  c.optim.lr_multipliers = {"tower/vision": 0.5}
  c.loss.update(dict(lpips=1.0, lpips_weights="models/lpips_vgg16.npz", gan=0.75))
  c.loss.disc.start_step = 20_000
  c.data.root = "records"
  c.data.mixture = (dict(path="coyo", weight=1.0),)
  c.data.workers = 16
  c.ckpt = dict(every=5_000, keep=2, keep_every=100_000)
  c.log.update(dict(every=100, samples_every=5_000))
  return c
