"""Llama against transformers.LlamaForCausalLM, both ways, over configs that vary every field."""

import dataclasses
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_tower import assert_close

torch = pytest.importorskip("torch", reason="the extra [parity] is not installed")
transformers = pytest.importorskip("transformers", reason="the extra [parity] is not installed")

from vilau_jax import checkpoint, convert  # noqa: E402
from vilau_jax.layers.attention import causal_mask  # noqa: E402
from vilau_jax.models.llama import Llama  # noqa: E402

pytestmark = pytest.mark.parity
SEEDS = range(6)


def drawn(seed):
  """Fields of a LlamaConfig; head size, groups, scaling and tying go round with the seed."""
  draw = random.Random(seed)
  kv_heads, group = (1, 2, 3)[seed % 3], (1, 2, 4)[(seed + seed // 3) % 3]
  head = draw.choice((6, 8, 10, 16))
  fields = dict(
    vocab_size=draw.randrange(60, 200),
    hidden_size=kv_heads * group * head,
    intermediate_size=draw.randrange(20, 90),
    num_hidden_layers=1 + seed % 4,
    num_attention_heads=kv_heads * group,
    num_key_value_heads=kv_heads,
    max_position_embeddings=draw.randrange(30, 300),
    rms_norm_eps=draw.choice((1e-6, 1e-5, 3e-3, 0.1)),
    tie_word_embeddings=seed % 2 == 1,
    hidden_act="silu",
  )
  theta, factor = draw.choice((500.0, 10_000.0, 77_000.0)), (1.0, 2.0, 3.5)[(seed // 2) % 3]
  kind = {"rope_type": "linear", "factor": factor} if factor != 1 else {"rope_type": "default"}
  return fields | {"rope_parameters": kind | {"rope_theta": theta}}


def torch_model(seed):
  """With random weights of a size that makes every part matter, norms included."""
  torch.manual_seed(seed)
  model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**drawn(seed))).eval()
  with torch.no_grad():
    for name, value in model.named_parameters():
      value.normal_(1.0 if "norm" in name else 0.0, 0.3 if "norm" in name else 0.25)
  return model


def torch_logits(model, tokens):
  with torch.no_grad():
    return model(torch.from_numpy(tokens).long()).logits.float().numpy()


def our_logits(folder, tokens):
  loaded = checkpoint.load_model(folder)
  llama = Llama(loaded.config.llm)

  @jax.jit
  def run(params, tokens):
    def body(module):
      positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
      mask = causal_mask(jnp.ones_like(tokens))
      return module.logits(module(module.embed(tokens), positions, mask))

    return llama.apply({"params": params}, method=lambda module: body(module))

  return np.asarray(run(loaded.variables["params"]["llm"], tokens))


def tokens_of(model, length=23):
  draw = np.random.default_rng(length)
  return draw.integers(0, model.config.vocab_size, (2, length)).astype(np.int32)


def test_the_seeds_vary_every_field():
  drawings = [drawn(seed) for seed in SEEDS]
  for field in set(drawings[0]) - {"hidden_act"}:
    assert len({json.dumps(d[field]) for d in drawings}) > 1, field
  assert {d["rope_parameters"]["rope_type"] for d in drawings} == {"linear", "default"}
  ratios = {d["num_attention_heads"] // d["num_key_value_heads"] for d in drawings}
  assert {1, 2, 4} <= ratios


@pytest.mark.parametrize("seed", SEEDS)
def test_both_ways(seed, tmp_path):
  theirs = torch_model(seed)
  theirs.save_pretrained(tmp_path / "hf")
  report = convert.import_checkpoint("llama", tmp_path / "hf", tmp_path / "model")
  assert not report.ignored
  tokens = tokens_of(theirs)
  want = torch_logits(theirs, tokens)
  assert_close(our_logits(tmp_path / "model", tokens), want, 1e-4)
  convert.export_checkpoint("llama", tmp_path / "model", tmp_path / "out")
  again = opened(tmp_path / "out")
  for name, value in theirs.state_dict().items():
    assert torch.equal(again.state_dict()[name], value), name
  np.testing.assert_array_equal(torch_logits(again, tokens), want)


def opened(folder):
  """Their model from an export of ours: nothing missing, nothing left over."""
  model, info = transformers.LlamaForCausalLM.from_pretrained(
    folder, output_loading_info=True, dtype="auto"
  )
  assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
  return model.eval()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_its_bits(dtype, tmp_path):
  theirs = torch_model(2).to(getattr(torch, dtype))
  theirs.save_pretrained(tmp_path / "hf")
  convert.import_checkpoint("llama", tmp_path / "hf", tmp_path / "model")
  stored = checkpoint.load_model(tmp_path / "model")
  assert {x.dtype.name for x in jax.tree.leaves(stored.variables)} == {dtype}
  assert stored.config.dtype == dtype
  convert.export_checkpoint("llama", tmp_path / "model", tmp_path / "out")
  again = opened(tmp_path / "out")
  assert again.dtype == getattr(torch, dtype)
  for name, value in theirs.state_dict().items():
    assert torch.equal(again.state_dict()[name], value), name


def test_shards_old_names_and_pickled_tensors(tmp_path):
  """pytorch_model-*.bin with an index, the older rope keys, and buffers that old files carry."""
  theirs, folder = torch_model(4), tmp_path / "hf"
  theirs.save_pretrained(folder, max_shard_size="20KB")
  assert len(list(folder.glob("*.safetensors"))) > 2
  convert.import_checkpoint("llama", folder, tmp_path / "shards")
  state = dict(theirs.state_dict()) | {
    f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(3)
    for i in range(theirs.config.num_hidden_layers)
  }
  for file in folder.glob("*.safetensors*"):
    file.unlink()
  names, where = list(state), {}
  for i in range(2):
    file = f"pytorch_model-0000{i + 1}-of-00002.bin"
    torch.save({name: state[name] for name in names[i::2]}, folder / file)
    where |= dict.fromkeys(names[i::2], file)
  index = {"metadata": {"total_size": 0}, "weight_map": where}
  (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
  config = json.loads((folder / "config.json").read_text())
  rope = config.pop("rope_parameters")
  config["rope_theta"] = rope["rope_theta"]
  scaled = rope["rope_type"] == "linear"
  config["rope_scaling"] = {"type": "linear", "factor": rope["factor"]} if scaled else None
  (folder / "config.json").write_text(json.dumps(config))
  report = convert.import_checkpoint("llama", folder, tmp_path / "bin")
  assert len(report.ignored) == theirs.config.num_hidden_layers
  one, other = (checkpoint.load_model(tmp_path / name) for name in ("shards", "bin"))
  assert dataclasses.replace(one.config, name="") == dataclasses.replace(other.config, name="")
  jax.tree.map(np.testing.assert_array_equal, one.variables, other.variables)


def test_a_padded_vocabulary_is_not_exported(tmp_path):
  theirs = torch_model(0)
  theirs.save_pretrained(tmp_path / "hf")
  convert.import_checkpoint("llama", tmp_path / "hf", tmp_path / "model")
  loaded = checkpoint.load_model(tmp_path / "model")
  llm = dataclasses.replace(loaded.config.llm, vocab_multiple=64)
  more = llm.padded_vocab - llm.vocab_size
  assert more > 0
  params = dict(loaded.variables["params"]["llm"])
  params["embed_tokens"] = np.pad(params["embed_tokens"], ((0, more), (0, 0)))
  params["lm_head"] = np.pad(params["lm_head"], ((0, 0), (0, more)))
  config = dataclasses.replace(loaded.config, llm=llm)
  checkpoint.save_model(tmp_path / "padded", config, {"params": {"llm": params}})
  for name in ("model", "padded"):
    convert.export_checkpoint("llama", tmp_path / name, tmp_path / f"{name}-out")
  files = [(tmp_path / f"{n}-out/model.safetensors").read_bytes() for n in ("model", "padded")]
  assert files[0] == files[1]
  tokens = tokens_of(theirs)
  want = torch_logits(theirs, tokens)
  assert_close(our_logits(tmp_path / "padded", tokens), want, 1e-4)
  np.testing.assert_array_equal(torch_logits(opened(tmp_path / "padded-out"), tokens), want)


@pytest.mark.parametrize(
  ("field", "value"),
  [("attention_bias", True), ("mlp_bias", True), ("head_dim", 64), ("hidden_act", "gelu"),
   ("attention_dropout", 0.1), ("rope_scaling", {"rope_type": "dynamic", "factor": 2.0}),
   ("rope_scaling", {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                     "high_freq_factor": 4.0, "original_max_position_embeddings": 64}),
   ("sliding_window", 16), ("model_type", "mistral"), ("quantization_config", {"bits": 4})],
)  # fmt: skip
def test_fields_that_are_not_honoured_are_refused(field, value, tmp_path):
  torch_model(0).save_pretrained(tmp_path / "hf")
  file = tmp_path / "hf" / "config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
  with pytest.raises(ValueError, match=rf"config\.json: .*{field}"):
    convert.import_checkpoint("llama", tmp_path / "hf", tmp_path / "model")
  assert not (tmp_path / "model").exists()
