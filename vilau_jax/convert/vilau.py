"""VILA-U releases: llm/, vision_tower/, mm_projector/ and config.json: a composition of Llama,
SigLIP and RQ-VAE, and the depth transformer, whose weights lie with the tower.
"""

import pathlib
from typing import Any

from vilau_jax.config import DepthConfig, TextConfig, TowerConfig, VilaUConfig, VisionConfig
from vilau_jax.convert import llama, rqvae, siglip
from vilau_jax.convert.configs import Fields, side
from vilau_jax.convert.plan import LAYER, Row
from vilau_jax.convert.sources import inside, read_json
from vilau_jax.convert.transforms import HEADS_BIAS, HEADS_IN, HEADS_OUT, LEADING_1, LINEAR, Shape
from vilau_jax.models.vilau import PROJECTOR_LAYERS

LLM, TOWER, PROJECTOR = "llm", "vision_tower", "mm_projector"
IGNORED = {f"{LLM}/{p}": why for p, why in llama.IGNORED.items()} | {
  f"{TOWER}/{p}": why for p, why in siglip.IGNORED.items()
}
_SIGLIP, _DEPTH = f"{TOWER}/rqvaesiglip.", f"{TOWER}/rqtransformer."
_NEUTRAL = """resume_path interpolate_mode mm_projector_lr vision_tower_lr model_dtype
  tune_mm_projector tune_language_model tune_vision_tower vision_resolution torchscript
  vision_tower mm_vision_tower use_mm_proj""".split()
_NESTED = (
  "add_cross_attention cross_attention_hidden_size is_decoder is_encoder_decoder pruned_heads \
  tf_legacy_loss tie_encoder_decoder tie_word_embeddings torchscript use_bfloat16".split()
)


def is_release(path: pathlib.Path) -> bool:
  """Whether a folder has a release's layout."""
  return (path / "config.json").is_file() and all((path / n).is_dir() for n in (LLM, TOWER))


def rows(config: VilaUConfig, shapes: dict[str, Shape]) -> list[Row]:
  """The table; names start with the folder that holds them."""
  tower = config.tower
  table = llama.rows(config.llm, f"{LLM}/")
  table += siglip.rows(tower, f"{_SIGLIP}siglip_model.", (_SIGLIP, f"{_SIGLIP}siglip_model."))
  table += rqvae.rows(tower, shapes, _SIGLIP)
  for i in range(PROJECTOR_LAYERS[config.projector]):
    name = f"{PROJECTOR}/layers" + ("" if config.projector == "linear" else f".{2 * i}")
    table += siglip.dense(f"params/projector/layers_{2 * i}", name, LINEAR)
  return table + depth_rows()


def depth_rows() -> list[Row]:
  """The depth transformer."""
  at, block = "params/depth", f"{_DEPTH}head_transformer.blocks.{LAYER}"
  table = [Row(f"{at}/pos_emb_d", (f"{_DEPTH}pos_emb_d",), LEADING_1)]
  for name in ("in_mlp_1", "in_mlp_2"):
    table += siglip.dense(f"{at}/{name}", f"{_DEPTH}{name}", LINEAR)
  table += siglip.norm(f"{at}/classifier_norm", f"{_DEPTH}classifier_mlp.layer_norm")
  table += siglip.dense(f"{at}/classifier", f"{_DEPTH}classifier_mlp.linear", LINEAR)
  for name in ("ln1", "ln2"):
    table += siglip.norm(f"{at}/layers/{name}", f"{block}.{name}")
  for name in ("query", "key", "value"):
    attention = f"{at}/layers/attn/{name}"
    table += siglip.dense(attention, f"{block}.attn.{name}", HEADS_IN, HEADS_BIAS)
  table += siglip.dense(f"{at}/layers/attn/out", f"{block}.attn.proj", HEADS_OUT)
  for ours, theirs in (("fc1", "mlp.0"), ("fc2", "mlp.2")):
    table += siglip.dense(f"{at}/layers/mlp/{ours}", f"{block}.{theirs}", LINEAR)
  return table


def read_config(root: pathlib.Path) -> VilaUConfig:
  """The architecture of a release folder.

  Raises:
    ValueError: naming a field that is missing, contradictory or not honoured.
  """
  top = Fields.of_file(root / "config.json", [*_NEUTRAL, *_NESTED])
  llm = llama.read_config(root / LLM)
  projector = _read_projector(Fields.of_file(root / PROJECTOR / "config.json", _NESTED))
  tower_fields = Fields.of_file(root / TOWER / "config.json", _NESTED)
  tower, depth, hidden = _read_tower(tower_fields, root)
  if hidden != llm.llm.width:
    raise ValueError(
      f"{tower_fields.file}: rqtransformer.input_embed_dim_2 is {hidden}, but "
      f"{root / LLM / 'config.json'} has hidden_size {llm.llm.width}"
    )
  _check_copies(top, root, llm, projector, (tower, depth, hidden))
  _check_processor(root / TOWER / "preprocessor_config.json", tower.image_size)
  return VilaUConfig(
    name=root.resolve().name,
    tower=tower,
    llm=llm.llm,
    depth=depth,
    projector=projector,
    video_frames=_read_top(top, llm.llm.width, tower.vision.width),
    markers="release",
    dtype=llm.dtype,
  )


def _read_top(top: Fields, width: int, tower_width: int) -> int:
  """What only the outer config.json says; returns the frames of a video."""
  top.fixed("model_type", "vila_u_llama")
  top.fixed("hidden_size", width)
  top.fixed("mm_hidden_size", tower_width)
  top.fixed("mm_vision_select_layer", -2)
  top.fixed("mm_vision_select_feature", "cls_patch", "patch")
  top.fixed("image_aspect_ratio", "resize")
  for key in ("mm_use_im_start_end", "mm_use_vi_start_end"):
    top.fixed(key, True)
  top.fixed("mm_use_im_patch_token", False)
  top.fixed("drop_path_rate", 0, 0.0)
  frames = top.size("num_video_frames", 8)
  top.done()
  return frames


def _read_projector(fields: Fields) -> str:
  fields.fixed("model_type", "v2l_projector")
  fields.fixed("mm_projector_type", *PROJECTOR_LAYERS)
  kind = fields.take("mm_projector_type", str)
  fields.done()
  return kind


def _read_tower(fields: Fields, root: pathlib.Path) -> tuple[TowerConfig, DepthConfig, int]:
  """Tower, depth transformer, and the width of the language model that it expects."""
  fields.fixed("model_type", "rqvaesigliptransformer_model")
  codec = fields.object("rqvaesiglip", ["latent_loss_weight", *_NESTED])
  codec.fixed("model_type", "rqvaesiglip_model")
  vision, text = _pretrained(codec, root)
  width = codec.size("embed_dim")
  codes, _ = rqvae.read_quantizer(codec, width)
  codec.fixed("latent_shape", [vision.grid, vision.grid, vision.width])
  if width != vision.width:
    raise ValueError(f"{fields.file}: rqvaesiglip.embed_dim is {width}, but the encoder that "
                     f"pretrained_model names has hidden_size {vision.width}")  # fmt: skip
  resized = codec.take("decoder_latent_shape", (list, tuple), None)
  tower = TowerConfig(
    vision=vision,
    text=text,
    quantizer=codes,
    decoder=rqvae.read_cnn(codec.object("ddconfig")),
    latent_grid=side(codec, "decoder_latent_shape", resized[:2]) if resized else 0,
  )
  codec.done()
  depth, hidden = _read_depth(fields.object("rqtransformer", _NESTED), tower)
  fields.fixed("hidden_size", vision.width)
  fields.done()
  return tower, depth, hidden


def _pretrained(codec: Fields, root: pathlib.Path) -> tuple[VisionConfig, TextConfig]:
  """The SigLIP that a tower was built from: a folder of the checkpoint, or a published one."""
  name = codec.take("pretrained_model", str)
  for base in (root, root / TOWER):
    if (base / name / "config.json").is_file():
      folder = inside(base, name, codec.file)
      return siglip.read_encoders(Fields.of_file(folder / "config.json", siglip.NEUTRAL))
  published = siglip.hub_config(name)
  if published is None:
    raise ValueError(
      f"{codec.file}: {codec.path}pretrained_model is {name!r:.200}: neither a folder of this "
      f"checkpoint with a config.json nor one of {', '.join(siglip.HUB)}; put the SigLIP "
      f"config.json into {root / 'siglip_config'} and name that folder"
    )
  return published


def _read_depth(fields: Fields, tower: TowerConfig) -> tuple[DepthConfig, int]:
  codes = tower.quantizer
  fields.fixed("model_type", "rqtransformer_model")
  fields.fixed("block_size", [tower.grid, tower.grid, codes.depth])
  fields.fixed("input_embed_dim_1", codes.width * codes.fold**2)
  fields.fixed("vocab_size", codes.entries)
  width, head = fields.size("embed_dim"), fields.object("head")
  block = head.object("block")
  block.fixed("embed_dim", width)
  for key, allowed in dict(mlp_bias=(True,), attn_bias=(True,), attn_pdrop=(0, 0.0),
                           gelu=("v1",)).items():  # fmt: skip
    block.fixed(key, *allowed)
  heads, dropout = block.size("n_head"), block.take("resid_pdrop", float, 0.1)
  if width % heads:
    raise ValueError(f"{fields.file}: rqtransformer.embed_dim {width} has no {heads} heads")
  head.fixed("embed_dim", width)
  head.fixed("block_size", [tower.grid, tower.grid, codes.depth])
  config = DepthConfig(
    width=width, hidden=4 * width, depth=head.size("n_layer"), heads=heads, dropout=dropout
  )
  hidden = fields.size("input_embed_dim_2")
  for part in (block, head, fields):
    part.done()
  return config, hidden


def _check_copies(
  top: Fields, root: pathlib.Path, llm: VilaUConfig, projector: str, tower: tuple
) -> None:
  """The outer config.json repeats the three inner ones; they must say the same."""
  file = top.file
  copies = {
    "llm_cfg": lambda v: llama.read_fields(Fields(file, v, "llm_cfg.", llama.NEUTRAL)) == llm.llm,
    "mm_projector_cfg": lambda v: _read_projector(
      Fields(file, v, "mm_projector_cfg.", _NESTED)) == projector,
    "vision_tower_cfg": lambda v: _read_tower(
      Fields(file, v, "vision_tower_cfg.", _NESTED), root) == tower,
  }  # fmt: skip
  for key, agrees in copies.items():
    value = top.take(key, (dict, str), None)
    if isinstance(value, dict) and not agrees(value):
      folder = key.removesuffix("_cfg")
      raise ValueError(f"{file}: {key} describes another model than {folder}/config.json")


def _check_processor(file: pathlib.Path, image_size: int) -> None:
  """Pictures are resized to the square, bicubic, and scaled to [-1, 1]; all else is refused."""
  if not file.is_file():
    return
  values = read_json(file)
  square = {"height": image_size, "width": image_size}
  expected: dict[str, tuple[Any, ...]] = {
    "size": (square, image_size), "resample": (3,), "image_mean": ([0.5] * 3,),
    "image_std": ([0.5] * 3,), "do_resize": (True,), "do_normalize": (True,),
    "do_rescale": (True,), "rescale_factor": (1 / 255,),
  }  # fmt: skip
  if values.get("do_center_crop"):
    expected["crop_size"] = (square, image_size)
  for key, allowed in expected.items():
    if values.get(key) is not None and values[key] not in allowed:
      raise ValueError(f"{file}: {key} is {values[key]!r:.200}, this model needs {allowed[0]!r}")


def write_configs(config: VilaUConfig, dtype: str) -> dict[str, dict[str, Any]]:
  """File -> content of the JSON files of a release. The SigLIP config is written beside them: a hub
  name would not do for a tower of other sizes."""
  tower, depth = config.tower, config.depth
  codes = tower.quantizer
  llm = llama.write_config(config.llm, dtype)
  context = int(config.llm.max_positions * config.llm.rope_scaling)
  llm |= {"model_max_length": context, "tokenizer_model_max_length": context,
          "tokenizer_padding_side": "right"}  # fmt: skip
  projector = {
    "architectures": ["MultimodalProjector"], "mm_projector_type": config.projector,
    "model_type": "v2l_projector", "torch_dtype": dtype,
  }  # fmt: skip
  published = [n for n in siglip.HUB if siglip.hub_config(n) == (tower.vision, tower.text)]
  codec = rqvae.write_quantizer(tower) | {
    "architectures": ["RQVAESiglipModel"],
    "ddconfig": rqvae.write_cnn(tower.decoder),
    "decoder_latent_shape": [tower.latent_grid] * 2 if tower.latent_grid else None,
    "model_type": "rqvaesiglip_model",
    "pretrained_model": f"google/{published[0]}" if published else "siglip_config",
  }
  block = {"n_head": depth.heads}
  if depth.dropout != 0.1:
    block["resid_pdrop"] = depth.dropout
  transformer = {
    "architectures": ["RQTransformer"],
    "block_size": [tower.grid, tower.grid, codes.depth],
    "embed_dim": depth.width,
    "head": {"block": block, "n_layer": depth.depth},
    "input_embed_dim_1": codes.width * codes.fold**2,
    "input_embed_dim_2": config.llm.width,
    "model_type": "rqtransformer_model",
    "vocab_size": codes.entries,
  }
  vision = {
    "architectures": ["RQVAESIGLIPTransformer"], "hidden_size": tower.vision.width,
    "model_type": "rqvaesigliptransformer_model", "rqtransformer": transformer,
    "rqvaesiglip": codec, "torch_dtype": dtype,
  }  # fmt: skip
  top = {
    "architectures": ["VILAULlamaModel"], "hidden_size": config.llm.width,
    "image_aspect_ratio": "resize", "llm_cfg": llm, "mm_hidden_size": tower.vision.width,
    "mm_projector_cfg": projector, "mm_use_im_patch_token": False, "mm_use_im_start_end": True,
    "mm_use_vi_start_end": True, "mm_vision_select_layer": -2, "model_dtype": f"torch.{dtype}",
    "model_type": "vila_u_llama", "num_video_frames": config.video_frames,
    "vision_tower_cfg": vision,
  }  # fmt: skip
  files = {
    "config.json": top, f"{LLM}/config.json": llm, f"{TOWER}/config.json": vision,
    f"{PROJECTOR}/config.json": projector,
    f"{TOWER}/preprocessor_config.json": _processor(tower.image_size),
    f"{LLM}/generation_config.json": {
      "bos_token_id": 1, "do_sample": True, "eos_token_id": 2, "pad_token_id": 0,
      "max_length": config.llm.max_positions, "temperature": 0.6, "top_p": 0.9,
    },
  }  # fmt: skip
  if not published:
    files["siglip_config/config.json"] = siglip.write_config(tower, dtype)
  return files


def _processor(size: int) -> dict[str, Any]:
  square = {"height": size, "width": size}
  return {
    "crop_size": square, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
    "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3,
    "image_processor_type": "CLIPImageProcessor", "image_std": [0.5] * 3, "resample": 3,
    "rescale_factor": 1 / 255, "size": square,
  }  # fmt: skip


def unsupported(config: VilaUConfig) -> list[str]:
  """What of a model a release cannot carry."""
  wrong = rqvae.unsupported(config.tower)
  if config.visual_positions != "none":
    wrong.append(f"visual_positions {config.visual_positions!r}")
  if config.code_scale != 1:
    wrong.append(f"code_scale {config.code_scale}")
  if config.tower.encoder != "siglip" or config.tower.text is None:
    wrong.append("a tower without both SigLIP encoders")
  elif config.tower.vision.pool_positions:
    wrong.append("tower.vision.pool_positions")
  if config.depth.hidden != 4 * config.depth.width:
    wrong.append(f"depth.hidden {config.depth.hidden} (4 x width there)")
  if config.depth.eps != 1e-5:
    wrong.append(f"depth.eps {config.depth.eps} (1e-05 there)")
  return wrong
