r"""Stage 3: supervised fine-tuning of the 7B model at 256 px.

vilau train --config=configs/sft_7b_256.py --workdir=gs://BUCKET/sft_7b \
  --config.data.codes=gs://BUCKET/codes_256 --config.init_from.whole=gs://BUCKET/pretrain_7b

64 TPU v6e chips (v6e:8x8). One epoch of instruction data, with drawings and videos kept in.

Planned by `vilau plan`:
  v6e:8x8: 22.34 of 32.00 GiB a device, FLOPs 1.30 x the model's, a step takes at least 2.42 s
    (compute), MFU at most 77 %

Where the numbers come from: the released scripts: as in pretrain_7b_256.py with peak 1e-4; mixture
weights are the sizes of the data sets in millions. Rows are those of pre-training, of which this
mixture fills 97.6 % (`python -m vilau_jax.bench.data --only=rows`); most of its samples are
drawings, so rows with less room for targets stay emptier (2560: 90 %).
"""

from vilau_jax.train import defaults


def get_config(arg=""):
  c = defaults.lm()
  c.model = dict(preset="vilau_7b_256", dtype="bfloat16", remat="nothing_saveable")
  c.model.llm = dict(vocab_multiple=128)
  c.steps, c.batch_size = 5_000, 512
  c.mesh.update(dict(data=1, fsdp=-1))
  c.init_from = dict(whole="models/pretrain_7b_256")
  c.optim.update(dict(peak_lr=1e-4, warmup=150))
  c.data.codes = "codes_256"
  c.data.mixture = (
    dict(path="internal_generation", form="t2i", weight=15.0),
    dict(path="vflan", form="sft", weight=2.4),
    dict(path="openvid", form="t2v", weight=1.0),
    dict(path="sharegpt4v_sft", form="sft", weight=0.66),
    dict(path="wit_subset", form="sft", weight=0.54),
    dict(path="sherlock", form="sft", weight=0.32),
    dict(path="sharegpt_video", form="sft", weight=0.25),
    dict(path="video_chatgpt", form="sft", weight=0.1),
    dict(path="shot2story", form="sft", weight=0.04),
    dict(path="vatex", form="sft", weight=0.03),
    dict(path="scienceqa", form="sft", weight=0.012),
    dict(path="youcook2", form="sft", weight=0.01),
  )
  c.data.row = dict(length=4096, slots=3840, targets=3072, window=8192)
  c.data.workers = 8
  c.ckpt = dict(every=250, keep=2, keep_every=1_000)
  c.log.every = 10
  return c
