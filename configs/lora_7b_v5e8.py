r"""Fine-tuning of the 7B model by adapters on one TPU v5e-8.

vilau train --config=configs/lora_7b_v5e8.py --workdir=gs://BUCKET/lora_7b \
  --config.data.root=gs://BUCKET/codes_mine --config.init_from.whole=gs://BUCKET/vila-u-7b-256

8 TPU v5e chips (v5e:2x4). The model's own weights stay as they are, sharded over the chips;
adapters of rank 16 learn beside every projection of the language model, the projector and the depth
transformer. Afterwards
  vilau convert merge --model=gs://BUCKET/lora_7b --output=merged
writes a model without adapters, which `vilau convert export` takes.

Planned by `vilau plan`:
  v5e:2x4: 13.22 of 16.00 GiB a device, FLOPs 2.12 x the model's, a step takes at least 2.96 s
    (compute), MFU at most 47 %

Where the numbers come from: LoRA's paper has alpha twice the rank and rates about ten times those
of full fine-tuning; the rest as in sft_7b_256.py.
"""

from vilau_jax.train import defaults


def get_config(arg=""):
  c = defaults.lm()
  c.model = dict(preset="vilau_7b_256", dtype="bfloat16", remat="nothing_saveable")
  c.model.llm = dict(vocab_multiple=128)
  c.steps, c.batch_size = 2_000, 32
  c.mesh.update(dict(data=1, fsdp=8))
  c.init_from = dict(whole="models/vila-u-7b-256")
  c.lora = dict(rank=16, alpha=32.0, targets=("llm", "projector", "depth"), base="")
  c.optim.update(dict(peak_lr=2e-4, warmup=60))
  c.data.root = "codes_mine"
  c.data.mixture = (dict(path="mine", form="sft", weight=1.0),)
  c.data.row = dict(length=2048, slots=1792, targets=1280, window=2048)
  c.data.workers = 4
  c.ckpt = dict(every=100, keep=2, keep_every=0)
  c.log.every, c.log.samples_every = 10, 0
  return c
