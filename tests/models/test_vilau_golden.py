"""The joint model against golden batches: inputs, hidden states, logits, losses, gradients."""

import functools

import golden_lm
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vilau_jax.models.vilau import Projector, VilaU

BATCHES = [
  "und", "gen", "vid8", "interleaved", "multiturn", "twoimg", "mixed", "mixed_small",
  "vid3_patched", "mixed_vid2_patched",
]  # fmt: skip
GRADIENTS = ["und", "gen", "vid8", "mixed", "vid3_patched"]


def close(got, want, tolerance=1e-5):
  want = np.asarray(want)
  np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.abs(want).max())


def losses(params, batch):
  """Plain cross-entropies: text, image; and what the golden files keep of the forward pass."""
  model, v, codebook = VilaU(golden_lm.config()), {"params": params}, golden_lm.codebook()
  rows = ("tokens", "codes", "visual_position", "segment_ids", "positions")
  hidden = model.apply(v, *(batch[k] for k in rows), codebook, method="hidden")
  text, visual = model.apply(v, batch, codebook)

  def entropy(logits, target, keep):
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], -1)[..., 0]
    keep = jnp.broadcast_to(keep, picked.shape)
    return -jnp.sum(jnp.where(keep, picked, 0)) / jnp.maximum(1, keep.sum())

  target, codes = batch["text_target"], batch["codes"].astype(jnp.int32)
  return {
    "loss_text": entropy(text, jnp.maximum(target, 0), target >= 0),
    "loss_image": entropy(visual, codes, batch["visual_target"][..., None]),
    "hidden_first4": hidden[..., :4],
    "logits_first4": text[..., :4],
    "logits_last4": text[..., -4:],
    "logits_logsumexp": jax.nn.logsumexp(text, -1),
    "logits_lastpos": text,
  }


@functools.cache
def programs():
  def total(params, batch):
    out = losses(params, batch)
    return out["loss_text"] + out["loss_image"], out

  return jax.jit(total), jax.jit(jax.grad(total, has_aux=True))


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("layout", ["eval", "train"])
def test_golden_batch(name, layout):
  golden = golden_lm.load(f"06_batch_{name}")
  batch = golden_lm.rows(golden) if layout == "eval" else golden_lm.packed(golden)
  mask = golden["exp_attention_mask" if layout == "eval" else "pack_attention_mask"]
  assert np.array_equal(batch["segment_ids"] > 0, mask)
  if layout == "train":
    assert np.array_equal(batch["positions"][mask], golden["pack_position_ids"][mask])
  total, out = jax.device_get(programs()[0](golden_lm.params(), golden_lm.widen(batch)))
  close(total, golden[f"{layout}_loss_total"], 1e-4)
  b, l = mask.shape
  for key, value in out.items():
    want = golden.get(f"{layout}_{key}")
    if key == "loss_image" and not batch["visual_target"].any():
      assert want is None and value == 0
    elif key.startswith("loss"):
      close(value, want, 1e-4)
    elif key == "logits_lastpos":
      if want is not None:
        close(value[:b, l - 6 : l][mask[:, -6:]], want[mask[:, -6:]], 1e-4)
    else:
      close(value[:b, :l][mask], want[mask], 1e-4)


@pytest.mark.parametrize("name", GRADIENTS)
def test_golden_gradients(name):
  golden, norms = golden_lm.load(f"06_batch_{name}"), golden_lm.grad_norms()[name]
  params = golden_lm.params()
  grads, _ = programs()[1](params, golden_lm.widen(golden_lm.packed(golden)))
  largest = max(v[0] for v in norms.values())
  table = golden_lm.names()
  ours = [n for n in norms if n.startswith(("llm.", "mm_projector.", f"{golden_lm.TOWER}rqtr"))]
  assert set(ours) == {n for n in table if name != "und" or "rqtransformer" not in n}
  for torch_name in ours:
    path, layer, how = table[torch_name]
    leaf = functools.reduce(lambda tree, key: tree[key], path, grads)
    leaf = np.asarray(leaf if layer is None else leaf[layer], np.float64)
    norm, total, peak = norms[torch_name]
    floor = 1e-6 * largest  # the depth transformer's key biases have no gradient but rounding
    np.testing.assert_allclose(
      np.linalg.norm(leaf), norm, rtol=1e-4, atol=floor, err_msg=torch_name
    )
    np.testing.assert_allclose(np.abs(leaf).max(), peak, rtol=1e-4, atol=floor, err_msg=torch_name)
    np.testing.assert_allclose(leaf.sum(), total, atol=1e-4 * norm + floor, err_msg=torch_name)
    whole = golden.get(f"grad:{torch_name}")
    if whole is not None:
      close(leaf, how(whole), 1e-4)


@pytest.mark.parametrize(
  "name", ["batch_und", "batch_gen", "batch_vid3_unpatched", "leftpad", "truncated"]
)
def test_golden_inputs(name):
  golden = golden_lm.load(f"06_{name}")
  batch = golden_lm.rows(golden, pad_left=name == "leftpad")
  mask = golden["exp_attention_mask"]
  assert np.array_equal(batch["segment_ids"] > 0, mask)
  if "exp_position_ids" in golden:
    assert np.array_equal(batch["positions"], golden["exp_position_ids"])
  inputs = jax.jit(functools.partial(VilaU(golden_lm.config()).apply, method="inputs"))
  x = np.asarray(
    inputs(
      {"params": golden_lm.params()}, batch["tokens"], batch["codes"], batch["visual_position"],
      golden_lm.codebook(),
    )
  )  # fmt: skip
  close(x.sum(-1)[mask], golden["exp_embeds_sum"][mask])
  if "exp_embeds" in golden:
    close(x[mask], golden["exp_embeds"][mask])


def test_projector_golden():
  golden = golden_lm.load("05_projector")
  projector = Projector("mlp2x_gelu", 96)
  close(
    projector.apply({"params": golden_lm.params()["projector"]}, golden["input"]), golden["output"]
  )
