"""Directories that hold one family only, and what else reads a release."""

import json
import pathlib

import numpy as np
import pytest

from vilau_jax import api, checkpoint, convert
from vilau_jax.cli import main
from vilau_jax.data.tokenizer import train_tokenizer

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "a"


def test_an_imported_siglip_embeds_pictures_and_makes_no_codes(imported, tmp_path):
  convert.export_checkpoint("siglip", imported, tmp_path / "siglip")
  texts = train_tokenizer(["a cat", "a dog"], tmp_path / "spiece.model", vocab_size=300)
  with pytest.raises(ValueError, match="pieces, the text encoder reads 256 ids"):
    convert.import_checkpoint(
      "siglip", tmp_path / "siglip", tmp_path / "model", tower_tokenizer=texts
    )
  convert.import_checkpoint("siglip", tmp_path / "siglip", tmp_path / "model")
  assert checkpoint.components(tmp_path / "model") == {"tower"}
  model = api.load(tmp_path / "model")
  with pytest.raises(ValueError, match="has no vision tower"):
    model.encode_images(np.zeros((1, 32, 32, 3), np.uint8))
  # Without a quantiser the features are embedded as they are: SigLIP's own embeddings.
  expected = np.load(GOLDEN / "04_siglip.npz")
  pixels = np.round((expected["pixel_values"].transpose(0, 2, 3, 1) + 1) * 127.5).astype(np.uint8)
  found = model.embed_images(pixels)
  np.testing.assert_allclose(found, expected["image_embeds"], rtol=1e-4, atol=1e-4)
  with pytest.raises(ValueError, match="has no tower_tokenizer"):
    model.embed_texts(["a cat"])
  with pytest.raises(ValueError, match="does not hold what this format needs"):
    convert.export_checkpoint("llama", _with_llm(tmp_path / "model"), tmp_path / "out")


def _with_llm(model):
  """A config that promises a language model which is not there."""
  file = model / "config.json"
  values = json.loads(file.read_text())
  values["model"]["llm"] = {"vocab_size": 9, "width": 8, "hidden": 8, "depth": 1, "heads": 2,
                            "kv_heads": 2}  # fmt: skip
  file.write_text(json.dumps(values))
  return model


def test_an_imported_llama_writes_what_the_whole_model_writes(imported, tmp_path):
  convert.export_checkpoint("llama", imported, tmp_path / "llama")
  convert.import_checkpoint("llama", tmp_path / "llama", tmp_path / "model")
  assert checkpoint.components(tmp_path / "model") == {"llm"}
  whole, part = api.load(imported), api.load(tmp_path / "model")
  tokens = np.arange(12).reshape(1, 12)
  np.testing.assert_array_equal(part.text_logits(tokens), whole.text_logits(tokens))


def test_describe_reads_a_release(release, capsys):
  assert main.run(["describe", f"--model={release}", "--json"]) == 0
  counts = json.loads(capsys.readouterr().out)["parameters"]
  assert counts["llm"] == 376_224 and counts["depth"] == 114_880
