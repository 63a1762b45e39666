"""The named architectures: the paper's, one for tests and one for the quickstart."""

import dataclasses
from typing import Any

from vilau_jax.config import (
  CnnConfig,
  DepthConfig,
  LlamaConfig,
  QuantizerConfig,
  SamplingConfig,
  TextConfig,
  TowerConfig,
  VilaUConfig,
  VisionConfig,
)


def _presets() -> dict[str, VilaUConfig]:
  replace = dataclasses.replace
  # Pre-training at 8192 positions over Llama-2's 4096 sets the factor 2.
  llama_7b = LlamaConfig(rope_scaling=2.0)
  llama_1b3 = LlamaConfig(
    width=2048, hidden=5504, depth=24, heads=16, kv_heads=16, rope_scaling=2.0
  )
  so400m: dict[str, Any] = dict(width=1152, hidden=4304, depth=27, heads=16)
  tower_384 = TowerConfig(
    vision=VisionConfig(image_size=384, patch_size=14, **so400m),
    text=TextConfig(**so400m),
    quantizer=QuantizerConfig(depth=16, width=1152),
    decoder=CnnConfig(resolution=384, attention_resolutions=(24,)),
    latent_grid=24,
  )
  tower_rqvae = TowerConfig(
    encoder="rqvae", vision=None, text=None, cnn=CnnConfig(), quantizer=QuantizerConfig(width=256)
  )
  tower_c2 = replace(tower_rqvae, text=TextConfig())
  large = VilaUConfig(name="vilau_7b_256", llm=llama_7b)
  tiny_tower = TowerConfig(
    vision=VisionConfig(image_size=32, patch_size=8, width=32, hidden=64, depth=3, heads=2),
    text=TextConfig(vocab_size=516, length=16, width=32, hidden=64, depth=2, heads=2),
    quantizer=QuantizerConfig(depth=3, entries=32, width=32),
    decoder=CnnConfig(
      channels=16, multipliers=(1, 1, 2, 2), blocks=1, latent_channels=16, resolution=32,
      attention_resolutions=(4,), groups=8,
    ),
  )  # fmt: skip
  tiny = VilaUConfig(
    name="tiny",
    tower=tiny_tower,
    llm=LlamaConfig(
      vocab_size=516, width=64, hidden=128, depth=2, heads=4, kv_heads=2, max_positions=1024
    ),
    depth=DepthConfig(width=32, hidden=64, depth=2, heads=2),
    video_frames=2,
    sampling=SamplingConfig(top_k=32),
  )
  quickstart_tower = TowerConfig(
    vision=VisionConfig(60, 12, width=128, hidden=512, depth=4, heads=4, pool_positions=True),
    text=TextConfig(vocab_size=0, length=16, width=128, hidden=256, depth=2, heads=4),
    quantizer=QuantizerConfig(4, 256, 128, restart_threshold=0.1, restart_draw="error"),
    decoder=CnnConfig(
      channels=64, multipliers=(1, 2), blocks=0, latent_channels=128, resolution=60,
      attention_resolutions=(), groups=16, pixel_shuffle=6,
    ),
  )  # fmt: skip
  quickstart = VilaUConfig(
    name="quickstart",
    tower=quickstart_tower,
    llm=LlamaConfig(
      0, width=160, hidden=384, depth=4, heads=5, kv_heads=5, max_positions=1024, unroll=True
    ),
    depth=DepthConfig(width=128, hidden=512, depth=2, heads=4, dropout=0.0, unroll=True),
    video_frames=4,
    system_prompt="",
    visual_positions="next_cell",
    # Chosen by scored drawings of a trained one; so small a model errs when it draws freely.
    sampling=SamplingConfig(cfg_scale=1.5, temperature=0.7, top_k=256, top_p=1.0),
  )
  return {
    "vilau_7b_256": large,
    "vilau_7b_384": replace(large, name="vilau_7b_384", tower=tower_384),
    "vilau_1b3_256": replace(large, name="vilau_1b3_256", llm=llama_1b3),
    "vilau_1b3_rqvae": replace(large, name="vilau_1b3_rqvae", llm=llama_1b3, tower=tower_rqvae),
    "rqvae_256": replace(large, name="rqvae_256", llm=None, depth=None, tower=tower_rqvae),
    "recipe_c2_256": replace(large, name="recipe_c2_256", llm=None, depth=None, tower=tower_c2),
    "tiny": tiny,
    "quickstart": quickstart,
  }


PRESETS = _presets()
