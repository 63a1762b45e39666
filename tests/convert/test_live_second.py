"""The second release, net by net, against PyTorch: transformers where it has the net, else plain
torch functions written down here from the release's names."""

import jax
import numpy as np
import pytest
import second_release
from golden_tower import assert_close, nhwc
from safetensors.numpy import load_file

torch = pytest.importorskip("torch", reason="the extra [parity] is not installed")
transformers = pytest.importorskip("transformers", reason="the extra [parity] is not installed")
F = torch.nn.functional

import vilau_jax  # noqa: E402
from vilau_jax import convert  # noqa: E402
from vilau_jax.models.tower import Tower  # noqa: E402
from vilau_jax.models.vilau import VilaU  # noqa: E402

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def release(tmp_path_factory):
  folder = tmp_path_factory.mktemp("live") / "release"
  second_release.write(folder, seed=5)
  return folder


@pytest.fixture(scope="module")
def imported(release):
  return convert.load_checkpoint("vila-u", release)


@pytest.fixture(scope="module")
def tensors(release):
  """Of the tower's file, as torch tensors."""
  found = load_file(release / "vision_tower" / "model.safetensors")
  return {name: torch.from_numpy(value) for name, value in found.items()}


@pytest.fixture(scope="module")
def pixels():
  return np.random.default_rng(1).uniform(-1, 1, (3, 3, 40, 40)).astype(np.float32)


@pytest.fixture(scope="module")
def features(imported, pixels):
  """What our tower quantises: [3, 3, 3, 72]."""
  return run_tower(imported, nhwc(pixels), "features")


def run_tower(imported, value, method):
  variables = {
    "params": imported.variables["params"]["tower"],
    "quantizer": imported.variables["quantizer"],
  }
  tower = Tower(imported.config.tower)
  return np.asarray(jax.jit(lambda v, x: tower.apply(v, x, method=method))(variables, value))


def test_the_language_model(release):
  model, info = transformers.LlamaForCausalLM.from_pretrained(
    release / "llm", output_loading_info=True, attn_implementation="eager"
  )
  assert not info["missing_keys"] and not info["unexpected_keys"]
  tokens = np.random.default_rng(2).integers(0, model.config.vocab_size, (2, 190))
  with torch.no_grad():
    want = model.eval()(torch.from_numpy(tokens)).logits.numpy()
  got = vilau_jax.load(release).text_logits(tokens.astype(np.int32))
  assert_close(got, want, 1e-4)


def test_both_encoders(release, imported, tensors, pixels, features):
  config = transformers.SiglipConfig.from_pretrained(release / "siglip_config")
  model = transformers.SiglipModel(config).eval()
  prefix = "rqvaesiglip.siglip_model."
  state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
  for name in ("logit_scale", "logit_bias"):
    state[name] = tensors[f"rqvaesiglip.{name}"]
  assert model.load_state_dict(state) == torch.nn.Module().load_state_dict({})
  length = config.text_config.max_position_embeddings
  ids = np.random.default_rng(3).integers(0, config.text_config.vocab_size, (2, length))
  with torch.no_grad():
    vision = model.vision_model(torch.from_numpy(pixels), output_hidden_states=True)
    text = model.text_model(torch.from_numpy(ids)).pooler_output
  cut = vision.hidden_states[-2].numpy()
  assert_close(features.reshape(cut.shape), cut, 1e-4)
  pooled = F.normalize(vision.pooler_output, dim=-1).numpy()
  assert_close(run_tower(imported, cut, "image_embedding"), pooled, 1e-4)
  words = F.normalize(text, dim=-1).numpy()
  assert_close(run_tower(imported, ids.astype(np.int32), "text_embedding"), words, 1e-4)


def test_codes_by_a_residual_quantiser_in_float64(imported, tensors, pixels, features):
  table = tensors["rqvaesiglip.quantizer.codebooks.0.weight"].double().numpy()[:-1]
  residual = features.reshape(-1, features.shape[-1]).astype(np.float64)
  codes, margins = [], []
  for _ in range(6):
    distances = ((residual[:, None] - table) ** 2).sum(-1)
    codes.append(distances.argmin(1))
    nearest = np.sort(distances, axis=1)
    margins.append((nearest[:, 1] - nearest[:, 0]).min())
    residual -= table[codes[-1]]
  assert min(margins) > 1e-3  # so that rounding cannot decide
  got = run_tower(imported, nhwc(pixels), "encode")
  np.testing.assert_array_equal(got, np.stack(codes, -1).reshape(got.shape))


def test_the_decoder(imported, tensors):
  dd = second_release.TOWER["rqvaesiglip"]["ddconfig"]
  z = np.random.default_rng(4).normal(size=(2, 9, 72)).astype(np.float32)
  x = torch.from_numpy(z).reshape(2, 3, 3, 72).permute(0, 3, 1, 2)
  x = F.interpolate(x, (5, 5), mode="bilinear", align_corners=False)
  w = {k.removeprefix("rqvaesiglip."): v for k, v in tensors.items()}
  x = F.conv2d(x, w["post_quant_conv.weight"], w["post_quant_conv.bias"])
  want = decoder(x, w, dd).permute(0, 2, 3, 1).numpy()
  assert_close(run_tower(imported, z, "decode"), want, 1e-4)


def conv(x, w, name):
  weight = w[f"{name}.weight"]
  return F.conv2d(x, weight, w[f"{name}.bias"], padding=weight.shape[-1] // 2)


def normed(x, w, name):
  return F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)


def resnet(x, w, name):
  y = conv(F.silu(normed(x, w, f"{name}.norm1")), w, f"{name}.conv1")
  y = conv(F.silu(normed(y, w, f"{name}.norm2")), w, f"{name}.conv2")
  return y + (conv(x, w, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.weight" in w else x)


def attention(x, w, name):
  y = normed(x, w, f"{name}.norm")
  q, k, v = (conv(y, w, f"{name}.{n}").flatten(2).transpose(1, 2) for n in "qkv")
  y = torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, -1) @ v
  return x + conv(y.transpose(1, 2).reshape(x.shape), w, f"{name}.proj_out")


def decoder(x, w, dd):
  """RQ-VAE's decoder; attention stands where the side that ddconfig implies is listed."""
  levels = len(dd["ch_mult"])
  side = dd["resolution"] // 2 ** (levels - 1)
  x = conv(x, w, "decoder.conv_in")
  x = resnet(x, w, "decoder.mid.block_1")
  x = attention(x, w, "decoder.mid.attn_1")
  x = resnet(x, w, "decoder.mid.block_2")
  for level in reversed(range(levels)):
    for block in range(dd["num_res_blocks"] + 1):
      x = resnet(x, w, f"decoder.up.{level}.block.{block}")
      if side in dd["attn_resolutions"]:
        x = attention(x, w, f"decoder.up.{level}.attn.{block}")
    if level:
      x = F.interpolate(x, scale_factor=2.0, mode="nearest")
      x, side = conv(x, w, f"decoder.up.{level}.upsample.conv"), 2 * side
  return conv(F.silu(normed(x, w, "decoder.norm_out")), w, "decoder.conv_out")


def linear(x, w, name):
  return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def test_projector_and_depth_transformer(release, imported, tensors):
  draw = np.random.default_rng(6)
  codes = draw.integers(0, 96, (1, 2, 6)).astype(np.int32)
  hidden = draw.normal(size=(1, 2, 80)).astype(np.float32)
  book = tensors["rqvaesiglip.quantizer.codebooks.0.weight"][:-1]
  words = book[torch.from_numpy(codes).long()]
  w = {k: torch.from_numpy(v) for k, v in
       load_file(release / "mm_projector" / "model.safetensors").items()}  # fmt: skip
  projected = words.sum(-2)
  for i in (0, 2, 4):
    projected = linear(projected if i == 0 else F.gelu(projected), w, f"layers.{i}")
  w = {k.removeprefix("rqtransformer."): v for k, v in tensors.items()}
  sums = torch.cumsum(words, -2)[..., :-1, :]
  first = linear(torch.from_numpy(hidden), w, "in_mlp_2")[..., None, :]
  want = depth_logits(torch.cat([first, linear(sums, w, "in_mlp_1")], -2), w)
  model = VilaU(imported.config)
  params = {k: v for k, v in imported.variables["params"].items() if k != "tower"}
  codebook = imported.variables["quantizer"]["codebook"]

  @jax.jit
  def run(params, hidden, codes, codebook):
    features = model.apply({"params": params}, hidden, codes, codebook, method="visual_features")
    places = jax.numpy.array([[1, 2]])
    visual = model.apply({"params": params}, codebook, codes, places, method="embed_codes")
    return visual, model.apply({"params": params}, features, method="code_logits")

  visual, logits = run(params, hidden, codes, codebook)
  assert_close(visual, projected.numpy())
  assert_close(logits, want.numpy(), 1e-4)


def depth_logits(x, w):
  """[.., R, W] inputs -> [.., R, E] logits."""
  config = second_release.TOWER["rqtransformer"]
  heads, width, depth = config["head"]["block"]["n_head"], config["embed_dim"], x.shape[-2]
  x = x + w["pos_emb_d"]
  mask = torch.full((depth, depth), -torch.inf).triu(1)
  for i in range(config["head"]["n_layer"]):
    at = f"head_transformer.blocks.{i}"
    y = F.layer_norm(x, (width,), w[f"{at}.ln1.weight"], w[f"{at}.ln1.bias"], 1e-5)
    q, k, v = (
      linear(y, w, f"{at}.attn.{n}").unflatten(-1, (heads, -1)).transpose(-2, -3)
      for n in ("query", "key", "value")
    )
    scores = q @ k.transpose(-1, -2) * (width // heads) ** -0.5 + mask
    y = (torch.softmax(scores, -1) @ v).transpose(-2, -3).flatten(-2)
    x = x + linear(y, w, f"{at}.attn.proj")
    y = F.layer_norm(x, (width,), w[f"{at}.ln2.weight"], w[f"{at}.ln2.bias"], 1e-5)
    x = x + linear(F.gelu(linear(y, w, f"{at}.mlp.0")), w, f"{at}.mlp.2")
  name = "classifier_mlp.layer_norm"
  x = F.layer_norm(x, (width,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)
  return linear(x, w, "classifier_mlp.linear")
