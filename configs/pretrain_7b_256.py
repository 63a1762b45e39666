r"""Stage 2: multimodal pre-training of the 7B model at 256 px.

vilau train --config=configs/pretrain_7b_256.py --workdir=gs://BUCKET/pretrain_7b \
  --config.data.codes=gs://BUCKET/codes_256 --config.init_from.llm=gs://BUCKET/llama_2_7b \
  --config.init_from.tower=gs://BUCKET/tower_256

256 TPU v5e chips (v5e:16x16), parameters and optimizer state shared by all of them. About 23.2 M
samples, one epoch.

Planned by `vilau plan`:
  v5e:16x16: 10.94 of 16.00 GiB a device, FLOPs 1.30 x the model's, a step takes at least 2.82 s
    (compute), MFU at most 77 %
Drawing one picture with guidance (--workload=generate), all limited by memory:
  v6e:1x1: 18.01 of 32.00 GiB, at least 11.0 ms a position
  h100:1x1: 14.65 of 72.81 GiB, at least 5.3 ms a position
  v5e:1x1, --int8: 8.35 of 16.00 GiB, at least 10.9 ms a position
  v5e:2x4: 3.01 of 16.00 GiB a device, at least 2.3 ms a position

Where the numbers come from: the released scripts: AdamW (0.9, 0.999), peak 5e-5, 3 % warm-up,
cosine to 0, no weight decay, linear RoPE scaling 2 over 4096 positions; mixture weights are the
sizes of the data sets. Their global_bs=512 is divided by nodes but used per GPU, so the effective
batch was 4096 sequences. Here a batch is 512 full rows of 4096 positions, about 2,600 samples: a
mean of some 780 positions each, as MMC4 and videos are long, and so 9,000 steps for an epoch (from
the lengths in vilau_jax/bench/data.py; your data's own decide). Clipping at 1.0 is ours (theirs
most likely did not clip), and so is caption dropout of 0.1: the released data classes have none,
yet guidance is used when drawing.
"""

from vilau_jax.train import defaults


def get_config(arg=""):
  c = defaults.lm()
  c.model.preset = "vilau_7b_256"
  c.model.llm = dict(vocab_multiple=128)
  c.steps, c.batch_size = 9_000, 512
  c.mesh.update(dict(data=1, fsdp=-1))
  c.init_from = dict(tower="models/tower_256", llm="models/llama_2_7b")
  c.optim.update(dict(peak_lr=5e-5, warmup=270))
  c.data.codes = "codes_256"
  c.data.mixture = (
    dict(path="internal_generation", form="t2i", weight=15.0),
    dict(path="mmc4_core", form="interleaved", weight=6.0),
    dict(path="sharegpt4v_pretrain", form="i2t", weight=1.25),
    dict(path="openvid", form="t2v", weight=1.0),
  )
  c.data.row = dict(length=4096, slots=3840, targets=3072, window=8192)
  # Every piece gathers the depth transformer anew: larger ones send less and take more memory.
  c.loss.code_chunk = 768
  c.data.workers = 8
  c.ckpt = dict(every=250, keep=2, keep_every=1_000)
  c.log.every = 10
  return c
