"""Llama checkpoints (Llama-2, Sheared-LLaMA): Hugging Face names <-> params/llm."""

import math
import pathlib
from typing import Any

from vilau_jax.config import LlamaConfig, VilaUConfig
from vilau_jax.convert.configs import Fields, compute_dtype
from vilau_jax.convert.plan import Row
from vilau_jax.convert.transforms import HEADS_IN, HEADS_OUT, LINEAR, SAME, vocabulary

AT = "params/llm"
IGNORED = {r".*\.rotary_emb\.inv_freq": "frequencies of the rotary embedding are computed"}
# Tokenizer and length bookkeeping of VILA-U, and attention backends.
NEUTRAL = """model_max_length tokenizer_padding_side pretraining_tp
  torchscript _flash_attn_2_enabled""".split()


def rows(config: LlamaConfig, prefix: str = "") -> list[Row]:
  """The table: our variable, the checkpoint's name, and how one becomes the other."""
  block, named = f"{AT}/layers", f"{prefix}model.layers.{{layer}}"
  table = [
    Row(f"{AT}/embed_tokens", (f"{prefix}model.embed_tokens.weight",),
        vocabulary(config.vocab_size), also=(f"{prefix}lm_head.weight",) if config.tied else ()),
    Row(f"{AT}/norm/scale", (f"{prefix}model.norm.weight",), SAME),
  ]  # fmt: skip
  for norm in ("input_layernorm", "post_attention_layernorm"):
    table.append(Row(f"{block}/{norm}/scale", (f"{named}.{norm}.weight",), SAME))
  for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
    how = HEADS_OUT if name == "o_proj" else HEADS_IN
    table.append(
      Row(f"{block}/self_attn/{name}/kernel", (f"{named}.self_attn.{name}.weight",), how)
    )
  for name in ("gate_proj", "up_proj", "down_proj"):
    table.append(Row(f"{block}/mlp/{name}/kernel", (f"{named}.mlp.{name}.weight",), LINEAR))
  if not config.tied:
    head = vocabulary(config.vocab_size, head=True)
    table.append(Row(f"{AT}/lm_head", (f"{prefix}lm_head.weight",), head))
  return table


def ignored(config: LlamaConfig, prefix: str = "") -> dict[str, str]:
  """Source names that are not read -> why."""
  return {prefix.replace(".", r"\.") + k: why for k, why in IGNORED.items()}


def read_config(folder: pathlib.Path) -> VilaUConfig:
  """The architecture of a Llama folder.

  Raises:
    ValueError: naming a field that is missing, contradictory or not honoured.
  """
  fields = Fields.of_file(folder / "config.json", NEUTRAL)
  fields.fixed("model_type", "llama")
  config = read_fields(fields)
  dtype = compute_dtype({"torch_dtype": fields.take("torch_dtype", str, None),
                         "dtype": fields.take("dtype", str, None)})  # fmt: skip
  name = pathlib.PurePath(str(fields.take("_name_or_path", str, "") or folder.resolve().name)).name
  return VilaUConfig(name=name or "llama", tower=None, depth=None, llm=config, dtype=dtype)


def read_fields(fields: Fields) -> LlamaConfig:
  """A Llama config; see read_config."""
  width, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
  if width % heads:
    raise ValueError(f"{fields.file}: num_attention_heads {heads} does not divide {width}")
  kv_heads = fields.size("num_key_value_heads", heads)
  if heads % kv_heads:
    raise ValueError(f"{fields.file}: num_key_value_heads {kv_heads} does not divide {heads}")
  fields.fixed("head_dim", width // heads)
  fields.fixed("hidden_act", "silu", "swish")
  for key in ("attention_bias", "mlp_bias", "add_cross_attention", "is_encoder_decoder",
              "is_decoder", "tie_encoder_decoder", "use_bfloat16"):  # fmt: skip
    fields.fixed(key, False)
  fields.fixed("attention_dropout", 0, 0.0)
  theta, scaling = _rope(fields)
  config = LlamaConfig(
    vocab_size=fields.size("vocab_size"),
    width=width,
    hidden=fields.size("intermediate_size"),
    depth=fields.size("num_hidden_layers"),
    heads=heads,
    kv_heads=kv_heads,
    rope_theta=theta,
    rope_scaling=scaling,
    max_positions=_positions(fields, scaling),
    eps=fields.take("rms_norm_eps", float, 1e-6),
    tied=fields.take("tie_word_embeddings", bool, False),
  )
  fields.done()
  return config


def _positions(fields: Fields, scaling: float) -> int:
  """Positions before scaling. VILA-U's length of training rows may be beyond Llama's own number,
  which limits nothing there; transformers writes 1e30 for "any"."""
  rows = fields.take("tokenizer_model_max_length", int, None) or 0
  rows = 0 if rows > 2**24 else rows
  return max(fields.size("max_position_embeddings", 2048), math.ceil(rows / scaling))


def _rope(fields: Fields) -> tuple[float, float]:
  """Base and linear factor; rope_parameters is how newer versions of transformers write both."""
  theta, scaling = fields.take("rope_theta", float, None), 1.0
  for key in ("rope_scaling", "rope_parameters"):
    if key not in fields:
      fields.fixed(key)
      continue
    rope = fields.object(key)
    rope.fixed("type", "linear", "default")
    rope.fixed("rope_type", "linear", "default")
    factor = rope.take("factor", float, 1.0)
    kind = rope.take("rope_type", str, None) or rope.take("type", str, "default")
    if (kind == "default" and factor != 1) or factor <= 0:
      raise ValueError(f"{fields.file}: {key} of type {kind!r} with factor {factor}")
    scaling = factor if kind == "linear" else scaling
    inner = rope.take("rope_theta", float, None)
    if inner is not None and theta not in (None, inner):
      raise ValueError(f"{fields.file}: rope_theta {theta}, but {key}.rope_theta {inner}")
    theta = theta or inner
    rope.done()
  return theta or 10_000.0, scaling


def write_config(config: LlamaConfig, dtype: str) -> dict[str, Any]:
  """config.json for transformers.LlamaForCausalLM; `rope_theta` and `rope_scaling` in the form that
  all its versions read."""
  scaled = config.rope_scaling != 1
  return {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": config.width,
    "initializer_range": 0.02,
    "intermediate_size": config.hidden,
    "max_position_embeddings": config.max_positions,
    "model_type": "llama",
    "num_attention_heads": config.heads,
    "num_hidden_layers": config.depth,
    "num_key_value_heads": config.kv_heads,
    "pad_token_id": 0,
    "pretraining_tp": 1,
    "rms_norm_eps": config.eps,
    "rope_scaling": {"type": "linear", "factor": config.rope_scaling} if scaled else None,
    "rope_theta": config.rope_theta,
    "tie_word_embeddings": config.tied,
    "torch_dtype": dtype,
    "use_cache": True,
    "vocab_size": config.vocab_size,
  }
