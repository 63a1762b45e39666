"""The depth transformer against golden numbers and its forms against each other."""

import functools

import flax.linen as nn
import golden_lm
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vilau_jax import sharding
from vilau_jax.config import DepthConfig, QuantizerConfig
from vilau_jax.layers.stack import unstack
from vilau_jax.models import quantizer
from vilau_jax.models.depth import DepthBlock, DepthTransformer, init_cache

CONFIG = DepthConfig(width=16, hidden=40, depth=2, heads=4, eps=1e-2, dropout=0.5)
CODES = QuantizerConfig(depth=4, entries=24, width=8)
MESHES = [dict(data=8), dict(data=1, fsdp=8), dict(data=2, fsdp=2, tensor=2)]


def close(got, want, tolerance=1e-5):
  want = np.asarray(want)
  np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.abs(want).max())


@functools.cache
def boxed():
  def init(key):
    model = DepthTransformer(CONFIG, CODES)
    touch = lambda m, *args: m.logits(m(*args))  # noqa: E731
    return model.init(key, jnp.zeros((1, 8)), jnp.zeros((1, 3, 8)), method=touch)

  return jax.jit(init)(jax.random.key(0))["params"]


@functools.cache
def params():
  random = np.random.default_rng(1)
  moved = lambda a: a + np.float32(0.2) * random.normal(size=a.shape).astype(np.float32)  # noqa: E731
  return jax.tree.map(moved, nn.unbox(boxed()))


def inputs(rows=8):
  random = np.random.default_rng(2)
  return tuple(
    jnp.asarray(random.normal(size=shape), jnp.float32) for shape in ((rows, 8), (rows, 3, 8))
  )


@functools.partial(jax.jit, static_argnames="deterministic")
def forward(p, hidden, sums, **kwargs):
  model, v = DepthTransformer(CONFIG, CODES), {"params": p}
  return model.apply(v, model.apply(v, hidden, sums, **kwargs), method="logits")


def golden_model():
  c = golden_lm.config()
  return DepthTransformer(c.depth, c.tower.quantizer), {"params": golden_lm.params()["depth"]}


def test_golden_logits():
  golden, (model, v) = golden_lm.load("08_depth_transformer"), golden_model()

  @jax.jit
  def run(v, codebook, codes, hidden):
    words = quantizer.lookup(codebook, codes)
    sums = jnp.cumsum(words, -2)
    features = model.apply(v, hidden, sums[..., :-1, :])
    logits = model.apply(v, features, method="logits")
    return words, sums, model.apply(v, sums[0], method="from_codes"), features, logits

  words, sums, dropped_in, features, logits = run(
    v, golden_lm.codebook(), golden["codes"], golden["hidden"]
  )
  close(words[0], golden["code_embeds"])
  close(sums[0], golden["code_embeds_cumsum"])
  close(dropped_in, golden["drop_in_1"])
  assert features.shape == (2, 5, 4, 64)
  close(logits, golden["logits"], 1e-4)


def test_golden_logits_step_by_step():
  golden, (model, v) = golden_lm.load("08_depth_transformer"), golden_model()
  v = {"params": unstack(v["params"])}
  codes = golden["codes"].reshape(10, 4)
  caches = init_cache(golden_lm.config().depth, golden_lm.config().tower.quantizer, 10)
  from_hidden, from_codes = (
    jax.jit(functools.partial(model.apply, method=m)) for m in ("from_hidden", "from_codes")
  )
  token = from_hidden(v, golden["hidden"].reshape(10, -1))

  @jax.jit
  def step(v, token, d, caches):
    features, caches = model.apply(v, token, d, caches, method="step")
    return model.apply(v, features, method="logits"), caches

  for d in range(4):
    logits, caches = step(v, token, d, caches)
    close(logits, golden["logits"].reshape(10, 4, 64)[:, d], 1e-4)
    so_far = quantizer.embed(golden_lm.codebook(), codes[:, : d + 1])
    token = from_codes(v, so_far)


def test_step_equals_teacher_forcing():
  hidden, sums = inputs()
  model, v = DepthTransformer(CONFIG, CODES), {"params": unstack(params())}

  @jax.jit
  def run(p, v, hidden, sums):
    caches, steps = init_cache(CONFIG, CODES, 8), []
    for d in range(4):
      method, value = ("from_codes", sums[:, d - 1]) if d else ("from_hidden", hidden)
      token = model.apply(v, value, method=method)
      features, caches = model.apply(v, token, d, caches, method="step")
      steps.append(features)
    return steps, model.apply({"params": p}, hidden, sums)

  steps, whole = run(params(), v, hidden, sums)
  for d in range(4):
    close(steps[d], whole[:, d])


def test_scan_equals_a_loop_over_sliced_parameters():
  model = DepthTransformer(CONFIG, CODES)

  @jax.jit
  def run(p, hidden, sums):
    first = model.apply({"params": p}, hidden, method="from_hidden")[:, None]
    x = jnp.concatenate([first, model.apply({"params": p}, sums, method="from_codes")], 1)
    x = x + p["pos_emb_d"]
    block = DepthBlock(CONFIG.heads, CONFIG.hidden, CONFIG.eps, 0.0)
    for i in range(CONFIG.depth):
      layer = {"params": jax.tree.map(lambda a, i=i: a[i], p["layers"])}
      x, _ = block.apply(layer, x, jnp.tril(jnp.ones((1, 4, 4), bool)))
    return x, model.apply({"params": p}, hidden, sums)

  x, scanned = run(params(), *inputs())
  close(scanned, x)


def test_a_later_code_does_not_change_an_earlier_depth():
  hidden, sums = inputs()
  base = forward(params(), hidden, sums)
  moved = forward(params(), hidden, sums.at[:, 1].add(1.0))
  np.testing.assert_array_equal(moved[:, :2], base[:, :2])
  assert np.all(np.any(moved[:, 2:] != base[:, 2:], -1))


def test_leading_axes_are_free():
  hidden, sums = inputs()
  flat = forward(params(), hidden, sums)
  shaped = forward(params(), hidden.reshape(2, 4, 8), sums.reshape(2, 4, 3, 8))
  close(shaped.reshape(flat.shape), flat)


def test_dropout_acts_in_training_only():
  hidden, sums = inputs()
  draws = [
    forward(params(), hidden, sums, deterministic=False, rngs={"dropout": jax.random.key(i)})
    for i in (0, 0, 1)
  ]
  np.testing.assert_array_equal(draws[0], draws[1])
  assert np.any(draws[0] != draws[2])
  assert np.any(draws[0] != forward(params(), hidden, sums))


def test_dropout_keeps_the_mean_of_each_branch_and_differs_by_layer():
  # With every branch output constant, a dropped residual is 0 or 1 / (1 - rate) of it.
  p = jax.tree.map(jnp.zeros_like, params())
  p["layers"]["attn"]["out"]["bias"] = jnp.ones((2, 16))
  x = jax.jit(functools.partial(DepthTransformer(CONFIG, CODES).apply, deterministic=False))(
    {"params": p},
    jnp.zeros((500, 8)),
    jnp.zeros((500, 3, 8)),
    rngs={"dropout": jax.random.key(0)},
  )
  values, counts = np.unique(np.asarray(x), return_counts=True)
  np.testing.assert_array_equal(values, [0, 2, 4])  # two blocks with independent draws
  np.testing.assert_allclose(counts / counts.sum(), [0.25, 0.5, 0.25], atol=0.02)


def test_initial_values():
  p = nn.unbox(boxed())
  for path, leaf in jax.tree_util.tree_leaves_with_path(p):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if name.endswith("bias"):
      assert np.all(leaf == 0), name
    elif name.endswith("scale"):
      assert np.all(leaf == 1), name
    else:
      assert 0.01 < np.std(leaf) < 0.03, name


def logits_and_gradients(p, hidden, sums):
  logits, pull = jax.vjp(lambda q: forward(q, hidden, sums), p)
  return logits, pull(jnp.sin(logits))[0]


@pytest.fixture(scope="module")
def on_one_device():
  logits, grads = jax.device_get(jax.jit(logits_and_gradients)(params(), *inputs()))
  # A key bias shifts all scores of a query alike: its gradient is zero up to rounding.
  assert np.abs(grads["layers"]["attn"]["key"].pop("bias")).max() < 1e-5
  return logits, grads


@pytest.mark.mesh
@pytest.mark.parametrize("shape", MESHES)
def test_every_mesh_gives_the_same_logits_and_gradients(shape, on_one_device):
  args = inputs()
  mesh = sharding.make_mesh(**shape)
  with jax.set_mesh(mesh):
    placed = jax.device_put(params(), sharding.state_shardings(boxed(), mesh))
    args = jax.device_put(args, sharding.batch_sharding(mesh))
    logits, grads = jax.jit(logits_and_gradients)(placed, *args)
  close(logits, on_one_device[0])
  assert np.abs(grads["layers"]["attn"]["key"].pop("bias")).max() < 1e-5
  jax.tree.map(close, grads, on_one_device[1])


def test_heads_must_divide_the_width():
  with pytest.raises(ValueError, match=r"depth\.heads 3"):
    jax.eval_shape(
      DepthTransformer(DepthConfig(width=16, heads=3), CODES).init,
      jax.random.key(0), jnp.zeros((1, 8)), jnp.zeros((1, 3, 8)),
    )  # fmt: skip
