r"""Fine-tuning of the 7B model on a single 80 GB GPU: adapters beside projections of 4 bits.

vilau train --config=configs/qlora_7b_gpu.py --workdir=runs/qlora_7b \
  --config.data.root=codes_mine --config.init_from.whole=models/vila-u-7b-256

One A100 or H100 of 80 GB. As lora_7b_v5e8.py, but in memory the projections under adapters are NF4
in tiles of 64; they are read whole when the run starts, which takes 29 GB for a moment. Afterwards
  vilau convert merge --model=runs/qlora_7b --output=merged
writes what was trained against: the rounded projections plus the adapters.

Run on an H200 with random weights and rows (`vilau bench --config=configs/qlora_7b_gpu.py`): at
most 48.7 GiB while it started and ran, 5.7 s a step, 5,800 tokens/s. The plan is of the step alone.

Planned by `vilau plan`:
  a100:1x1: 14.16 of 72.82 GiB a device, FLOPs 1.44 x the model's, a step takes at least 5.09 s
    (compute), MFU at most 69 %
  h100:1x1: 13.90 of 72.81 GiB a device, FLOPs 1.44 x the model's, a step takes at least 2.14 s
    (memory), MFU at most 52 %

Where the numbers come from: QLoRA's paper (NF4, tiles of 64, 2e-4), else lora_7b_v5e8.py.
"""

from vilau_jax.train import defaults


def get_config(arg=""):
  c = defaults.lm()
  c.model = dict(preset="vilau_7b_256", dtype="bfloat16", remat="nothing_saveable")
  c.model.llm = dict(vocab_multiple=128)
  c.steps, c.batch_size = 2_000, 16
  c.init_from = dict(whole="models/vila-u-7b-256")
  c.lora = dict(rank=16, alpha=32.0, targets=("llm", "projector", "depth"), base="nf4")
  c.optim.update(dict(peak_lr=2e-4, warmup=60, accumulate=4))
  c.data.root = "codes_mine"
  c.data.mixture = (dict(path="mine", form="sft", weight=1.0),)
  c.data.row = dict(length=2048, slots=1792, targets=1280, window=2048)
  c.data.workers = 4
  c.ckpt = dict(every=100, keep=2, keep_every=0)
  c.log.every, c.log.samples_every = 10, 0
  return c
