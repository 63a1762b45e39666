r"""Stage 2: multimodal pre-training of the 7B model at 384 px, 16 codes a position.

vilau train --config=configs/pretrain_7b_384.py --workdir=gs://BUCKET/pretrain_7b_384 \
  --config.data.codes=gs://BUCKET/codes_384 --config.init_from.llm=gs://BUCKET/llama_2_7b \
  --config.init_from.tower=gs://BUCKET/tower_384

128 TPU v5p chips (v5p:4x4x8) or 64 H100 (h100:8x8). About 23.2 M samples, one epoch. The depth
transformer, 16 tokens a drawn position, costs more than the language model.

Planned by `vilau plan`:
  h100:8x8: 45.61 of 72.81 GiB a device, FLOPs 1.35 x the model's, a step takes at least 3.65 s
    (compute), MFU at most 74 %
  v5p:4x4x8: 26.56 of 95.00 GiB a device, FLOPs 1.33 x the model's, a step takes at least 3.86 s
    (compute), MFU at most 75 %

Where the numbers come from: as in pretrain_7b_256.py. A drawn picture takes 729 positions and a
video 5832, so rows are of 8192 positions (the released scripts' length) and half as many: about
1,050 samples a step, 22,000 steps an epoch. At most 128 devices share the parameters: more do not
divide the code width of 1152.
"""

from vilau_jax.train import defaults


def get_config(arg=""):
  c = defaults.lm()
  c.model.preset = "vilau_7b_384"
  c.model.llm = dict(vocab_multiple=128)
  c.steps, c.batch_size = 22_000, 256
  c.mesh.update(dict(data=1, fsdp=-1))
  c.init_from = dict(tower="models/tower_384", llm="models/llama_2_7b")
  c.optim.update(dict(peak_lr=5e-5, warmup=660))
  c.data.codes = "codes_384"
  c.data.mixture = (
    dict(path="internal_generation", form="t2i", weight=15.0),
    dict(path="mmc4_core", form="interleaved", weight=6.0),
    dict(path="sharegpt4v_pretrain", form="i2t", weight=1.25),
    dict(path="openvid", form="t2v", weight=1.0),
  )
  c.data.row = dict(length=8192, slots=7290, targets=5832, window=8192)
  c.loss.code_chunk = 486  # see pretrain_7b_256.py
  c.data.workers = 8
  c.ckpt = dict(every=250, keep=2, keep_every=1_000)
  c.log.every = 10
  return c
