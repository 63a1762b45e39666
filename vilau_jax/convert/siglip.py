"""SigLIP checkpoints under Hugging Face's names <-> params/tower/{vision, text, logit_*}.

The vision encoder's last layer stands apart here ("last_layer"): VILA-U quantises what it reads.
"""

import pathlib
from typing import Any

from vilau_jax.config import (
  CnnConfig,
  QuantizerConfig,
  TextConfig,
  TowerConfig,
  VilaUConfig,
  VisionConfig,
)
from vilau_jax.convert.configs import Fields, compute_dtype
from vilau_jax.convert.plan import LAYER, Row
from vilau_jax.convert.transforms import (
  CONV,
  HEADS_BIAS,
  HEADS_IN,
  HEADS_OUT,
  LINEAR,
  SAME,
  Transform,
)

AT = "params/tower"
PARTS = tuple(f"{AT}/{name}" for name in ("vision", "text", "logit_scale", "logit_bias"))
IGNORED = {r".*embeddings\.position_ids": "positions count from 0"}
NEUTRAL = ("torchscript", "tie_word_embeddings")  # tied are only decoders

# width, MLP width, layers, heads
_SIZES = {
  "base": (768, 3072, 12, 12),
  "large": (1024, 4096, 24, 16),
  "so400m": (1152, 4304, 27, 16),
}
# Hub names, without their owner -> size, patch, image side.
HUB = {
  f"siglip-{size}-patch{patch}-{side}": (size, patch, side)
  for size, patch, sides in (
    ("base", 16, (224, 256, 384, 512)),
    ("large", 16, (256, 384)),
    ("so400m", 14, (224, 384)),
  )
  for side in sides
}


def hub_config(name: str) -> tuple[VisionConfig, TextConfig] | None:
  """The encoders of a published SigLIP, by its name on the hub; None: not one of these."""
  found = HUB.get(pathlib.PurePosixPath(name).name)
  if found is None:
    return None
  size, patch, side = found
  fields = dict(zip(("width", "hidden", "depth", "heads"), _SIZES[size]))
  return VisionConfig(image_size=side, patch_size=patch, **fields), TextConfig(**fields)


def read_encoders(fields: Fields) -> tuple[VisionConfig, TextConfig]:
  """Both encoders of a Hugging Face SigLIP config, which lists only what differs from defaults.

  Raises:
    ValueError: naming a field that is missing or not honoured.
  """
  fields.fixed("model_type", "siglip", "siglip_model")
  vision, text = (fields.object(f"{part}_config", NEUTRAL) for part in ("vision", "text"))
  fields.fixed("hidden_size", vision.size("hidden_size", 768))
  sizes = []
  for part in (vision, text):
    part.fixed("hidden_act", "gelu_pytorch_tanh")
    part.fixed("attention_dropout", 0, 0.0)
    part.fixed("vision_use_head", True)
    sizes.append(
      dict(
        width=part.size("hidden_size", 768),
        hidden=part.size("intermediate_size", 3072),
        depth=part.size("num_hidden_layers", 12),
        heads=part.size("num_attention_heads", 12),
        eps=part.take("layer_norm_eps", float, 1e-6),
      )
    )
  vision.fixed("num_channels", 3)
  text.fixed("projection_size", sizes[0]["width"])
  if sizes[0]["width"] != sizes[1]["width"]:
    raise ValueError(f"{fields.file}: text_config.hidden_size {sizes[1]['width']} differs from "
                     f"vision_config.hidden_size {sizes[0]['width']}")  # fmt: skip
  for part, size in zip((vision, text), sizes):
    if size["width"] % size["heads"]:
      raise ValueError(f"{fields.file}: {part.path}num_attention_heads {size['heads']} does not "
                       f"divide hidden_size {size['width']}")  # fmt: skip
  image, patch = vision.size("image_size", 224), vision.size("patch_size", 16)
  encoders = (
    VisionConfig(image_size=image, patch_size=patch, **sizes[0]),
    TextConfig(
      vocab_size=text.size("vocab_size", 32_000),
      length=text.size("max_position_embeddings", 64),
      **sizes[1],
    ),
  )
  for part in (vision, text, fields):
    part.done()
  return encoders


def tower_of(vision: VisionConfig, text: TextConfig) -> TowerConfig:
  """A tower with these encoders. A SigLIP checkpoint has no other parts, so what a tower trained
  from it would have besides is as in the paper, with as many levels as the image side needs."""
  side = vision.image_size
  if not vision.grid:
    raise ValueError(f"patches of {vision.patch_size} pixels do not fit into {side} pixels")
  factor, rest = divmod(side, vision.grid)
  latent_grid = 0
  if rest or factor & (factor - 1):  # 384 pixels, 27 x 27 patches: latents are resized to 24 x 24
    factor = min(16, side & -side)
    latent_grid = side // factor
  levels = factor.bit_length()
  decoder = CnnConfig(
    multipliers=((1,) * levels + (1, 1, 2, 2, 4))[-levels:],
    resolution=side,
    attention_resolutions=(side // factor,),
  )
  codes = QuantizerConfig(width=vision.width)
  return TowerConfig(
    vision=vision, text=text, quantizer=codes, decoder=decoder, latent_grid=latent_grid
  )


def read_config(path: pathlib.Path) -> VilaUConfig:
  """The architecture of a Hugging Face SigLIP folder.

  Raises:
    ValueError: naming a field that is missing or not honoured.
  """
  fields = Fields.of_file(path / "config.json", NEUTRAL)
  dtype = compute_dtype({"torch_dtype": fields.take("torch_dtype", str, None)})
  vision, text = read_encoders(fields)
  tower = tower_of(vision, text)
  return VilaUConfig(name=path.resolve().name, tower=tower, llm=None, depth=None, dtype=dtype)


def rows(tower: TowerConfig, prefix: str = "", logits: tuple[str, ...] = ("",)) -> list[Row]:
  """The table for Hugging Face names.

  Args:
    tower: whose encoders are meant.
    prefix: in front of "vision_model" and "text_model".
    logits: prefixes under which logit_scale and logit_bias stand, each with a copy.
  """
  vision, text = f"{AT}/vision", f"{AT}/text"
  v, t = f"{prefix}vision_model", f"{prefix}text_model"
  table = [
    Row(f"{vision}/embed/kernel", (f"{v}.embeddings.patch_embedding.weight",), CONV),
    Row(f"{vision}/embed/bias", (f"{v}.embeddings.patch_embedding.bias",), SAME),
    Row(f"{vision}/embed/position", (f"{v}.embeddings.position_embedding.weight",), SAME),
    Row(f"{vision}/head/probe", (f"{v}.head.probe",), SAME),
    Row(f"{text}/token", (f"{t}.embeddings.token_embedding.weight",), SAME),
    Row(f"{text}/position", (f"{t}.embeddings.position_embedding.weight",), SAME),
    *dense(f"{text}/head", f"{t}.head", LINEAR),
    *norm(f"{vision}/post_norm", f"{v}.post_layernorm"),
    *norm(f"{text}/final_norm", f"{t}.final_layer_norm"),
    *norm(f"{vision}/head/layer_norm", f"{v}.head.layernorm"),
    *_mlp(f"{vision}/head/mlp", f"{v}.head.mlp"),
    *_pooling(f"{vision}/head/attention", f"{v}.head.attention"),
    *_block(f"{vision}/layers", f"{v}.encoder.layers.{LAYER}"),
    *_block(f"{vision}/last_layer", f"{v}.encoder.layers.{tower.vision.depth - 1}"),
    *_block(f"{text}/layers", f"{t}.encoder.layers.{LAYER}"),
  ]
  for name in ("logit_scale", "logit_bias"):
    table.append(Row(f"{AT}/{name}", tuple(f"{p}{name}" for p in logits), SAME))
  return table


def dense(target: str, name: str, how: Transform, bias: Transform = SAME) -> list[Row]:
  """A biased projection: kernel and bias."""
  return [
    Row(f"{target}/kernel", (f"{name}.weight",), how),
    Row(f"{target}/bias", (f"{name}.bias",), bias),
  ]


def norm(target: str, name: str) -> list[Row]:
  """A normalisation: scale and bias."""
  return [
    Row(f"{target}/scale", (f"{name}.weight",), SAME),
    Row(f"{target}/bias", (f"{name}.bias",), SAME),
  ]


def _mlp(target: str, name: str) -> list[Row]:
  return [row for fc in ("fc1", "fc2") for row in dense(f"{target}/{fc}", f"{name}.{fc}", LINEAR)]


def _block(target: str, name: str) -> list[Row]:
  ours = dict(q_proj="query", k_proj="key", v_proj="value")
  attention, named = f"{target}/self_attn", f"{name}.self_attn"
  table = [
    row
    for theirs, our in ours.items()
    for row in dense(f"{attention}/{our}", f"{named}.{theirs}", HEADS_IN, HEADS_BIAS)
  ]
  table += dense(f"{attention}/out", f"{named}.out_proj", HEADS_OUT)
  for name_of_norm in ("layer_norm1", "layer_norm2"):
    table += norm(f"{target}/{name_of_norm}", f"{name}.{name_of_norm}")
  return table + _mlp(f"{target}/mlp", f"{name}.mlp")


def _pooling(target: str, name: str) -> list[Row]:
  """Torch's MultiheadAttention stacks the projections of query, key and value."""
  table = dense(f"{target}/out", f"{name}.out_proj", HEADS_OUT)
  for k, part in enumerate(("query", "key", "value")):
    table.append(Row(f"{target}/{part}/kernel", (f"{name}.in_proj_weight",), HEADS_IN, (k, 3)))
    table.append(Row(f"{target}/{part}/bias", (f"{name}.in_proj_bias",), HEADS_BIAS, (k, 3)))
  return table


def write_config(tower: TowerConfig, dtype: str) -> dict[str, Any]:
  """config.json for transformers.SiglipModel; nothing is left to its defaults."""
  vision, text = tower.vision, tower.text

  def encoder(part: VisionConfig | TextConfig, kind: str) -> dict[str, Any]:
    return {
      "attention_dropout": 0.0,
      "hidden_act": "gelu_pytorch_tanh",
      "hidden_size": part.width,
      "intermediate_size": part.hidden,
      "layer_norm_eps": part.eps,
      "model_type": f"siglip_{kind}_model",
      "num_attention_heads": part.heads,
      "num_hidden_layers": part.depth,
    }

  return {
    "architectures": ["SiglipModel"],
    "initializer_factor": 1.0,
    "model_type": "siglip",
    "text_config": encoder(text, "text")
    | {
      "vocab_size": text.vocab_size, "max_position_embeddings": text.length,
      "projection_size": text.width, "bos_token_id": 49406, "eos_token_id": 49407,
      "pad_token_id": 1,
    },
    "torch_dtype": dtype,
    "vision_config": encoder(vision, "vision")
    | {"image_size": vision.image_size, "num_channels": 3, "patch_size": vision.patch_size},
  }  # fmt: skip


def write_processor(image_size: int) -> dict[str, Any]:
  """preprocessor_config.json: bicubic to the square, scaled to [-1, 1]."""
  return {
    "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3,
    "image_processor_type": "SiglipImageProcessor", "image_std": [0.5] * 3, "resample": 3,
    "rescale_factor": 1 / 255, "size": {"height": image_size, "width": image_size},
  }  # fmt: skip
