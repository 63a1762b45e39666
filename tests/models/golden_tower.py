"""Golden torch tensors of the tower -> our trees. For tests only: nothing is checked here."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from vilau_jax.config import CnnConfig, QuantizerConfig, TextConfig, TowerConfig, VisionConfig

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def arrays(name: str) -> dict[str, np.ndarray]:
  return dict(np.load(GOLDEN / name))


def assert_close(got, want, tolerance=1e-5):
  """rtol and atol, the latter relative to the largest expected value."""
  want = np.asarray(want)
  scale = max(float(np.abs(want).max()), 1e-30)
  np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * scale)


def nhwc(x: np.ndarray) -> np.ndarray:
  return np.moveaxis(x, -3, -1)


def random_variables(shapes: dict, seed: int = 1) -> dict:
  """Random values for an abstract tree, from NumPy: compiling a real initialisation takes longer
  than most tests."""
  random = np.random.default_rng(seed)

  def fill(path, leaf):
    if path[-1].key == "scale":
      return jnp.ones(leaf.shape)
    bound = max(1, np.prod(leaf.shape[:-1])) ** -0.5
    if path[0].key == "quantizer":
      bound = 0.0 if path[-1].key == "cluster_size" else 1.0
    return jnp.asarray(random.uniform(-bound, bound, leaf.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(fill, shapes)


def put(tree: dict, path: str, value: np.ndarray) -> None:
  *parents, leaf = path.split("/")
  for key in parents:
    tree = tree.setdefault(key, {})
  tree[leaf] = jnp.asarray(value)


def leaf_of(name: str, value: np.ndarray) -> tuple[str, np.ndarray]:
  """A torch leaf name and tensor -> ours: kernels transposed, scales of norms."""
  if name == "bias":
    return "bias", value
  if value.ndim == 4:
    return "kernel", value.transpose(2, 3, 1, 0)
  return ("kernel", value.T) if value.ndim == 2 else ("scale", value)


def cnn_params(tensors: dict[str, np.ndarray], prefix: str) -> dict:
  """RQ-VAE encoder or decoder."""
  tree: dict = {}
  for name, value in tensors.items():
    if name.startswith(prefix):
      path = re.sub(r"\b(up|down|block|attn)\.(\d+)\.", r"\1_\2.", name.removeprefix(prefix))
      path, _, leaf = path.rpartition(".")
      leaf, value = leaf_of(leaf, value)
      put(tree, f"{path.replace('.', '/')}/{leaf}", value)
  return tree


def attention_params(parts: dict[str, np.ndarray], heads: int) -> dict:
  """{"query.weight", ..., "out.bias"} in torch layout -> MultiHeadAttention's tree."""
  tree: dict = {}
  for name in ("query", "key", "value"):
    weight = parts[f"{name}.weight"].T
    put(tree, f"{name}/kernel", weight.reshape(weight.shape[0], heads, -1))
    put(tree, f"{name}/bias", parts[f"{name}.bias"].reshape(heads, -1))
  weight = parts["out.weight"].T
  put(tree, "out/kernel", weight.reshape(heads, -1, weight.shape[1]))
  put(tree, "out/bias", parts["out.bias"])
  return tree


def block_params(tensors: dict[str, np.ndarray], prefix: str, heads: int) -> dict:
  names = dict(query="q_proj", key="k_proj", value="v_proj", out="out_proj")
  attention = {
    f"{ours}.{leaf}": tensors[f"{prefix}self_attn.{theirs}.{leaf}"]
    for ours, theirs in names.items()
    for leaf in ("weight", "bias")
  }
  tree = {"self_attn": attention_params(attention, heads)}
  for name in ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"):
    for torch_leaf in ("weight", "bias"):
      leaf, value = leaf_of(torch_leaf, tensors[f"{prefix}{name}.{torch_leaf}"])
      put(tree, f"{name.replace('.', '/')}/{leaf}", value)
  return tree


def stack(trees: list[dict]) -> dict:
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def norm_params(tensors: dict[str, np.ndarray], prefix: str) -> dict:
  return {
    "scale": jnp.asarray(tensors[f"{prefix}weight"]),
    "bias": jnp.asarray(tensors[f"{prefix}bias"]),
  }


def vision_params(tensors: dict[str, np.ndarray], config: VisionConfig) -> dict:
  """HF SigLIP vision_model.* -> VisionEncoder's tree."""
  blocks = [
    block_params(tensors, f"encoder.layers.{i}.", config.heads) for i in range(config.depth)
  ]
  head = {"out.weight": tensors["head.attention.out_proj.weight"]}
  head["out.bias"] = tensors["head.attention.out_proj.bias"]
  for leaf in ("weight", "bias"):
    for name, part in zip(
      ("query", "key", "value"), np.split(tensors[f"head.attention.in_proj_{leaf}"], 3)
    ):
      head[f"{name}.{leaf}"] = part
  mlp = {
    fc: {
      "kernel": jnp.asarray(tensors[f"head.mlp.{fc}.weight"].T),
      "bias": jnp.asarray(tensors[f"head.mlp.{fc}.bias"]),
    }
    for fc in ("fc1", "fc2")
  }
  patch = tensors["embeddings.patch_embedding.weight"]
  return {
    "embed": {
      "kernel": jnp.asarray(patch.transpose(2, 3, 1, 0)),
      "bias": jnp.asarray(tensors["embeddings.patch_embedding.bias"]),
      "position": jnp.asarray(tensors["embeddings.position_embedding.weight"]),
    },
    "layers": stack(blocks[:-1]),
    "last_layer": blocks[-1],
    "post_norm": norm_params(tensors, "post_layernorm."),
    "head": {
      "probe": jnp.asarray(tensors["head.probe"]),
      "attention": attention_params(head, config.heads),
      "layer_norm": norm_params(tensors, "head.layernorm."),
      "mlp": mlp,
    },
  }


def text_params(tensors: dict[str, np.ndarray], config: TextConfig) -> dict:
  """HF SigLIP text_model.* -> TextEncoder's tree."""
  blocks = [
    block_params(tensors, f"encoder.layers.{i}.", config.heads) for i in range(config.depth)
  ]
  table = {
    name: jnp.asarray(tensors[f"embeddings.{name}_embedding.weight"])
    for name in ("token", "position")
  }
  return table | {
    "layers": stack(blocks),
    "final_norm": norm_params(tensors, "final_layer_norm."),
    "head": {
      "kernel": jnp.asarray(tensors["head.weight"].T),
      "bias": jnp.asarray(tensors["head.bias"]),
    },
  }


def quantizer_state(tensors: dict[str, np.ndarray], prefix: str) -> dict:
  """codebooks.{d}.* -> state; the padding row goes."""
  tables = sorted(n for n in tensors if n.startswith(prefix) and n.endswith(".weight"))
  tables = [n.removesuffix("weight") for n in tables]
  return {
    "codebook": jnp.stack([tensors[f"{n}weight"][:-1] for n in tables]),
    "cluster_size": jnp.stack([tensors[f"{n}cluster_size_ema"] for n in tables]),
    "embed_sum": jnp.stack([tensors[f"{n}embed_ema"] for n in tables]),
  }


def sub(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
  return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def conv_1x1(tensors: dict[str, np.ndarray], name: str) -> dict:
  kernel = tensors[f"{name}.weight"].transpose(2, 3, 1, 0)
  return {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(tensors[f"{name}.bias"])}


def cnn_config(dd: dict) -> CnnConfig:
  return CnnConfig(
    channels=dd["ch"],
    multipliers=tuple(dd["ch_mult"]),
    blocks=dd["num_res_blocks"],
    latent_channels=dd["z_channels"],
    resolution=dd["resolution"],
    attention_resolutions=tuple(dd["attn_resolutions"]),
  )


def siglip_tower(folder: str = "a") -> tuple[TowerConfig, dict]:
  """The tower of a golden VILA-U checkpoint: config and variables."""
  root = GOLDEN / folder / "checkpoint"
  siglip = json.loads((root / "siglip_config/config.json").read_text())
  rq = json.loads((root / "vision_tower/config.json").read_text())["rqvaesiglip"]
  names = dict(
    width="hidden_size", hidden="intermediate_size", depth="num_hidden_layers",
    heads="num_attention_heads",
  )  # fmt: skip
  vision = {k: siglip["vision_config"][v] for k, v in names.items()}
  text = {k: siglip["text_config"][v] for k, v in names.items()}
  latent = rq["decoder_latent_shape"]
  config = TowerConfig(
    vision=VisionConfig(
      image_size=siglip["vision_config"]["image_size"],
      patch_size=siglip["vision_config"]["patch_size"],
      **vision,
    ),
    text=TextConfig(
      vocab_size=siglip["text_config"]["vocab_size"],
      length=siglip["text_config"]["max_position_embeddings"],
      **text,
    ),
    quantizer=QuantizerConfig(
      depth=rq["code_shape"][-1],
      entries=rq["n_embed"],
      width=rq["embed_dim"],
      shared=rq["shared_codebook"],
      decay=rq["decay"],
      restart=rq["restart_unused_codes"],
    ),
    decoder=cnn_config(rq["ddconfig"]),
    latent_grid=latent[0] if latent else 0,
  )
  tensors = sub(load_file(root / "vision_tower/model.safetensors"), "rqvaesiglip.")
  params = {
    "vision": vision_params(sub(tensors, "siglip_model.vision_model."), config.vision),
    "text": text_params(sub(tensors, "siglip_model.text_model."), config.text),
    "decoder": cnn_params(tensors, "decoder."),
    "post_quant": conv_1x1(tensors, "post_quant_conv"),
    "logit_scale": jnp.asarray(tensors["logit_scale"]),
    "logit_bias": jnp.asarray(tensors["logit_bias"]),
  }
  return config, {"params": params, "quantizer": quantizer_state(tensors, "quantizer.codebooks.")}


def rqvae_tower() -> tuple[TowerConfig, dict]:
  """The golden RQ-VAE: config and variables."""
  meta = json.loads((GOLDEN / "rqvae/meta.json").read_text())["rqvae_config"]
  hparams, cnn = meta["hparams"], cnn_config(meta["ddconfig"])
  config = TowerConfig(
    encoder="rqvae",
    vision=None,
    text=None,
    cnn=cnn,
    decoder=cnn,
    quantizer=QuantizerConfig(
      depth=hparams["code_shape"][-1],
      entries=hparams["n_embed"],
      width=hparams["embed_dim"],
      shared=hparams["shared_codebook"],
      decay=hparams["decay"],
      restart=hparams["restart_unused_codes"],
    ),
  )
  tensors = load_file(GOLDEN / "rqvae/rqvae.safetensors")
  params = {
    "encoder": cnn_params(tensors, "encoder."),
    "quant": conv_1x1(tensors, "quant_conv"),
    "post_quant": conv_1x1(tensors, "post_quant_conv"),
    "decoder": cnn_params(tensors, "decoder."),
  }
  return config, {"params": params, "quantizer": quantizer_state(tensors, "quantizer.codebooks.")}


def discriminator_variables(tensors: dict[str, np.ndarray], layers: int) -> dict:
  """main.{0,2,3,..} -> PatchDiscriminator's variables."""
  params: dict = {}
  stats: dict = {}
  convs = {0: "conv_0"} | {3 * i - 1: f"conv_{i}" for i in range(1, layers + 1)}
  convs[3 * layers + 2] = "conv_out"
  norms = {3 * i: f"norm_{i}" for i in range(1, layers + 1)}
  for name, value in tensors.items():
    _, index, leaf = name.split(".")
    if int(index) in convs:
      leaf, value = leaf_of(leaf, value)
      put(params, f"{convs[int(index)]}/{leaf}", value)
    elif leaf in ("weight", "bias"):
      put(params, f"{norms[int(index)]}/{leaf_of(leaf, value)[0]}", value)
    elif leaf in ("running_mean", "running_var"):
      put(stats, f"{norms[int(index)]}/{leaf.removeprefix('running_')}", value)
    elif leaf in ("loc", "scale"):
      put(stats, f"{norms[int(index)]}/{leaf}", value.reshape(-1))
      put(params, f"{norms[int(index)]}/{leaf}_offset", np.zeros(value.size, np.float32))
    elif leaf == "initialized":
      put(stats, f"{norms[int(index)]}/initialized", value.astype(bool).reshape(()))
  return {"params": params, "batch_stats": stats}
