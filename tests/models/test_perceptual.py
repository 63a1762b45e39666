"""LPIPS against the reference, with narrow and with VGG16's real widths."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_tower import GOLDEN, arrays, assert_close, nhwc, sub
from safetensors.numpy import save_file

from vilau_jax.models.perceptual import Lpips, load_lpips, lpips_params

NARROW = (8, 12, 16, 20, 20)


def _regenerated(variant, seed):
  """The weights of the golden run, drawn again; sums and first values prove that they are."""
  meta = json.loads((GOLDEN / "rqvae/meta.json").read_text())[variant]["tensors"]
  random, tensors = np.random.RandomState(seed), {}
  for name, shape, total, first in meta:
    value = random.standard_normal(shape).astype(np.float32)
    if name.startswith("lin"):
      value = np.abs(value) / np.float32(np.sqrt(shape[1]))
    elif name.endswith("bias"):
      value = value * np.float32(0.1)
    else:
      value = value * np.float32(np.sqrt(2 / (shape[1] * 9)))
    np.testing.assert_allclose(value.sum(dtype=np.float64), total, rtol=1e-6)
    np.testing.assert_allclose(value.reshape(-1)[0], first, rtol=1e-6)
    tensors[name] = value
  return tensors


def _check(net, variables, data):
  first, second = nhwc(data["in0"]), nhwc(data["in1"])
  apply = jax.jit(net.apply)
  taps = jax.jit(functools.partial(net.apply, method="taps"))(variables, first)
  for i, tap in enumerate(taps):
    assert_close(tap.mean((1, 2)), data[f"feat{i}_mean_channels"])
    assert_close(jnp.abs(tap).max(), data[f"feat{i}_absmax"])
    rest = {f"lin_{j}": jnp.zeros_like(variables["params"][f"lin_{j}"]) for j in range(5) if j != i}
    alone = {"params": variables["params"] | rest}
    assert_close(apply(alone, first, second), data[f"layer{i}_value"].reshape(-1), 1e-4)
  assert_close(apply(variables, first, second), data["none"].reshape(-1), 1e-4)
  np.testing.assert_allclose(apply(variables, first, first), data["same"].reshape(-1), atol=1e-12)

  def loss(x, variables):
    return net.apply(variables, first, x).mean()

  value, grad = jax.jit(jax.value_and_grad(loss))(second, variables)
  assert_close(value, data["mean"], 1e-4)
  assert_close(grad, nhwc(data["grad_in1"]), 1e-4)


def test_narrow(tmp_path):
  data = arrays("rqvae/lpips_narrow.npz")
  tensors = sub(data, "param:")
  for name, value in _regenerated("lpips_narrow", 5).items():
    np.testing.assert_array_equal(tensors[name], value)
  np.savez(tmp_path / "lpips.npz", **tensors)
  _check(Lpips(NARROW), load_lpips(tmp_path / "lpips.npz"), data)


def test_real_widths_under_torchvision_names(tmp_path):
  tensors = _regenerated("lpips_full", 6)
  renamed = {}
  for name, value in tensors.items():
    _, _, rest = name.partition(".slice")
    renamed[f"features.{rest[2:]}" if rest else name] = value
  save_file(renamed, tmp_path / "lpips.safetensors")
  variables = load_lpips(tmp_path / "lpips.safetensors")
  convs = {k: v for k, v in variables["params"].items() if k.startswith("conv")}
  assert sum(leaf.size for leaf in jax.tree.leaves(convs)) == 14_714_688
  _check(Lpips(), variables, arrays("rqvae/lpips_full.npz"))


def test_loaded_tree_is_the_net_tree():
  tensors = sub(arrays("rqvae/lpips_narrow.npz"), "param:")
  net, image = Lpips(NARROW), jnp.zeros((1, 32, 32, 3))
  want = jax.eval_shape(lambda: nn.unbox(net.init(jax.random.key(0), image, image)))["params"]
  got = lpips_params(tensors, "golden")
  assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, want)


def test_dead_positions_have_a_finite_gradient():
  net, image = Lpips(NARROW), jnp.full((1, 16, 16, 3), -0.5)
  variables = nn.unbox(jax.jit(net.init)(jax.random.key(0), image, image))
  for leaf in variables["params"].values():
    if isinstance(leaf, dict):
      leaf["bias"] = jnp.full_like(leaf["bias"], -10.0)
  grad = jax.jit(jax.grad(lambda x: net.apply(variables, image + 0.1, x).sum()))(image)
  assert np.isfinite(grad).all()


def test_other_files_are_refused(tmp_path):
  np.savez(tmp_path / "x.npz", **{"features.0.weight": np.zeros((64, 3, 3, 3), np.float32)})
  with pytest.raises(ValueError, match=r"missing.*conv_28\.bias"):
    load_lpips(tmp_path / "x.npz")
  with pytest.raises(ValueError, match=r"\.safetensors or \.npz"):
    load_lpips(tmp_path / "x.pth")
