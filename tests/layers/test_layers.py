"""Parts of the nets against independent NumPy arithmetic."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vilau_jax.layers import attention, mlp, norm, stack

RNG = np.random.default_rng(0)


def _numpy_attention(q, k, v, mask):
  b, _, h, c = q.shape
  out = np.zeros_like(q)
  group = h // k.shape[2]
  for i in range(b):
    for j in range(h):
      scores = q[i, :, j] @ k[i, :, j // group].T / np.sqrt(c)
      scores = np.where(mask[i], scores, -np.inf)
      weights = np.exp(scores - scores.max(-1, keepdims=True))
      out[i, :, j] = weights / weights.sum(-1, keepdims=True) @ v[i, :, j // group]
  return out


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_with_grouped_heads(kv_heads):
  q = RNG.normal(size=(2, 5, 4, 3)).astype(np.float32)
  k, v = RNG.normal(size=(2, 2, 7, kv_heads, 3)).astype(np.float32)
  mask = RNG.random((2, 5, 7)) < 0.7
  mask[..., 0] = True
  got = attention.attend(q, k, v, jnp.asarray(mask))
  np.testing.assert_allclose(got, _numpy_attention(q, k, v, mask), rtol=1e-5, atol=1e-5)


def test_a_query_that_sees_nothing_is_finite():
  q = jnp.ones((1, 2, 1, 4))
  assert np.isfinite(attention.attend(q, q, q, jnp.zeros((1, 2, 2), bool))).all()


def test_causal_mask_keeps_segments_apart():
  mask = np.asarray(attention.causal_mask(jnp.array([[1, 1, 2, 2, 0]])))[0]
  want = np.array(
    [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]], bool
  )
  np.testing.assert_array_equal(mask, want)


def test_branches_see_the_stem_and_themselves():
  segments, branches = jnp.array([[1, 1, 1, 1, 2]]), jnp.array([[0, 1, 1, 2, 0]])
  mask = np.asarray(attention.causal_mask(segments, branches))[0]
  want = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 0, 0, 1, 0], [0, 0, 0, 0, 1]]
  np.testing.assert_array_equal(mask, np.array(want, bool))


@pytest.mark.parametrize("eps", [1e-6, 1e-1])
def test_norms(eps):
  x = RNG.normal(size=(2, 4, 4, 6)).astype(np.float32) * 3 + 1
  scale, bias = RNG.normal(size=(2, 6)).astype(np.float32)
  both = {"params": {"scale": scale, "bias": bias}}
  want = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * scale + bias
  np.testing.assert_allclose(norm.LayerNorm(eps).apply(both, x), want, rtol=1e-5, atol=1e-5)

  want = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale
  got = norm.RmsNorm(eps).apply({"params": {"scale": scale}}, x)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)

  y = x.reshape(2, 4, 4, 3, 2)
  y = (y - y.mean((1, 2, 4), keepdims=True)) / np.sqrt(y.var((1, 2, 4), keepdims=True) + eps)
  want = y.reshape(x.shape) * scale + bias
  np.testing.assert_allclose(norm.GroupNorm(3, eps).apply(both, x), want, rtol=1e-5, atol=1e-5)


def test_group_norm_names_sizes_that_do_not_divide():
  with pytest.raises(ValueError, match="6 channels cannot be split into 4 groups"):
    norm.GroupNorm(4).init(jax.random.key(0), jnp.ones((1, 2, 2, 6)))


class _Block(nn.Module):
  hidden: int

  @nn.compact
  def __call__(self, x, offset, cache=None):
    y = mlp.GatedMlp(self.hidden, name="mlp")(norm.RmsNorm(1e-5, name="norm")(x))
    return x + y + offset, cache


class _Stack(nn.Module):
  remat: str = "none"
  unroll: int = 1

  @nn.compact
  def __call__(self, x, caches=None):
    if caches is None:
      fields = {"hidden": 8}
      return stack.scan_blocks(_Block, fields, 3, x, 0.5, remat=self.remat, unroll=self.unroll)
    return stack.unroll_blocks(_Block, {"hidden": 8}, x, 0.5, caches=caches)[0]


@pytest.mark.parametrize(
  "remat, unroll", [("none", 1), ("none", 3), ("nothing_saveable", 1), ("dots_saveable", 1)]
)
def test_scanned_and_unrolled_stacks_agree(remat, unroll):
  x = jnp.asarray(RNG.normal(size=(2, 3, 4)), jnp.float32)
  net = _Stack(remat, unroll)
  params = nn.unbox(jax.jit(net.init)(jax.random.key(0), x))["params"]
  run = jax.jit(lambda p, caches=None: net.apply({"params": p}, x, caches))
  unrolled = run(stack.unstack(params), [None] * 3)
  np.testing.assert_allclose(run(params), unrolled, rtol=1e-5, atol=1e-6)
  grads = jax.jit(jax.grad(lambda p: net.apply({"params": p}, x).sum()))(params)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_unknown_remat_policy():
  with pytest.raises(ValueError, match="remat must be 'none', one of"):
    _Stack("everything").init(jax.random.key(0), jnp.ones((1, 2, 4)))
