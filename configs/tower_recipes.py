r"""Appendix C: five recipes for the 256 px tower that do not work, and how each differs.

vilau train --config=configs/tower_recipes.py:c0 --workdir=gs://BUCKET/recipe_c0 \
  --config.data.root=gs://BUCKET/records --config.data.tower_tokenizer=FILE
vilau train --config=configs/tower_recipes.py:c1 --workdir=gs://BUCKET/recipe_c1 \
  --config.data.root=gs://BUCKET/records --config.init_from.text=gs://BUCKET/siglip_large_256
vilau train --config=configs/tower_recipes.py:c2 --workdir=gs://BUCKET/recipe_c2 \
  --config.data.root=gs://BUCKET/records --config.data.tower_tokenizer=FILE \
  --config.init_from.encoder=gs://BUCKET/rqvae_256 --config.init_from.decoder=gs://BUCKET/rqvae_256
vilau train --config=configs/tower_recipes.py:c3 --workdir=gs://BUCKET/recipe_c3 \
  --config.data.root=gs://BUCKET/records --config.init_from.siglip=gs://BUCKET/siglip_large_256

| argument | differs from tower_256.py in | what the paper saw |
|---|---|---|
| c0 | everything from scratch, the text encoder learns too | about 5 % top-1 after several epochs |
| c1 | only the text encoder starts from SigLIP | alignment too slow at batch 512 |
| c2 | a CNN encoder and the decoder from RQ-VAE, all else from scratch | as c1 |
| c3 | the vision encoder is frozen; decoder and codebook learn | poor reconstruction |
| c4 | the text encoder learns | the contrastive loss damages the text weights early |

c4 as c3. 64 TPU v5e chips (v5e:8x8). FILE is a tokenizer, for texts that nothing pretrained reads;
c2 starts from a trained rqvae_256.py.

Where the numbers come from: tower_256.py, but for the steps, a seventh of its pass: the paper gives
up on each "after several epochs" of data it doesn't name, and describes it in a sentence.
"""

from vilau_jax.train import defaults

SIGLIP, RQVAE = "models/siglip_large_256", "models/rqvae_256"
RECIPES = {
  "c0": dict(init_from={}, freeze=()),
  "c1": dict(init_from={"text": SIGLIP}, freeze=("tower/text",)),
  "c2": dict(init_from={"encoder": RQVAE, "decoder": RQVAE}, freeze=()),
  "c3": dict(init_from={"siglip": SIGLIP}, freeze=("tower/text", "tower/vision")),
  "c4": dict(init_from={"siglip": SIGLIP}, freeze=()),
}


def get_config(arg="c0"):
  recipe = defaults.pick(arg, RECIPES)
  c = defaults.tower()
  c.model.preset = "recipe_c2_256" if arg == "c2" else "vilau_7b_256"
  c.steps, c.batch_size = 200_000, 512
  c.mesh.update(dict(data=-1, fsdp=8))
  c.init_from = recipe["init_from"]
  c.optim.update(dict(peak_lr=8e-5, b1=0.5, b2=0.9, warmup=10_000, end_lr_fraction=0.5))
  if "vision" not in str(recipe["freeze"]) and arg != "c2":
    c.optim.lr_multipliers = {"tower/vision": 0.5}
  c.optim.freeze = recipe["freeze"]
  c.loss.update(dict(lpips=1.0, lpips_weights="models/lpips_vgg16.npz", gan=0.75))
  c.loss.disc.start_step = 20_000
  c.data.root = "records"
  c.data.mixture = (dict(path="coyo", weight=1.0),)
  c.data.workers = 16
  c.ckpt = dict(every=5_000, keep=2, keep_every=50_000)
  c.log.update(dict(every=100, samples_every=5_000))
  return c
