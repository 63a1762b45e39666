r"""Table 8, first row: a 1.3B language model that draws with the codes of a plain RQ-VAE.

vilau train --config=configs/generation_1b3_rqvae.py --workdir=gs://BUCKET/table8_rqvae \
  --config.data.codes=gs://BUCKET/codes_rqvae --config.init_from.tower=gs://BUCKET/rqvae_256 \
  --config.init_from.llm=gs://BUCKET/sheared_llama_1b3

64 TPU v5e chips (v5e:8x8). Text to image only; the other row is generation_1b3_unified.py. The
paper reports MJHQ-30K FID 12.0 with the RQ-VAE and 13.2 with the unified tower.

Planned by `vilau plan`:
  v5e:8x8: 14.81 of 16.00 GiB a device, FLOPs 1.34 x the model's, a step takes at least 4.39 s
    (compute), MFU at most 75 %

Where the numbers come from: the released pre-training script (see pretrain_7b_256.py), one epoch of
15 M drawings of some 317 positions each, 13 to a row; the paper says nothing about the ablation's
schedule.
"""

from vilau_jax.train import defaults


def get_config(arg=""):
  c = defaults.lm()
  c.model.preset = "vilau_1b3_rqvae"
  c.model.llm = dict(vocab_multiple=128)
  c.steps, c.batch_size = 2_300, 512
  c.mesh.update(dict(data=1, fsdp=-1))
  c.init_from = dict(tower="models/rqvae_256", llm="models/sheared_llama_1b3")
  c.optim.update(dict(peak_lr=5e-5, warmup=70))
  c.data.codes = "codes_rqvae"
  c.data.mixture = (dict(path="internal_generation", form="t2i", weight=1.0),)
  c.data.row = dict(length=4096, slots=3584, targets=3584, window=8192)
  c.data.workers = 8
  c.ckpt = dict(every=250, keep=2, keep_every=1_000)
  c.log.every = 10
  return c
