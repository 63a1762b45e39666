"""The analytic model against published counts, and against what XLA is asked to compute."""

import experiments
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util

from vilau_jax.config import VilaUConfig
from vilau_jax.models.discriminator import PatchDiscriminator
from vilau_jax.models.perceptual import Lpips
from vilau_jax.models.pixel_decoder import level_side
from vilau_jax.models.tower import Tower
from vilau_jax.models.vilau import VilaU
from vilau_jax.models.vilau import init as init_params
from vilau_jax.plan import flops, hlo, programs
from vilau_jax.train.lm import LmStage


def compiled_flops(fn, *args):
  """Products of the program as XLA gets it: border positions of convolutions are not there yet."""
  return hlo.total_flops(hlo.parse(jax.jit(fn).lower(*args).compile().as_text()))


@pytest.mark.parametrize(
  "preset, vision, quantizer, decoder, text",
  [("vilau_7b_256", 0.161, 0.034, 0.253, 0.039), ("vilau_7b_384", 0.666, 0.440, 0.570, 0.053)],
)
def test_forward_passes_of_the_towers_in_teraflop(preset, vision, quantizer, decoder, text):
  tower = VilaUConfig.from_preset(preset).tower
  whole = flops.vision_forward(tower) + flops.pool_forward(tower)
  assert whole / 1e12 == pytest.approx(vision, rel=0.05)  # the published count is of the encoder
  assert flops.quantizer_forward(tower) / 1e12 == pytest.approx(quantizer, rel=0.02)
  assert flops.decoder_forward(tower) / 1e12 == pytest.approx(decoder, rel=0.02)
  assert flops.text_forward(tower) / 1e12 == pytest.approx(text, rel=0.02)


def test_the_language_model_in_teraflop():
  """A drawing of 316 positions, 256 of them supervised: 15.6 in training (forward three times)."""
  model = VilaUConfig.from_preset("vilau_7b_256")
  step = flops.lm_step(model, rows=1, length=316, slots=256, supervised=256)
  assert step["llm"] / 3e12 == pytest.approx(4.09, rel=0.02)
  assert step["depth"] / 3e12 == pytest.approx(1.06, rel=0.01)
  assert step["total"] / 1e12 == pytest.approx(15.6, rel=0.02)
  frozen = flops.lm_step(
    model, rows=1, length=316, slots=256, supervised=256, freeze=("llm", "projector")
  )
  assert frozen["llm"] == step["llm"] / 3 and frozen["depth"] == step["depth"]
  still = flops.lm_step(
    model, rows=1, length=316, slots=256, supervised=256, freeze=("llm/lm_head",)
  )
  assert still["head"] == step["head"] * 2 / 3 and still["llm"] == step["llm"]
  beside = flops.lm_step(model, rows=1, length=316, slots=256, supervised=256, freeze=("llm",))
  assert beside["llm"] == step["llm"] * 2 / 3  # its gradients still reach the projector


def test_what_a_config_leaves_out_or_adds_is_counted():
  c, model = experiments.lm()
  whole = programs.counted(c, model)[0]
  c.loss.visual_fraction = 0.25
  assert programs.counted(c, model)[0]["depth"] == whole["depth"] / 4
  c, model = experiments.tower()
  c.loss.wrong_captions = 0.0
  once = programs.counted(c, model)[0]["text"]
  c.loss.wrong_captions = 1.0
  assert programs.counted(c, model)[0]["text"] == 2 * once


def test_of_a_tower_only_what_learns_has_a_gradient():
  c, model = experiments.tower()
  whole = programs.counted(c, model)[0]
  c.lora.update(dict(rank=2, targets=("tower/vision/layers",)))
  adapted = programs.counted(c, model)[0]
  assert adapted["vision"] == whole["vision"] * 2 / 3 and adapted["text"] == whole["text"] / 3
  assert adapted["decoder"] == whole["decoder"] * 2 / 3  # gradients pass it
  c.lora.rank, c.optim.freeze = 0, ("tower/vision", "tower/decoder")
  frozen = programs.counted(c, model)[0]
  assert frozen["decoder"] == whole["decoder"] / 3 and frozen["text"] == whole["text"]


def test_transformers_equal_the_compiled_program():
  model = VilaUConfig.from_preset("tiny")
  length, slots, r = 32, 16, model.tower.quantizer.depth
  params = nn.unbox(jax.eval_shape(lambda k: init_params(model, k), jax.random.key(0)))
  leaf = jax.ShapeDtypeStruct
  codebook = leaf((1, model.tower.quantizer.entries, 32), jnp.float32)
  codes, row = leaf((1, slots, r), jnp.int32), leaf((1, length), jnp.int32)

  def forward(params, codebook, codes, place, row):
    batch = dict(tokens=row, codes=codes, visual_position=place, segment_ids=row, positions=row)
    return VilaU(model).apply({"params": params}, batch, codebook)

  got = compiled_flops(forward, params, codebook, codes, leaf((1, slots), jnp.int32), row)
  parts = flops.lm_step(model, rows=1 / 3, length=length, slots=slots, supervised=slots)
  pairs = parts["attention"]  # compiled whole here, in one block
  depth_pairs = slots * model.depth.depth * flops.attention(r, r, model.depth.width) / 2
  assert got == parts["total"] + pairs + depth_pairs


def test_towers_equal_the_compiled_program():
  model = VilaUConfig.from_preset("tiny")
  tower = Tower(model.tower)
  side = model.tower.image_size
  images, text = jnp.zeros((1, side, side, 3)), jnp.zeros((1, model.tower.text.length), jnp.int32)
  variables = jax.eval_shape(lambda: nn.unbox(tower.init(jax.random.key(0), images)))
  z = jnp.zeros((1, model.tower.image_tokens, 32))
  encoded = compiled_flops(lambda v: tower.apply(v, images, method="encode"), variables)
  assert encoded == flops.tokenize_image(model.tower)
  pooled = compiled_flops(lambda v: tower.apply(v, z, method="image_embedding"), variables)
  assert pooled == pytest.approx(flops.pool_forward(model.tower), rel=0.02)  # one probe's query
  texts = compiled_flops(lambda v: tower.apply(v, text, method="text_embedding"), variables)
  assert texts == pytest.approx(flops.text_forward(model.tower), rel=0.001)


def test_adapters_cost_what_their_parameters_do():
  c, model = experiments.lm()
  c.lora.update(dict(rank=3, targets=("llm", "projector", "depth")))
  state, _ = jax.eval_shape(LmStage(c, model).init, jax.random.key(0))
  params = nn.unbox(state.params)

  def size(part, name=""):
    flat = traverse_util.flatten_dict(params[part])
    return sum(leaf.size for keys, leaf in flat.items() if not name or name in keys)

  once = flops.adapters_forward(model, 3, 1, 1, 1)
  r = model.tower.quantizer.depth
  assert once["llm"] == 2 * size("llm") and once["projector"] == 2 * size("projector")
  inputs = size("depth", "in_mlp_2") + (r - 1) * size("depth", "in_mlp_1")
  assert once["depth"] == 2 * (r * size("depth", "layers") + inputs)
  row = dict(rows=1, length=64, slots=40, supervised=32)
  whole = flops.lm_step(model, **row)
  step = flops.lm_step(model, **row, rank=3, targets=("llm",))
  assert step["llm"] == whole["llm"] * 2 / 3 and step["projector"] == whole["projector"] / 3
  assert step["adapters"] == 3 * 64 * once["llm"]


def within_borders(got, want):
  """Convolutions compute nothing beyond the border, which the analytic model does not know."""
  assert 0.8 * want < got <= want


def test_convolutions_equal_the_compiled_program_but_for_borders():
  model = VilaUConfig.from_preset("tiny").tower
  tower, z = Tower(model), jnp.zeros((1, model.image_tokens, 32))
  image = jnp.zeros((1, model.image_size, model.image_size, 3))
  variables = jax.eval_shape(lambda: nn.unbox(tower.init(jax.random.key(0), image)))
  drawn = compiled_flops(lambda v: tower.apply(v, z, method="decode"), variables)
  c = model.decoder
  widths = [(2 * level_side(c, i), c.channels * m) for i, m in enumerate(c.multipliers) if i]
  skipped = sum(2 * 5 * side**2 * width**2 for side, width in widths)  # of nine taps, five
  within_borders(drawn, flops.decoder_forward(model) - skipped)
  side = 64
  image = jnp.zeros((1, side, side, 3))
  vgg = jax.eval_shape(lambda: nn.unbox(Lpips().init(jax.random.key(0), image, image)))
  seen = compiled_flops(lambda v: Lpips().apply(v, image, method="taps")[-1], vgg)
  within_borders(seen, flops.vgg_forward(side))
  judge = PatchDiscriminator(64, 2, "batch", jnp.float32)
  params = jax.eval_shape(lambda: nn.unbox(judge.init(jax.random.key(0), image, False)))
  judged = compiled_flops(lambda v: judge.apply(v, image, False), params)
  within_borders(judged, flops.patch_gan_forward(side, 64, 2))
