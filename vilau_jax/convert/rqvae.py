"""RQ-VAE checkpoints (kakaobrain's stage 1, and the halves that VILA-U's tower shares with them)
<-> params/tower/{encoder, quant, post_quant, decoder} and the quantizer collection.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import yaml

from vilau_jax.config import CnnConfig, QuantizerConfig, TowerConfig, VilaUConfig
from vilau_jax.convert.configs import Fields, side
from vilau_jax.convert.plan import Row
from vilau_jax.convert.siglip import dense, norm
from vilau_jax.convert.sources import read_json
from vilau_jax.convert.transforms import CODEBOOK, CONV, SAME, Shape

AT = "params/tower"
PARTS = (*(f"{AT}/{name}" for name in ("encoder", "quant", "post_quant", "decoder")), "quantizer")
# Losses and schedules; what a network is does not depend on them.
_LOSSES = "loss_type latent_loss_weight bottleneck_type checkpointing".split()
# torch's name of a codebook's buffer -> ours
_BUFFERS = {"weight": "codebook", "cluster_size_ema": "cluster_size", "embed_ema": "embed_sum"}


def rows(config: TowerConfig, shapes: Mapping[str, Shape], prefix: str = "") -> list[Row]:
  """The table of an RQ-VAE tower.

  Args:
    config: of the tower.
    shapes: our variables; the levels and their blocks are read off them.
    prefix: in front of every name.
  """
  table = cnn_rows("decoder", shapes, prefix) + codebook_rows(config.quantizer, prefix)
  table += dense(f"{AT}/post_quant", f"{prefix}post_quant_conv", CONV)
  if config.encoder == "rqvae":
    table += cnn_rows("encoder", shapes, prefix)
    table += dense(f"{AT}/quant", f"{prefix}quant_conv", CONV)
  return table


def cnn_rows(half: str, shapes: Mapping[str, Shape], prefix: str = "") -> list[Row]:
  """Encoder or decoder: "up_2/block_0/conv1" here is "up.2.block.0.conv1" there."""
  modules = {p.rpartition("/")[0] for p in shapes if p.startswith(f"{AT}/{half}/")}
  table = []
  for module in sorted(modules):
    inner = module.removeprefix(f"{AT}/{half}/")
    if not inner.startswith("mid/"):  # its blocks are called block_1 and attn_1 there too
      inner = re.sub(r"\b(up|down|block|attn)_(\d+)\b", r"\1.\2", inner)
    name = f"{prefix}{half}.{inner.replace('/', '.')}"
    convolution = f"{module}/kernel" in shapes
    table += dense(module, name, CONV) if convolution else norm(module, name)
  return table


def codebook_rows(config: QuantizerConfig, prefix: str = "") -> list[Row]:
  """Codebooks and their moving averages; a shared one is stored once a depth, or once."""
  at, table = f"{prefix}quantizer.codebooks", []
  for theirs, ours in _BUFFERS.items():
    how = CODEBOOK if theirs == "weight" else SAME
    names = [f"{at}.{d}.{theirs}" for d in range(config.depth)]
    if config.shared:
      table.append(Row(f"quantizer/{ours}", tuple(names), how, layer=0))
    else:
      table += [Row(f"quantizer/{ours}", (n,), how, layer=d) for d, n in enumerate(names)]
  return table


def read_config(path: pathlib.Path) -> VilaUConfig:
  """The architecture of an RQ-VAE: config.yaml or config.json in the folder of the weights, as
  kakaobrain's releases have it ("arch": {"hparams", "ddconfig"}), or with these two at the top.

  Raises:
    ValueError: naming a field that is missing or not honoured.
  """
  folder = path if path.is_dir() else path.parent
  file = next((folder / n for n in ("config.yaml", "config.json") if (folder / n).is_file()), None)
  if file is None:
    raise ValueError(f"{folder} holds neither config.yaml nor config.json: the sizes are not known")
  values = read_json(file) if file.suffix == ".json" else _read_yaml(file)
  top = Fields(file, values)
  if "arch" in top:
    top = top.object("arch", ["ema", "checkpointing", "code_hier"])  # around it: data, optimizer
    top.fixed("type", "rq-vae")
  hparams, ddconfig = top.object("hparams", _LOSSES), top.object("ddconfig")
  width = hparams.size("embed_dim")
  codes, latent = read_quantizer(hparams, width)
  cnn, latent_width = read_cnn(ddconfig), hparams.sizes("latent_shape")[2]
  if latent_width != width:
    raise ValueError(f"{file}: latent_shape has {latent_width} channels, embed_dim is {width}")
  hparams.done()
  tower = TowerConfig(
    encoder="rqvae", vision=None, text=None, cnn=cnn, decoder=cnn, quantizer=codes
  )
  if tower.grid * codes.fold != latent:
    raise ValueError(f"{file}: latent_shape has side {latent}, but ddconfig makes "
                     f"{tower.grid * codes.fold} of {cnn.resolution} pixels")  # fmt: skip
  return VilaUConfig(name=folder.resolve().name, tower=tower, llm=None, depth=None)


def _read_yaml(file: pathlib.Path) -> Any:
  try:
    return yaml.safe_load(file.read_text(encoding="utf-8"))
  except (yaml.YAMLError, RecursionError, ValueError, TypeError, LookupError) as error:
    raise ValueError(f"{file} is not YAML: {error!s:.500}") from error


def read_quantizer(fields: Fields, width: int) -> tuple[QuantizerConfig, int]:
  """Quantiser and side of the latents, from latent_shape, code_shape and the codebook's fields."""
  shapes = [fields.sizes(key) for key in ("latent_shape", "code_shape")]
  sides = []
  for key, shape in zip(("latent_shape", "code_shape"), shapes):
    if len(shape) != 3:
      raise ValueError(f"{fields.file}: {fields.path}{key} must be [h, w, n], got {shape!r:.200}")
    sides.append(side(fields, key, shape[:2]))
  latent, codes = sides
  if latent % codes:
    raise ValueError(f"{fields.file}: code_shape {shapes[1]} does not divide latent_shape "
                     f"{shapes[0]}")  # fmt: skip
  quantizer = QuantizerConfig(
    depth=int(shapes[1][2]),
    entries=fields.size("n_embed"),
    width=width,
    fold=latent // codes,
    shared=fields.take("shared_codebook", bool, False),
    decay=fields.take("decay", float, 0.99),
    restart=fields.take("restart_unused_codes", bool, True),
  )
  return quantizer, latent


def read_cnn(fields: Fields) -> CnnConfig:
  """A ddconfig."""
  for key, allowed in dict(
    double_z=(False,), in_channels=(3,), out_ch=(3,), dropout=(0, 0.0), resamp_with_conv=(True,),
    give_pre_end=(False,),
  ).items():  # fmt: skip
    fields.fixed(key, *allowed)
  config = CnnConfig(
    channels=fields.size("ch"),
    multipliers=fields.sizes("ch_mult"),
    blocks=fields.size("num_res_blocks", least=0),  # the decoder has one more
    latent_channels=fields.size("z_channels"),
    resolution=fields.size("resolution"),
    attention_resolutions=fields.sizes("attn_resolutions"),
  )
  fields.done()
  return config


def write_quantizer(config: TowerConfig) -> dict[str, Any]:
  """The fields that read_quantizer reads."""
  codes = config.quantizer
  latent = config.grid * codes.fold
  return {
    "code_shape": [config.grid, config.grid, codes.depth],
    "decay": codes.decay,
    "embed_dim": codes.width,
    "latent_loss_weight": 0.25,
    "latent_shape": [latent, latent, codes.width],
    "n_embed": codes.entries,
    "restart_unused_codes": codes.restart,
    "shared_codebook": codes.shared,
  }


def write_cnn(config: CnnConfig) -> dict[str, Any]:
  """A ddconfig."""
  return {
    "attn_resolutions": list(config.attention_resolutions),
    "ch": config.channels,
    "ch_mult": list(config.multipliers),
    "double_z": False,
    "dropout": 0.0,
    "in_channels": 3,
    "num_res_blocks": config.blocks,
    "out_ch": 3,
    "resolution": config.resolution,
    "z_channels": config.latent_channels,
  }


def write_config(config: TowerConfig) -> dict[str, Any]:
  """config.yaml as kakaobrain's trainer reads it, architecture only."""
  hparams = write_quantizer(config) | {"bottleneck_type": "rq", "loss_type": "mse"}
  return {"arch": {"type": "rq-vae", "hparams": hparams, "ddconfig": write_cnn(config.decoder)}}


def unsupported(config: TowerConfig) -> list[str]:
  """What of a tower no checkpoint of these families can carry."""
  codes, wrong = config.quantizer, []
  if codes.update != "sequential_per_depth":
    wrong.append(f"quantizer.update {codes.update!r}")
  if codes.restart and (codes.restart_threshold != 1 or codes.restart_draw != "uniform"):
    wrong.append("quantizer.restart_threshold / restart_draw (only for training)")
  for name, half in (("decoder", config.decoder), ("cnn", config.cnn)):
    if half is not None and half.pixel_shuffle != 1:
      wrong.append(f"{name}.pixel_shuffle {half.pixel_shuffle}")
    if half is not None and half.groups != 32:
      wrong.append(f"{name}.groups {half.groups} (32 there)")
  if codes.eps != 1e-5:
    wrong.append(f"quantizer.eps {codes.eps} (1e-05 there)")
  return wrong
