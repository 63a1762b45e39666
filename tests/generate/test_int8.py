"""Quantised decoding: half the bytes of bfloat16, and logits that stay close."""

import functools
import sys
import types

import golden_lm
import golden_model
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import qwix

from vilau_jax import api, demo
from vilau_jax.cli import main
from vilau_jax.evaluate import runner
from vilau_jax.generate import int8
from vilau_jax.generate.engine import Engine
from vilau_jax.layers.product import natural, product
from vilau_jax.models import vilau


@functools.cache
def engines():
  loaded = golden_model.golden()
  return [Engine(loaded.config, loaded.variables, quantize=quantize) for quantize in (None, "int8")]


def products(params):
  """Weights of language model and depth transformer that are multiplied, as pairs of leaves."""
  leaves = jax.tree_util.tree_leaves_with_path(
    natural({k: params[k] for k in int8.PARTS}), is_leaf=lambda leaf: isinstance(leaf, qwix.QArray)
  )
  return [leaf for path, leaf in leaves if path[-1].key in ("kernel", "lm_head")]


def size(leaves):
  return sum(leaf.nbytes for leaf in jax.tree.leaves(leaves))


def test_every_product_is_in_eight_bits_and_memory_falls():
  plain, small = (products(engine.params) for engine in engines())
  assert len(plain) == len(small) and len(small) > 20
  assert all(leaf.qvalue.dtype == jnp.int8 for leaf in small)
  # One byte a weight, and a float32 a feature, which weigh more in narrow layers.
  features = sum(leaf.scale.size for leaf in small)
  assert size(small) == size(plain) / 4 + 4 * features
  assert size(small) < 0.35 * size(plain)


def test_logits_stay_close():
  data = golden_lm.load("09_generate_image")
  ids, codes = data["input_ids"][0][data["attention_mask"][0]], data["codes"][0]
  count, new = len(ids), len(codes)
  batch = dict(
    tokens=np.concatenate([ids, np.zeros(new, ids.dtype)])[None].astype(np.int32),
    segment_ids=np.ones((1, count + new), np.int32),
    positions=np.arange(count + new, dtype=np.int32)[None],
    visual_position=np.arange(count, count + new, dtype=np.int32)[None],
    codes=codes[None],
  )
  found = []
  for engine in engines():
    hidden = engine.hidden(batch)[0]
    before = hidden[count - 1 : count - 1 + new]
    found.append((hidden, engine.text_logits(hidden), engine.code_logits(before, codes)))
  for plain, small in zip(*found):
    apart = np.linalg.norm(plain - small) / np.linalg.norm(plain)
    assert 1e-5 < apart < 0.03
  agree = np.mean(found[0][2].argmax(-1) == found[1][2].argmax(-1))
  assert agree > 0.8


@pytest.mark.parametrize("rows", [1, 2, 9])
def test_a_product_equals_the_one_with_dequantised_weights(rows):
  keys = jax.random.split(jax.random.key(rows), 2)
  w, x = jax.random.normal(keys[0], (4, 8, 24)), jax.random.normal(keys[1], (rows, 3, 4, 8))
  packed = qwix.quantize(w, jnp.int8, channelwise_axes=(2,), scale_dtype=jnp.float32)
  expected = jnp.einsum("nlhc,hcd->nld", x, qwix.dequantize(packed))
  got = product(x, packed, jnp.float32, contracted=2)
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
  got = product(x[:, 0, 0], w[0], jnp.float32)
  np.testing.assert_allclose(got, x[:, 0, 0] @ w[0], rtol=1e-5, atol=1e-5)


def test_shapes_of_a_quantised_model_need_no_weights():
  loaded = golden_model.golden()
  params = {k: v for k, v in loaded.variables["params"].items() if k != "tower"}
  abstract = jax.eval_shape(lambda: int8.quantize_params(vilau.decoding_params(params)))
  real = engines()[1].params
  assert jax.tree.structure(abstract) == jax.tree.structure(real)
  assert jax.tree.map(lambda a: (a.shape, a.dtype), abstract) == jax.tree.map(
    lambda a: (a.shape, a.dtype), real
  )


def test_a_quantised_model_draws_and_is_not_saved(tmp_path):
  model = api.VilaU.from_loaded(golden_model.tiny(), quantize="int8")
  pictures = model.generate_images(["a dog"], seed=3)
  assert len(pictures) == 1
  with pytest.raises(ValueError, match="quantize='int8'"):
    model.save(tmp_path / "model")
  with pytest.raises(ValueError, match="quantize must be None or one of"):
    api.VilaU.from_loaded(golden_model.tiny(), quantize="int4")


def test_every_command_takes_int8_and_shares_a_model_among_devices(tmp_path, capsys, monkeypatch):
  whole = api.VilaU.from_loaded(golden_model.tiny())
  whole.save(tmp_path / "model")
  load = f"--model={tmp_path / 'model'}"
  small = api.VilaU.from_loaded(golden_model.tiny(), quantize="int8")

  assert main.run(["chat", load, "--int8", "--max_new_tokens=8", "Hello"]) == 0
  said = capsys.readouterr().out.strip()
  assert said == small.generate_text(["Hello"], max_new_tokens=8)[0]
  assert main.run(["chat", load, "--tensor=2", "--max_new_tokens=8", "Hello"]) == 0
  assert capsys.readouterr().out.strip() == whole.generate_text(["Hello"], max_new_tokens=8)[0]

  (tmp_path / "prompts.txt").write_text("a dog\n")
  typed = ["generate", "batch", load, f"--prompts={tmp_path / 'prompts.txt'}", "--int8"]
  assert main.run([*typed, f"--output={tmp_path / 'out'}"]) == 0
  drawn = np.asarray(PIL.Image.open(tmp_path / "out" / "000000.png"))
  np.testing.assert_array_equal(drawn, small.generate_images("a dog")[0])
  again = ["generate", load, f"--from_metadata={tmp_path / 'out' / 'results.jsonl'}"]
  assert main.run([*again, f"--output={tmp_path / 'again'}"]) == 0
  assert "1 of 1 are the same" in capsys.readouterr().out

  shared = ["generate", "image", load, "--prompt=a dog", f"--output={tmp_path / 'shared'}"]
  assert main.run([*shared, "--tensor=2"]) == 0
  drawn = np.asarray(PIL.Image.open(tmp_path / "shared" / "000000.png"))
  np.testing.assert_array_equal(drawn, whole.generate_images("a dog")[0])
  assert main.run([*shared, "--tensor=2", "--speculative=2"]) == 2
  assert "--speculative and --tensor do not go together" in capsys.readouterr().err
  assert main.run([*shared, "--tensor=9"]) == 2
  assert "needs 9 devices" in capsys.readouterr().err

  served = []
  monkeypatch.setattr(
    runner, "run", lambda name, **how: served.append(how["model"].runtime) or {"predicted": 0}
  )
  assert main.run(["evaluate", "pope", load, "--data=pope", "--output=out", "--int8"]) == 0
  assert served[0].engine.quantized == "int8" and served[0].engine.mesh is None

  page = types.SimpleNamespace(serve=lambda studio, **how: served.append(studio.model.runtime))
  monkeypatch.setitem(sys.modules, "vilau_jax.demo.page", page)  # whose gradio may not be here
  monkeypatch.setattr(demo, "page", page, raising=False)
  monkeypatch.setitem(sys.modules, "gradio", types.SimpleNamespace(__spec__=page))
  assert main.run(["demo", load, "--int8", "--tensor=2"]) == 0
  assert served[1].engine.quantized == "int8" and served[1].engine.mesh.shape["tensor"] == 2
