"""Tokenizer files of an exported language model."""

import json
import pathlib
from typing import Any

from etils import epath

from vilau_jax.data.tokenizer import ADDED, Tokenizer


def write_llama_tokenizer(model: epath.Path, folder: pathlib.Path, vocabulary: int) -> None:
  """Writes tokenizer.model and what transformers.LlamaTokenizer reads beside it.

  Args:
    model: the sentencepiece model.
    folder: of the export.
    vocabulary: ids of the language model; the four added tokens are declared where they have rows.
  """
  (folder / "tokenizer.model").write_bytes(model.read_bytes())
  tokenizer = Tokenizer(model)
  added = dict(zip(ADDED, range(tokenizer.im_start, tokenizer.vocab_size)))
  added = added if vocabulary == tokenizer.vocab_size else {}
  special = {"<unk>": 0, "<s>": 1, "</s>": 2} | added
  common: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>",
                            "unk_token": "<unk>"}  # fmt: skip
  if added:
    common["additional_special_tokens"] = list(added)
    _write(folder / "added_tokens.json", added)
  _write(folder / "special_tokens_map.json", common)
  _write(
    folder / "tokenizer_config.json",
    common
    | {
      "add_bos_token": True, "add_eos_token": False, "add_prefix_space": True,
      "added_tokens_decoder": {str(i): _token(name) for name, i in special.items()},
      "clean_up_tokenization_spaces": False, "legacy": False, "padding_side": "right",
      "sp_model_kwargs": {}, "spaces_between_special_tokens": False,
      "tokenizer_class": "LlamaTokenizer", "use_default_system_prompt": False,
    },
  )  # fmt: skip


def _token(content: str) -> dict[str, Any]:
  flags = ("lstrip", "normalized", "rstrip", "single_word")
  return {"content": content} | dict.fromkeys(flags, False) | {"special": True}


def _write(path: pathlib.Path, value: Any) -> None:
  path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
