"""SigLIP against transformers.SiglipModel, both ways, over configs that vary every field."""

import json
import random

import jax
import numpy as np
import pytest
from golden_tower import assert_close, nhwc

torch = pytest.importorskip("torch", reason="the extra [parity] is not installed")
transformers = pytest.importorskip("transformers", reason="the extra [parity] is not installed")

from vilau_jax import checkpoint, convert  # noqa: E402
from vilau_jax.models.siglip import TextEncoder, VisionEncoder  # noqa: E402

pytestmark = pytest.mark.parity
SEEDS = range(5)


def drawn(seed):
  """Fields of both encoders: image sides that patches divide and others, 1 to 4 heads, one to four
  layers, epsilons large enough to matter."""
  draw = random.Random(seed)
  heads, size = (2, 4, 3, 1, 6)[seed], draw.choice((4, 6, 8))
  width, eps = heads * size, draw.sample((1e-6, 1e-3, 0.05), 2)
  patch, grid = (4, 7, 6, 5, 3)[seed], draw.choice((2, 3, 4))
  text_heads = draw.choice([h for h in (1, 2, 3, 4) if width % h == 0])
  return {
    "vision_config": dict(
      hidden_size=width,
      intermediate_size=draw.randrange(16, 60),
      num_hidden_layers=2 + seed % 3,
      num_attention_heads=heads,
      image_size=patch * grid + draw.randrange(patch),
      patch_size=patch,
      layer_norm_eps=eps[0],
    ),
    "text_config": dict(
      hidden_size=width,
      intermediate_size=draw.randrange(16, 60),
      num_hidden_layers=1 + (seed + 1) % 3,
      num_attention_heads=text_heads,
      vocab_size=draw.randrange(30, 120),
      max_position_embeddings=draw.randrange(5, 20),
      layer_norm_eps=eps[1],
      projection_size=width,
    ),
  }


def torch_model(seed):
  torch.manual_seed(seed)
  model = transformers.SiglipModel(transformers.SiglipConfig(**drawn(seed))).eval()
  with torch.no_grad():
    for name, value in model.named_parameters():
      gain = "norm" in name and name.endswith("weight")
      value.normal_(float(gain), 0.25)
  return model


def inputs(config):
  draw = np.random.default_rng(config.vision_config.hidden_size)
  side, text = config.vision_config.image_size, config.text_config
  pixels = draw.uniform(-1, 1, (2, 3, side, side)).astype(np.float32)
  ids = draw.integers(0, text.vocab_size, (3, text.max_position_embeddings))
  return pixels, ids.astype(np.int32)


def theirs_of(model, pixels, ids):
  """Hidden states of every layer of both encoders, embeddings and logits."""
  with torch.no_grad():
    out = model(
      pixel_values=torch.from_numpy(pixels),
      input_ids=torch.from_numpy(ids).long(),
      output_hidden_states=True,
    )
  vision, text = out.vision_model_output, out.text_model_output
  return {
    "cut": vision.hidden_states[-2],
    "vision_last": vision.last_hidden_state,
    "vision_pooled": vision.pooler_output,
    "text_last": text.last_hidden_state,
    "text_pooled": text.pooler_output,
    "logits": out.logits_per_image,
  }


def ours_of(folder, pixels, ids):
  loaded = checkpoint.load_model(folder)
  tower, params = loaded.config.tower, loaded.variables["params"]["tower"]
  vision, text = VisionEncoder(tower.vision), TextEncoder(tower.text)

  @jax.jit
  def run(params, images, ids):
    see, read = {"params": params["vision"]}, {"params": params["text"]}
    cut = vision.apply(see, images)
    image, words = vision.apply(see, cut, method="pool"), text.apply(read, ids)
    units = (x / jax.numpy.linalg.norm(x, axis=-1, keepdims=True) for x in (image, words))
    z, w = units
    return {
      "cut": cut,
      "vision_last": vision.apply(see, cut, method="last_hidden"),
      "vision_pooled": image,
      "text_last": text.apply(read, ids, method="last_hidden"),
      "text_pooled": words,
      "logits": z @ w.T * jax.numpy.exp(params["logit_scale"]) + params["logit_bias"],
    }

  return run(params, nhwc(pixels), ids)


def opened(folder):
  """Their model from an export of ours: nothing missing, nothing left over."""
  model, info = transformers.SiglipModel.from_pretrained(
    folder, output_loading_info=True, dtype="auto"
  )
  assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
  return model.eval()


def test_the_seeds_vary_every_field():
  for part in ("vision_config", "text_config"):
    drawings = [drawn(seed)[part] for seed in SEEDS]
    for field in drawings[0]:
      assert len({d[field] for d in drawings}) > 1, field
  sides = [(c["image_size"], c["patch_size"]) for c in (drawn(s)["vision_config"] for s in SEEDS)]
  assert {side % patch == 0 for side, patch in sides} == {True, False}


@pytest.mark.parametrize("seed", SEEDS)
def test_both_ways(seed, tmp_path):
  theirs = torch_model(seed)
  theirs.save_pretrained(tmp_path / "hf")
  report = convert.import_checkpoint("siglip", tmp_path / "hf", tmp_path / "model")
  assert not report.ignored and report.total.tensors == len(theirs.state_dict())
  pixels, ids = inputs(theirs.config)
  want = theirs_of(theirs, pixels, ids)
  got = ours_of(tmp_path / "model", pixels, ids)
  for name, value in want.items():
    assert_close(got[name], value.numpy(), 1e-4)
  convert.export_checkpoint("siglip", tmp_path / "model", tmp_path / "out")
  again = opened(tmp_path / "out")
  for name, value in theirs.state_dict().items():
    assert torch.equal(again.state_dict()[name], value), name
  for name, value in theirs_of(again, pixels, ids).items():
    assert torch.equal(value, want[name]), name


def test_parts_agree_closer(tmp_path):
  """Patches with their positions, and one layer, to 1e-5."""
  theirs = torch_model(1)
  theirs.save_pretrained(tmp_path / "hf")
  convert.import_checkpoint("siglip", tmp_path / "hf", tmp_path / "model")
  loaded = checkpoint.load_model(tmp_path / "model")
  pixels, _ = inputs(theirs.config)
  with torch.no_grad():
    model = theirs.vision_model
    hidden = model.embeddings(torch.from_numpy(pixels))
    one = model.encoder.layers[0](hidden, None)
    head = model.head(hidden)
  from vilau_jax.models import siglip

  config, params = loaded.config.tower.vision, loaded.variables["params"]["tower"]["vision"]
  patches = siglip.PatchEmbed(config).apply({"params": params["embed"]}, nhwc(pixels))
  assert_close(patches, hidden.numpy())
  fields = dict(heads=config.heads, hidden=config.hidden, eps=config.eps)
  first = jax.tree.map(lambda x: x[0], params["layers"])
  block = siglip.SiglipBlock(**fields).apply({"params": first}, hidden.numpy())[0]
  assert_close(block, (one[0] if isinstance(one, tuple) else one).numpy())
  pooled = siglip.PoolingHead(**fields).apply({"params": params["head"]}, hidden.numpy())
  assert_close(pooled, head.numpy())


@pytest.mark.parametrize(
  ("part", "field", "value"),
  [("vision_config", "hidden_act", "gelu"), ("text_config", "hidden_act", "quick_gelu"),
   ("vision_config", "num_channels", 1), ("vision_config", "attention_dropout", 0.1),
   ("vision_config", "vision_use_head", False), ("text_config", "projection_size", 7),
   ("text_config", "hidden_size", 99), ("vision_config", "num_patches", 4096)],
)  # fmt: skip
def test_fields_that_are_not_honoured_are_refused(part, field, value, tmp_path):
  torch_model(0).save_pretrained(tmp_path / "hf")
  file = tmp_path / "hf" / "config.json"
  config = json.loads(file.read_text())
  config[part][field] = value
  file.write_text(json.dumps(config))
  with pytest.raises(ValueError, match=rf"config\.json: .*{field}"):
    convert.import_checkpoint("siglip", tmp_path / "hf", tmp_path / "model")
  assert not (tmp_path / "model").exists()
