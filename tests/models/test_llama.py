"""Llama against golden numbers, against a plain numpy Llama, and its forms against each other."""

import dataclasses
import functools

import flax.linen as nn
import golden_lm
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vilau_jax import sharding
from vilau_jax.config import LlamaConfig
from vilau_jax.layers.attention import causal_mask
from vilau_jax.layers.rope import rotary, rotate
from vilau_jax.layers.stack import unstack
from vilau_jax.models.llama import Llama, LlamaBlock, init_cache

# Every field away from its default: grouped heads, scaled rotary positions, another base and eps.
ODD = LlamaConfig(
  vocab_size=29, vocab_multiple=8, width=24, hidden=40, depth=3, heads=6, kv_heads=2,
  rope_theta=500.0, rope_scaling=2.5, eps=1e-2,
)  # fmt: skip

PURE = [pytest.param(shape, marks=pytest.mark.slow) for shape in (dict(data=8), dict(fsdp=8))]
MESHES = [*PURE, dict(data=2, fsdp=2, tensor=2)]


def close(got, want, tolerance=1e-5):
  want = np.asarray(want)
  np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.abs(want).max())


def draw(config: LlamaConfig, seed: int = 0):
  """Parameters with norm scales and weights away from their initial values."""
  x, row = jnp.zeros((1, 2, config.width)), jnp.zeros((1, 2), jnp.int32)
  init = jax.jit(Llama(config).init)(jax.random.key(seed), x, row, jnp.ones((1, 2, 2), bool))
  leaves, tree = jax.tree.flatten(nn.unbox(init)["params"])
  random = np.random.default_rng(seed + 1)
  moved = [a + np.float32(0.1) * random.normal(size=a.shape).astype(np.float32) for a in leaves]
  return jax.tree.unflatten(tree, moved)


@functools.cache
def odd():
  return draw(ODD)


def numbers(seed, shape, high=29):
  return jnp.asarray(np.random.default_rng(seed).integers(0, high, shape), jnp.int32)


def forward(config, params, tokens, segment_ids=None, positions=None):
  """Logits [B, L, V] by the scanned form."""
  segment_ids = np.ones(tokens.shape, np.int32) if segment_ids is None else segment_ids
  if positions is None:
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
  return _forward(config, params, tokens, segment_ids, positions)


@functools.partial(jax.jit, static_argnums=0)
def _forward(config, params, tokens, segment_ids, positions):
  model, v = Llama(config), {"params": params}
  x = model.apply(v, tokens, method="embed")
  hidden = model.apply(v, x, positions, causal_mask(segment_ids))
  return model.apply(v, hidden, method="logits")


def reference_logits(c: LlamaConfig, params, tokens) -> np.ndarray:
  """One sequence through a Llama written plainly in float64 numpy: ids [L] -> [L, V]."""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

  def norm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.eps) * scale

  def turn(x, position):  # one head at one position, as complex numbers
    half = c.head_dim // 2
    angle = position / c.rope_scaling * c.rope_theta ** (-2 * np.arange(half) / c.head_dim)
    z = (x[:half] + 1j * x[half:]) * np.exp(1j * angle)
    return np.concatenate([z.real, z.imag])

  x = p["embed_tokens"][tokens]
  for i in range(c.depth):
    layer = jax.tree.map(lambda a, i=i: a[i], p["layers"])
    y, attn = norm(x, layer["input_layernorm"]["scale"]), layer["self_attn"]
    out = np.zeros_like(x)
    for h in range(c.heads):
      g = h // (c.heads // c.kv_heads)
      q = [turn(v, n) for n, v in enumerate(y @ attn["q_proj"]["kernel"][:, h])]
      k = [turn(v, n) for n, v in enumerate(y @ attn["k_proj"]["kernel"][:, g])]
      v = y @ attn["v_proj"]["kernel"][:, g]
      for n in range(len(x)):
        score = np.array([q[n] @ k[m] for m in range(n + 1)]) / np.sqrt(c.head_dim)
        weight = np.exp(score - score.max())
        out[n] += weight / weight.sum() @ v[: n + 1] @ attn["o_proj"]["kernel"][h]
    x = x + out
    y, mlp = norm(x, layer["post_attention_layernorm"]["scale"]), layer["mlp"]
    gate = y @ mlp["gate_proj"]["kernel"]
    up = y @ mlp["up_proj"]["kernel"]
    x = x + (gate / (1 + np.exp(-gate)) * up) @ mlp["down_proj"]["kernel"]
  head = p["embed_tokens"].T if c.tied else p["lm_head"]
  return (norm(x, p["norm"]["scale"]) @ head)[:, : c.vocab_size]


def test_rope_golden():
  golden = golden_lm.load("06_rope")
  cos, sin = rotary(jnp.arange(12)[None], 24)
  close(np.concatenate([cos[0]] * 2, -1), golden["cos"])
  close(np.concatenate([sin[0]] * 2, -1), golden["sin"])


def test_rope_scaling_divides_positions_and_keeps_float32_angles():
  positions = jnp.array([[8190, 16380]])
  scaled = rotary(positions, 8, theta=300.0, scaling=2.0)
  plain = rotary(positions // 2, 8, theta=300.0)
  np.testing.assert_array_equal(scaled, plain)
  assert scaled[0].dtype == jnp.float32
  half = jnp.ones((1, 2, 3, 8), jnp.bfloat16)
  assert rotate(half, *scaled).dtype == jnp.bfloat16


def test_text_only_golden():
  golden, c = golden_lm.load("06_text_only"), golden_lm.config().llm
  params = golden_lm.params()["llm"]
  tokens = jnp.asarray(golden["input_ids"])
  close(forward(c, params, tokens), golden["logits"], 1e-4)

  @jax.jit
  def hidden_states(params, tokens):
    states = [Llama(c).apply({"params": params}, tokens, method="embed")]
    tables = rotary(jnp.arange(tokens.shape[1])[None], c.head_dim)
    mask = causal_mask(jnp.ones_like(tokens))
    for i in range(c.depth):
      layer = jax.tree.map(lambda a, i=i: a[i], params["layers"])
      states.append(LlamaBlock(c).apply({"params": layer}, states[-1], *tables, mask)[0])
    final = Llama(c).apply({"params": params}, states[-1], method=lambda m, y: m.norm(y))
    return [*states[:-1], final]

  states = hidden_states(params, tokens)
  assert len(states) == c.depth + 1
  for got, want in zip(states, golden["hidden_states"]):
    close(got, want[None], 1e-4)


def test_prefill_golden_with_left_padding():
  golden, c = golden_lm.load("06_text_only"), golden_lm.config().llm
  v = {"params": unstack(golden_lm.params()["llm"])}
  tokens, keep = golden["leftpad_input_ids"], golden["leftpad_attention_mask"]
  length, model = tokens.shape[1], Llama(c)
  mask = np.tril(np.ones((length, length), bool)) & keep[:, None]

  @jax.jit
  def prefill(v, tokens, positions, mask):
    x = model.apply(v, tokens, method="embed")
    caches = init_cache(c, 2, length)
    hidden, caches = model.apply(v, x, positions, mask, caches, 0, method="decode")
    return model.apply(v, hidden[:, -1], method="logits"), caches

  logits, caches = prefill(v, tokens, golden["leftpad_position_ids"], mask)
  close(logits, golden["leftpad_last_logits"], 1e-4)
  whole = np.flatnonzero(keep.all(1))[0]
  assert np.array_equal(tokens[whole], golden["input_ids"][0])
  close(caches[0][0][whole], golden["kv_k0"])
  close(caches[0][1][whole], golden["kv_v0"])


@pytest.mark.parametrize("tied", [False, True])
def test_every_field_reaches_the_numpy_reference(tied):
  c = dataclasses.replace(ODD, tied=tied)
  params, tokens = draw(c), np.array([3, 17, 28, 0, 9, 9, 22])
  assert ("lm_head" in params) == (not tied)
  close(forward(c, params, jnp.asarray(tokens)[None])[0], reference_logits(c, params, tokens))


def test_scan_equals_a_loop_over_sliced_parameters():
  tokens = numbers(1, (2, 9))

  @jax.jit
  def run(params, tokens):
    model, mask = Llama(ODD), causal_mask(jnp.ones_like(tokens))
    positions = jnp.broadcast_to(jnp.arange(9), (2, 9))
    x = model.apply({"params": params}, tokens, method="embed")
    loop = x
    tables = rotary(positions, ODD.head_dim, ODD.rope_theta, ODD.rope_scaling)
    for i in range(ODD.depth):
      layer = {"params": jax.tree.map(lambda a, i=i: a[i], params["layers"])}
      loop, _ = LlamaBlock(ODD).apply(layer, loop, *tables, mask)
    loop = model.apply({"params": params}, loop, method=lambda m, y: m.norm(y))
    unrolled = Llama(dataclasses.replace(ODD, unroll=True))
    forms = model, Llama(ODD, remat="nothing_saveable"), unrolled
    return loop, *(m.apply({"params": params}, x, positions, mask) for m in forms)

  want, *forms = run(odd(), tokens)
  for got in forms:
    close(got, want)


@pytest.mark.parametrize("pad", [(0, 0), (0, 4)])
def test_cached_decoding_equals_the_whole_forward(pad):
  prompt, total = 7, 12
  tokens = numbers(2, (2, total))
  pad = np.array(pad)[:, None]
  positions = np.maximum(np.arange(total) - pad, 0)
  full = forward(ODD, odd(), tokens, (np.arange(total) >= pad).astype(np.int32), positions)
  v = {"params": unstack(odd())}
  caches, place = init_cache(ODD, 2, total), np.arange(total)
  for start, stop in [(0, prompt)] + [(i, i + 1) for i in range(prompt, total)]:
    seen = place <= np.arange(start, stop)[:, None]
    mask = seen[None] & (place >= pad)[:, None]
    logits, caches = _decode(
      v, tokens[:, start:stop], positions[:, start:stop], mask, caches, start
    )
    close(logits, full[:, stop - 1])


@jax.jit
def _decode(v, tokens, positions, mask, caches, start):
  model = Llama(ODD)
  x = model.apply(v, tokens, method="embed")
  hidden, caches = model.apply(v, x, positions, mask, caches, start, method="decode")
  return model.apply(v, hidden[:, -1], method="logits"), caches


def test_segments_do_not_see_each_other():
  tokens = numbers(3, (1, 11))
  segments = np.array([[1] * 5 + [2] * 4 + [0] * 2])
  positions = np.array([[*range(5), *range(4), 0, 0]])
  packed = forward(ODD, odd(), tokens, segments, positions)
  close(packed[:, :5], forward(ODD, odd(), tokens[:, :5]))
  close(packed[:, 5:9], forward(ODD, odd(), tokens[:, 5:9]))


def test_padded_vocabulary_is_zero_hidden_and_gets_no_gradient():
  c = ODD
  x, row = jnp.zeros((1, 2, c.width)), jnp.zeros((1, 2), jnp.int32)
  init = jax.jit(Llama(c).init)(jax.random.key(0), x, row, jnp.ones((1, 2, 2), bool))
  params = nn.unbox(init)["params"]
  assert params["embed_tokens"].shape == (32, 24) and params["lm_head"].shape == (24, 32)
  assert np.all(params["embed_tokens"][29:] == 0) and np.all(params["lm_head"][:, 29:] == 0)
  assert np.all(np.any(params["embed_tokens"][:29] != 0, 1))
  tokens = np.arange(6)[None]
  assert jax.eval_shape(lambda p: forward(c, p, tokens), params).shape[-1] == 29
  grads = jax.jit(jax.grad(lambda p: forward(c, p, tokens).sum()))(params)
  assert np.all(grads["embed_tokens"][29:] == 0) and np.all(grads["lm_head"][:, 29:] == 0)


def test_compute_dtype_and_parameter_dtype():
  model = Llama(ODD, dtype=jnp.bfloat16)
  assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(odd()))

  def run(v, tokens):
    x = model.apply(v, tokens, method="embed")
    hidden = model.apply(v, x, jnp.arange(4)[None], causal_mask(jnp.ones_like(tokens)))
    return x, hidden, model.apply(v, hidden, method="logits")

  x, hidden, logits = jax.eval_shape(run, {"params": odd()}, np.arange(4)[None])
  assert x.dtype == hidden.dtype == jnp.bfloat16
  assert logits.dtype == jnp.float32


@pytest.mark.mesh
@pytest.mark.parametrize("shape", MESHES)
def test_every_mesh_gives_the_same_logits_and_gradients(shape):
  c = LlamaConfig(
    vocab_size=30, vocab_multiple=8, width=32, hidden=48, depth=2, heads=4, kv_heads=2
  )
  params, tokens = draw(c), numbers(4, (8, 6), 30)

  def run(p, ids):
    logits, pull = jax.vjp(lambda q: forward(c, q, ids), p)
    return logits, pull(jnp.sin(logits))[0]

  want = jax.jit(run)(params, tokens)
  abstract = jax.eval_shape(
    lambda k: Llama(c).init(
      k, jnp.zeros((1, 2, 32)), jnp.zeros((1, 2), int), jnp.ones((1, 2, 2), bool)
    ),
    jax.random.key(0),
  )["params"]
  mesh = sharding.make_mesh(**shape)
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, sharding.state_shardings(abstract, mesh))
    ids = jax.device_put(tokens, sharding.batch_sharding(mesh))
    program = jax.jit(run)
    assert "sharding_constraint" in program.lower(placed, ids).as_text()
    jax.tree.map(close, program(placed, ids), want)


@pytest.mark.parametrize(
  "wrong, words",
  [
    (dict(vocab_size=0), "vocab_size"),
    (dict(heads=5), "llm.heads 5"),
    (dict(kv_heads=4), "llm.kv_heads 4"),
    (dict(width=30, heads=6, kv_heads=6), "even size"),
  ],
)
def test_impossible_sizes_are_named(wrong, words):
  with pytest.raises(ValueError, match=words):
    draw(dataclasses.replace(ODD, **wrong))
