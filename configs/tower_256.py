r"""Stage 1 at 256 px: SigLIP-Large tower with 16x16x4 codes, contrastive and reconstruction losses.

vilau train --config=configs/tower_256.py --workdir=gs://BUCKET/tower_256 \
  --config.data.root=gs://BUCKET/records --config.init_from.siglip=gs://BUCKET/siglip_large_256

64 TPU v5e chips (v5e:8x8); one pass over 700 M pairs is 1.37 M steps. The paper reports rFID 1.80
and 73.3 % ImageNet zero-shot top-1 (Table 1).

Planned by `vilau plan`:
  v5e:8x8: 4.06 of 16.00 GiB a device, FLOPs 1.07 x the model's, a step takes at least 0.0646 s
    (compute), MFU at most 93 %
Tokenizing (--workload=tokenize):
  v5e:8x8: 3.39 of 16.00 GiB a device, at most 66,700 images/s

Where the numbers come from: losses and discriminator, RQ-VAE's released configs; loss weights 1 and
1, the SigLIP initialisation, the frozen text encoder and the global batch of 512, the paper. It
gives no learning rate, schedule or number of steps: peak 8e-5 is RQ-VAE's 4e-5 (batch 128) times
sqrt(4), the rest (half the rate for the encoder, warm-up, cosine, clipping) is our choice.
The tower tokenizer (SigLIP's c4_en model) comes with the imported SigLIP.
"""

from vilau_jax.train import defaults


def get_config(arg=""):
  c = defaults.tower()
  c.model.preset = "vilau_7b_256"
  c.steps, c.batch_size = 1_370_000, 512
  c.mesh.update(dict(data=-1, fsdp=8))
  c.init_from.siglip = "models/siglip_large_256"
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
