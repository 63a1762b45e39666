"""THE analytic model of work: floating-point operations of training, tokenizing and drawing.

One multiply-add is two operations. Model FLOPs of training are 6 per trained parameter and position
(4 where the parameter is frozen but gradients pass through, 2 where they do not), for parameters of
products alone: a looked-up row costs nothing. Adapters are parameters like others, beside frozen
ones. Causal attention counts half of its square, over
whole rows. The depth transformer counts at supervised positions only. Rematerialisation counts
nothing.

Axis letters: L positions of a row, N visual slots, T visual positions of an image, R residual
depth, E entries, V text vocabulary, D width, F hidden, S image side.
"""

from collections.abc import Iterable

from ml_collections import ConfigDict

from vilau_jax.config import CnnConfig, DepthConfig, LlamaConfig, TowerConfig, VilaUConfig
from vilau_jax.models.pixel_decoder import level_side
from vilau_jax.models.vilau import PROJECTOR_LAYERS

DEFINITION = (
  "model FLOPs: 6 per trained parameter of a product and position (frozen: 4 or 2), causal "
  "attention at half, depth transformer at supervised positions only, nothing for "
  "rematerialisation"
)


def llm_parameters(c: LlamaConfig) -> int:
  """Parameters of the blocks' products."""
  attention = 2 * c.width * c.heads * c.head_dim + 2 * c.width * c.kv_heads * c.head_dim
  return c.depth * (attention + 3 * c.width * c.hidden)


def depth_parameters(c: DepthConfig) -> int:
  """Parameters of the depth transformer's blocks' products."""
  return c.depth * (4 * c.width**2 + 2 * c.width * c.hidden)


def llm_forward(c: LlamaConfig, length: int) -> dict[str, float]:
  """One row of L positions: "llm" (blocks), "attention" (causal, half the square), "head"."""
  return {
    "llm": 2.0 * llm_parameters(c) * length,
    "attention": c.depth * attention(length, length, c.heads * c.head_dim) / 2,
    "head": 2.0 * c.width * c.vocab_size * length,
  }


def attention(queries: int, keys: int, width: int) -> float:
  """Scores and weighted sum over all pairs; `width` is heads x head size."""
  return 4.0 * queries * keys * width


def projector_forward(model: VilaUConfig, slots: float) -> float:
  """Code sums to the language model's width, at `slots` visual positions."""
  layers, width = PROJECTOR_LAYERS[model.projector], model.llm.width
  codes = model.tower.quantizer
  first = codes.width * codes.fold**2 * width if layers else 0
  return 2.0 * slots * (first + max(layers - 1, 0) * width**2)


def depth_forward(model: VilaUConfig, positions: float) -> float:
  """All R codes of visual positions, teacher-forced or one by one with a cache."""
  c, codes = model.depth, model.tower.quantizer
  r, width = codes.depth, c.width
  inputs = model.llm.width * width + (r - 1) * codes.width * codes.fold**2 * width
  heads = r * width * codes.entries
  pairs = c.depth * attention(r, r, width) / 2
  return positions * (2.0 * (r * depth_parameters(c) + inputs + heads) + pairs)


def lm_step(
  model: VilaUConfig,
  *,
  rows: float,
  length: int,
  slots: float,
  supervised: float,
  freeze: Iterable[str] = (),
  rank: int = 0,
  targets: Iterable[str] = (),
) -> dict[str, float]:
  """Model FLOPs of one optimisation step over packed rows, on all devices together.

  Args:
    model: the architecture.
    rows: of a step.
    length: L, positions of a row.
    slots: visual positions of a row that the projector reads.
    supervised: visual positions of a row that the depth transformer predicts.
    freeze: path prefixes whose parameters do not learn; counted are whole parts, and the head.
    rank: of adapters, which learn in place of every parameter; 0: there are none.
    targets: path prefixes of the parts that have adapters, counted as whole parts.

  Returns:
    {"llm", "attention", "head", "projector", "depth", ["adapters"], "total"}.
  """
  row = llm_forward(model.llm, length)
  row |= {
    "projector": projector_forward(model, slots),
    "depth": depth_forward(model, supervised),
  }
  still = {prefix.strip("/").split("/")[0] for prefix in freeze if "/" not in prefix.strip("/")}
  learns = {"projector", "llm", "depth"} - still
  if rank:
    learns = {prefix.strip("/").split("/")[0] for prefix in targets}
  early = bool(learns & {"projector", "llm"})  # gradients pass down into the stack
  passed = {"projector": "projector" in learns, "llm": early, "depth": early or "depth" in learns}
  factors = {
    part: 6 if part in learns and not rank else 4 if passed[part] else 2 for part in passed
  }
  head = "llm/lm_head" in {prefix.strip("/") for prefix in freeze}
  factors |= {"attention": 6 if early else 2, "head": min(factors["llm"], 4 if head else 6)}
  parts = {name: rows * value * factors[name] / 2 for name, value in row.items()}
  if rank:
    adapters = adapters_forward(model, rank, length, slots, supervised)
    parts["adapters"] = 3 * rows * sum(v for part, v in adapters.items() if part in learns)
  return parts | {"total": sum(parts.values())}


def adapters_forward(
  model: VilaUConfig, rank: int, length: float, slots: float, supervised: float
) -> dict[str, float]:
  """One row through the adapters of all projections, by part; see lora.py. A projection of I
  inputs and O features has rank * (I + O) parameters more."""
  c, d, codes = model.llm, model.depth, model.tower.quantizer
  code, layers = codes.width * codes.fold**2, PROJECTOR_LAYERS[model.projector]
  attention = 2 * (c.width + c.heads * c.head_dim) + 2 * (c.width + c.kv_heads * c.head_dim)
  sides = {
    "llm": length * c.depth * (attention + 3 * (c.width + c.hidden)),
    "projector": slots * (code + (2 * layers - 1) * c.width if layers else 0),
    "depth": supervised
    * (
      codes.depth * d.depth * (8 * d.width + 2 * (d.width + d.hidden))
      + (c.width + d.width)
      + (codes.depth - 1) * (code + d.width)
    ),
  }
  return {part: 2.0 * rank * value for part, value in sides.items()}


def tower_step(config: ConfigDict, tower: TowerConfig) -> dict[str, float]:
  """Model FLOPs of one step of the tower stage, on all devices together, by part and "total".

  A trained part counts its forward pass three times, a frozen one once, or twice if gradients pass
  it on the way to others, as in a part under adapters, whose own products are left out; the
  quantiser has no backward pass. LPIPS: two forward passes and the gradient of the drawn image.
  Discriminator: forward and input gradient for the generator, then both passes over both images.
  """
  loss, freeze = config.loss, [p.strip("/") for p in config.optim.freeze]
  targets = [t.strip("/") for t in config.lora.targets] if config.lora.rank else []
  encoder = "tower/vision" if tower.encoder == "siglip" else "tower/encoder"

  def learns(part: str) -> bool:
    if targets:
      return any(f"{t}/".startswith(f"{part}/") or f"{part}/".startswith(f"{t}/") for t in targets)
    return not any(p in (part, "tower") for p in freeze)

  def times(part: str) -> int:
    if learns(part):
      return 2 if targets else 3
    return 2 if part == "tower/decoder" and learns(encoder) else 1

  parts = {"quantizer": quantizer_forward(tower)}
  if tower.encoder == "siglip":
    parts["vision"] = times("tower/vision") * vision_forward(tower)
  else:
    parts["encoder"] = times("tower/encoder") * cnn_encoder_forward(tower.cnn)
  if loss.contrastive:
    parts["pool"] = max(2, times("tower/vision")) * pool_forward(tower)
    captions = 2 if loss.wrong_captions else 1
    parts["text"] = captions * times("tower/text") * text_forward(tower)
  side = tower.image_size
  parts["decoder"] = times("tower/decoder") * decoder_forward(tower)
  if loss.lpips:
    parts["lpips"] = 3 * vgg_forward(side)
  if loss.gan:
    parts["discriminator"] = 8 * patch_gan_forward(side, loss.disc.channels, loss.disc.layers)
  parts = {name: config.batch_size * value for name, value in parts.items()}
  return parts | {"total": sum(parts.values())}


def _encoder_layer(tokens: int, width: int, hidden: int) -> float:
  return 2.0 * tokens * (4 * width**2 + 2 * width * hidden) + attention(tokens, tokens, width)


def vision_forward(tower: TowerConfig) -> float:
  """One image up to the quantiser: patches and all layers but the last."""
  c, t = tower.vision, tower.vision.grid**2
  patches = 2.0 * t * c.patch_size**2 * 3 * c.width
  return patches + (c.depth - 1) * _encoder_layer(t, c.width, c.hidden)


def pool_forward(tower: TowerConfig) -> float:
  """The contrastive route of one image: last layer (CNN encoders: a projection), pooling head."""
  c, t = tower.vision or tower.text, tower.image_tokens
  probe = 2.0 * (2 * (t + 1) * c.width**2 + 2 * c.width * c.hidden) + attention(1, t, c.width)
  if tower.vision is None:
    return probe + 2.0 * t * tower.quantizer.width * c.width
  return _encoder_layer(t, c.width, c.hidden) + probe


def text_forward(tower: TowerConfig) -> float:
  """One caption."""
  c = tower.text
  return c.depth * _encoder_layer(c.length, c.width, c.hidden) + 2.0 * c.width**2


def quantizer_forward(tower: TowerConfig) -> float:
  """Distances of one image's features to all entries, at every depth."""
  c = tower.quantizer
  return 2.0 * tower.image_tokens * c.depth * c.entries * c.width * c.fold**2


def tokenize_image(tower: TowerConfig) -> float:
  """Pixels of one image to codes."""
  if tower.encoder == "siglip":
    return vision_forward(tower) + quantizer_forward(tower)
  return cnn_encoder_forward(tower.cnn) + quantizer_forward(tower)


def _conv(side: int, size: int, inputs: int, outputs: int) -> float:
  return 2.0 * side**2 * size**2 * inputs * outputs


def _res_block(side: int, inputs: int, outputs: int) -> float:
  shortcut = _conv(side, 1, inputs, outputs) if inputs != outputs else 0.0
  return _conv(side, 3, inputs, outputs) + _conv(side, 3, outputs, outputs) + shortcut


def _attn_block(side: int, width: int) -> float:
  return 4 * _conv(side, 1, width, width) + attention(side**2, side**2, width)


def _middle(side: int, width: int) -> float:
  return 2 * _res_block(side, width, width) + _attn_block(side, width)


def _level(c: CnnConfig, level: int, blocks: int, inputs: int, resample: int) -> float:
  """`resample`: side of the map that the level's last convolution writes, 0 = none."""
  side, width = level_side(c, level), c.channels * c.multipliers[level]
  total = _conv(resample, 3, width, width) if resample else 0.0
  for i in range(blocks):
    total += _res_block(side, width if i else inputs, width)
    if side in c.attention_resolutions:
      total += _attn_block(side, width)
  return total


def decoder_forward(tower: TowerConfig) -> float:
  """Codes of one image to pixels: all nine taps where a map is doubled, as counts of this net are
  published; `layers.conv.conv_of_doubled` computes four."""
  c, top = tower.decoder, len(tower.decoder.multipliers) - 1
  side, width = level_side(c, top), c.channels * c.multipliers[top]
  grid = tower.latent_grid or tower.grid * tower.quantizer.fold
  total = _conv(grid, 1, tower.quantizer.width, c.latent_channels)
  total += _conv(side, 3, c.latent_channels, width) + _middle(side, width)
  for level in reversed(range(top + 1)):
    total += _level(c, level, c.blocks + 1, width, 2 * level_side(c, level) if level else 0)
    width = c.channels * c.multipliers[level]
  return total + _conv(level_side(c, 0), 3, width, 3 * c.pixel_shuffle**2)


def cnn_encoder_forward(c: CnnConfig) -> float:
  """Pixels of one image to latents, RQ-VAE's encoder."""
  top, width = len(c.multipliers) - 1, c.channels
  total = _conv(level_side(c, 0), 3, 3, width)
  for level in range(top + 1):
    total += _level(c, level, c.blocks, width, level_side(c, level) // 2 if level < top else 0)
    width = c.channels * c.multipliers[level]
  side = level_side(c, top)
  return total + _middle(side, width) + _conv(side, 3, width, c.latent_channels)


def vgg_forward(side: int) -> float:
  """One image through LPIPS' VGG16."""
  total, before = 0.0, 3
  for stage, (width, layers) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
    for _ in range(layers):
      total += _conv(side // 2**stage, 3, before, width)
      before = width
  return total


def patch_gan_forward(side: int, channels: int, layers: int) -> float:
  """One image through the discriminator: `layers` convolutions of stride 2, two of stride 1."""
  total, before = 0.0, 3
  for i in range(layers):
    side, width = side // 2, channels * min(2**i, 8)
    total += _conv(side, 4, before, width)
    before = width
  width = channels * min(2**layers, 8)
  return total + _conv(side - 1, 4, before, width) + _conv(side - 2, 4, width, 1)
