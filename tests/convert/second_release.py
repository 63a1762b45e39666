"""A VILA-U release whose every number differs from golden checkpoint a, made up here.

A 3 x 3 grid whose patches do not divide the image, six depths over one shared codebook, a Llama
with grouped queries and linear rope scaling, latents that are resized before decoding, a
three-layer projector, unusual epsilons. Names and layouts are written down from the published
ones, not from the importer's tables. Values are random float32 of sizes that nets have.
"""

import json
import pathlib
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from vilau_jax.data import tokenizer

TEXTS = [
  f"{count} {thing} on a {colour} background"
  for count in ("one", "two", "three", "many")
  for thing in ("foxes", "pigs", "birds", "red squares")
  for colour in ("blue", "green", "grey")
]

SIGLIP = {
  "model_type": "siglip",
  "vision_config": {
    "model_type": "siglip_vision_model", "hidden_size": 72, "intermediate_size": 136,
    "num_hidden_layers": 3, "num_attention_heads": 6, "image_size": 40, "patch_size": 12,
    "layer_norm_eps": 3e-6,
  },
  "text_config": {
    "model_type": "siglip_text_model", "hidden_size": 72, "intermediate_size": 104,
    "num_hidden_layers": 1, "num_attention_heads": 3, "vocab_size": 190,
    "max_position_embeddings": 12, "layer_norm_eps": 5e-6,
  },
}  # fmt: skip
TOWER = {
  "architectures": ["RQVAESIGLIPTransformer"], "model_type": "rqvaesigliptransformer_model",
  "hidden_size": 72,
  "rqvaesiglip": {
    "model_type": "rqvaesiglip_model", "architectures": ["RQVAESiglipModel"], "embed_dim": 72,
    "n_embed": 96, "latent_shape": [3, 3, 72], "code_shape": [3, 3, 6], "shared_codebook": True,
    "restart_unused_codes": False, "decay": 0.97, "latent_loss_weight": 0.5,
    "decoder_latent_shape": [5, 5], "pretrained_model": "siglip_config",
    "ddconfig": {
      "double_z": False, "z_channels": 40, "resolution": 40, "in_channels": 3, "out_ch": 3,
      "ch": 64, "ch_mult": [1, 1, 1, 2], "num_res_blocks": 2, "attn_resolutions": [10, 5],
      "dropout": 0.0,
    },
  },
  "rqtransformer": {
    "model_type": "rqtransformer_model", "architectures": ["RQTransformer"],
    "block_size": [3, 3, 6], "embed_dim": 48, "input_embed_dim_1": 72, "input_embed_dim_2": 80,
    "vocab_size": 96, "head": {"n_layer": 3, "block": {"n_head": 6}},
  },
}  # fmt: skip
LLM = {
  "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 80,
  "intermediate_size": 208, "num_hidden_layers": 4, "num_attention_heads": 10,
  "num_key_value_heads": 2, "max_position_embeddings": 160, "rms_norm_eps": 3e-6,
  "rope_theta": 20000.0, "rope_scaling": {"type": "linear", "factor": 2.5}, "hidden_act": "silu",
  "tie_word_embeddings": False, "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2,
  "pad_token_id": 0, "model_max_length": 400, "tokenizer_model_max_length": 400,
  "tokenizer_padding_side": "left",
}  # fmt: skip
PROJECTOR = {
  "architectures": ["MultimodalProjector"], "model_type": "v2l_projector",
  "mm_projector_type": "mlp3x_gelu",
}  # fmt: skip
FRAMES = 3
Tensors = dict[str, np.ndarray]


def write(folder: pathlib.Path, *, copies: bool = False, seed: int = 0, shards: int = 1) -> None:
  """The release folder.

  Args:
    folder: to write; must not be there.
    copies: write tensors that share memory in the reference under all their names; a checkpoint of
      its save_pretrained has the first name alone.
    seed: of the values.
    shards: files of the language model.
  """
  draw = np.random.default_rng(seed)
  for part in ("llm", "vision_tower", "mm_projector", "siglip_config"):
    (folder / part).mkdir(parents=True)
  file = tokenizer.train_tokenizer(TEXTS, folder / "llm" / "tokenizer.model", 384)
  words = tokenizer.Tokenizer(file)
  added = dict(zip(tokenizer.ADDED, range(words.im_start, words.vocab_size)))
  llm = LLM | {"vocab_size": words.vocab_size}
  _write_llm(folder / "llm", llama(draw, llm), shards)
  save_file(vision_tower(draw, copies), folder / "vision_tower" / "model.safetensors")
  save_file(projector(draw), folder / "mm_projector" / "model.safetensors")
  for name, value in {
    "llm/config.json": llm,
    "llm/added_tokens.json": added,
    "llm/generation_config.json": {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
    "vision_tower/config.json": TOWER,
    "vision_tower/preprocessor_config.json": processor(SIGLIP["vision_config"]["image_size"]),
    "mm_projector/config.json": PROJECTOR,
    "siglip_config/config.json": SIGLIP,
    "config.json": top(llm),
  }.items():
    write_json(folder / name, value)


def top(llm: dict[str, Any]) -> dict[str, Any]:
  """The outer config.json; its parts repeat the inner ones, with transformers' usual padding."""
  padding = {"add_cross_attention": False, "num_beams": 1, "top_k": 50, "_name_or_path": "x"}
  return {
    "architectures": ["VILAULlamaModel"], "model_type": "vila_u_llama", "model_dtype":
    "torch.float32", "hidden_size": LLM["hidden_size"], "mm_hidden_size": TOWER["hidden_size"],
    "image_aspect_ratio": "resize", "num_video_frames": FRAMES, "mm_use_im_start_end": True,
    "mm_use_vi_start_end": True, "mm_use_im_patch_token": False, "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "cls_patch", "resume_path": "elsewhere", "tune_language_model":
    True, "tune_mm_projector": True, "tune_vision_tower": False, "interpolate_mode": "linear",
    "drop_path_rate": 0.0, "mm_projector_lr": None, "transformers_version": "4.36.2",
    "llm_cfg": llm | padding, "vision_tower_cfg": TOWER | padding, "mm_projector_cfg": PROJECTOR |
    padding,
  }  # fmt: skip


def processor(size: int) -> dict[str, Any]:
  square = {"height": size, "width": size}
  return {
    "crop_size": square, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True,
    "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    "image_processor_type": "CLIPImageProcessor", "resample": 3, "size": square,
    "rescale_factor": 0.00392156862745098,
  }  # fmt: skip


def write_json(path: pathlib.Path, value: Any) -> None:
  path.write_text(json.dumps(value, indent=2))


def _write_llm(folder: pathlib.Path, tensors: Tensors, shards: int) -> None:
  if shards == 1:
    save_file(tensors, folder / "model.safetensors")
    return
  names, where = list(tensors), {}
  for i in range(shards):
    file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
    save_file({n: tensors[n] for n in names[i::shards]}, folder / file, {"format": "pt"})
    where |= dict.fromkeys(names[i::shards], file)
  size = sum(t.nbytes for t in tensors.values())
  write_json(folder / "model.safetensors.index.json",
             {"metadata": {"total_size": size}, "weight_map": where})  # fmt: skip


class Maker:
  """Collects tensors under torch's names."""

  def __init__(self, draw: np.random.Generator):
    self.draw, self.tensors = draw, {}

  def put(self, name: str, *shape: int, scale: float = 1.0) -> None:
    self.tensors[name] = (scale * self.draw.standard_normal(shape)).astype(np.float32)

  def linear(self, name: str, out: int, into: int, bias: bool = True) -> None:
    self.put(f"{name}.weight", out, into, scale=into**-0.5)
    if bias:
      self.put(f"{name}.bias", out, scale=0.1)

  def conv(self, name: str, out: int, into: int, side: int) -> None:
    self.put(f"{name}.weight", out, into, side, side, scale=(into * side * side) ** -0.5)
    self.put(f"{name}.bias", out, scale=0.1)

  def norm(self, name: str, size: int, bias: bool = True) -> None:
    self.put(f"{name}.weight", size, scale=0.1)
    self.tensors[f"{name}.weight"] += 1
    if bias:
      self.put(f"{name}.bias", size, scale=0.1)


def llama(draw: np.random.Generator, config: dict[str, Any]) -> Tensors:
  make, width = Maker(draw), config["hidden_size"]
  head = width // config["num_attention_heads"]
  make.put("model.embed_tokens.weight", config["vocab_size"], width)
  for i in range(config["num_hidden_layers"]):
    at = f"model.layers.{i}"
    for name, heads in (("q", config["num_attention_heads"]), ("k", config["num_key_value_heads"]),
                        ("v", config["num_key_value_heads"])):  # fmt: skip
      make.linear(f"{at}.self_attn.{name}_proj", heads * head, width, bias=False)
    make.linear(f"{at}.self_attn.o_proj", width, width, bias=False)
    for name in ("gate", "up"):
      make.linear(f"{at}.mlp.{name}_proj", config["intermediate_size"], width, bias=False)
    make.linear(f"{at}.mlp.down_proj", width, config["intermediate_size"], bias=False)
    for name in ("input_layernorm", "post_attention_layernorm"):
      make.norm(f"{at}.{name}", width, bias=False)
  make.norm("model.norm", width, bias=False)
  make.linear("lm_head", config["vocab_size"], width, bias=False)
  return make.tensors


def projector(draw: np.random.Generator) -> Tensors:
  make, hidden = Maker(draw), LLM["hidden_size"]
  for i, into in ((0, TOWER["hidden_size"]), (2, hidden), (4, hidden)):
    make.linear(f"layers.{i}", hidden, into)
  return make.tensors


def vision_tower(draw: np.random.Generator, copies: bool) -> Tensors:
  tensors = {f"rqvaesiglip.siglip_model.{k}": v for k, v in siglip(draw).items()}
  rq, make = TOWER["rqvaesiglip"], Maker(draw)
  for name, value in (("logit_scale", 0.7), ("logit_bias", -2.5)):
    make.tensors[name] = np.array([value], np.float32)
    tensors.pop(f"rqvaesiglip.siglip_model.{name}")
    if copies:
      tensors[f"rqvaesiglip.siglip_model.{name}"] = make.tensors[name].copy()
  _codebooks(make, rq, copies)
  make.conv("post_quant_conv", rq["ddconfig"]["z_channels"], rq["embed_dim"], 1)
  _decoder(make, rq["ddconfig"])
  tensors |= {f"rqvaesiglip.{k}": v for k, v in make.tensors.items()}
  return tensors | {f"rqtransformer.{k}": v for k, v in depth_transformer(draw).items()}


def _codebooks(make: Maker, rq: dict[str, Any], copies: bool) -> None:
  """One codebook for all depths: a padding row of zeros at the end, and moving averages."""
  entries, width = rq["n_embed"], rq["embed_dim"]
  table = (0.6 * make.draw.standard_normal((entries, width))).astype(np.float32)
  size = (1 + make.draw.random(entries)).astype(np.float32)
  sums = (table * size[:, None] + 0.01).astype(np.float32)
  for d in range(rq["code_shape"][2] if copies else 1):
    at = f"quantizer.codebooks.{d}"
    make.tensors[f"{at}.weight"] = np.concatenate([table, np.zeros((1, width), np.float32)])
    make.tensors[f"{at}.cluster_size_ema"] = size.copy()
    make.tensors[f"{at}.embed_ema"] = sums.copy()


def siglip(draw: np.random.Generator) -> Tensors:
  make, vision, text = Maker(draw), SIGLIP["vision_config"], SIGLIP["text_config"]
  width, patch = vision["hidden_size"], vision["patch_size"]
  at = "vision_model.embeddings"
  make.conv(f"{at}.patch_embedding", width, 3, patch)
  places = (vision["image_size"] // patch) ** 2
  make.put(f"{at}.position_embedding.weight", places, width, scale=0.5)
  _encoder(make, "vision_model", vision)
  make.norm("vision_model.post_layernorm", width)
  head = "vision_model.head"
  make.put(f"{head}.probe", 1, 1, width)
  make.put(f"{head}.attention.in_proj_weight", 3 * width, width, scale=width**-0.5)
  make.put(f"{head}.attention.in_proj_bias", 3 * width, scale=0.1)
  make.linear(f"{head}.attention.out_proj", width, width)
  make.norm(f"{head}.layernorm", width)
  make.linear(f"{head}.mlp.fc1", vision["intermediate_size"], width)
  make.linear(f"{head}.mlp.fc2", width, vision["intermediate_size"])
  at = "text_model.embeddings"
  make.put(f"{at}.token_embedding.weight", text["vocab_size"], width)
  make.put(f"{at}.position_embedding.weight", text["max_position_embeddings"], width, scale=0.5)
  _encoder(make, "text_model", text)
  make.norm("text_model.final_layer_norm", width)
  make.linear("text_model.head", width, width)
  make.put("logit_scale", 1)
  make.put("logit_bias", 1)
  return make.tensors


def _encoder(make: Maker, model: str, config: dict[str, Any]) -> None:
  width, hidden = config["hidden_size"], config["intermediate_size"]
  for i in range(config["num_hidden_layers"]):
    at = f"{model}.encoder.layers.{i}"
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
      make.linear(f"{at}.self_attn.{name}", width, width)
    for name in ("layer_norm1", "layer_norm2"):
      make.norm(f"{at}.{name}", width)
    make.linear(f"{at}.mlp.fc1", hidden, width)
    make.linear(f"{at}.mlp.fc2", width, hidden)


def _decoder(make: Maker, dd: dict[str, Any]) -> None:
  levels, side = len(dd["ch_mult"]), dd["resolution"] // 2 ** (len(dd["ch_mult"]) - 1)
  width = dd["ch"] * dd["ch_mult"][-1]
  make.conv("decoder.conv_in", width, dd["z_channels"], 3)
  _resnet(make, "decoder.mid.block_1", width, width)
  _attention(make, "decoder.mid.attn_1", width)
  _resnet(make, "decoder.mid.block_2", width, width)
  for level in reversed(range(levels)):
    out = dd["ch"] * dd["ch_mult"][level]
    for block in range(dd["num_res_blocks"] + 1):
      _resnet(make, f"decoder.up.{level}.block.{block}", width, out)
      width = out
      if side in dd["attn_resolutions"]:
        _attention(make, f"decoder.up.{level}.attn.{block}", out)
    if level:
      make.conv(f"decoder.up.{level}.upsample.conv", out, out, 3)
      side *= 2
  make.norm("decoder.norm_out", width)
  make.conv("decoder.conv_out", 3, width, 3)


def _resnet(make: Maker, at: str, into: int, out: int) -> None:
  make.norm(f"{at}.norm1", into)
  make.conv(f"{at}.conv1", out, into, 3)
  make.norm(f"{at}.norm2", out)
  make.conv(f"{at}.conv2", out, out, 3)
  if into != out:
    make.conv(f"{at}.nin_shortcut", out, into, 1)


def _attention(make: Maker, at: str, width: int) -> None:
  make.norm(f"{at}.norm", width)
  for name in ("q", "k", "v", "proj_out"):
    make.conv(f"{at}.{name}", width, width, 1)


def depth_transformer(draw: np.random.Generator) -> Tensors:
  make, rq = Maker(draw), TOWER["rqtransformer"]
  width = rq["embed_dim"]
  make.put("pos_emb_d", 1, rq["block_size"][2], width, scale=0.5)
  make.linear("in_mlp_1", width, rq["input_embed_dim_1"])
  make.linear("in_mlp_2", width, rq["input_embed_dim_2"])
  for i in range(rq["head"]["n_layer"]):
    at = f"head_transformer.blocks.{i}"
    for name in ("ln1", "ln2"):
      make.norm(f"{at}.{name}", width)
    for name in ("query", "key", "value", "proj"):
      make.linear(f"{at}.attn.{name}", width, width)
    make.linear(f"{at}.mlp.0", 4 * width, width)
    make.linear(f"{at}.mlp.2", width, 4 * width)
  make.norm("classifier_mlp.layer_norm", width)
  make.linear("classifier_mlp.linear", rq["vocab_size"], width)
  return make.tensors
