"""The joint model's forms against each other; golden numbers are in test_vilau_golden.py."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vilau_jax import sharding
from vilau_jax.config import VilaUConfig
from vilau_jax.models import depth as depth_model
from vilau_jax.models import llama, vilau
from vilau_jax.models.vilau import Projector, VilaU

PURE = [pytest.param(shape, marks=pytest.mark.slow) for shape in (dict(data=8), dict(fsdp=8))]
MESHES = [*PURE, dict(data=2, fsdp=2, tensor=2)]


def close(got, want, tolerance=1e-5):
  want = np.asarray(want)
  np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.abs(want).max())


@pytest.mark.parametrize("kind, names", [
  ("mlp2x_gelu", ["layers_0", "layers_2"]),
  ("mlp3x_gelu", ["layers_0", "layers_2", "layers_4"]),
  ("linear", ["layers_0"]),
  ("identity", []),
])  # fmt: skip
def test_every_projector_is_projections_with_exact_gelu_between(kind, names):
  width = 8 if kind == "identity" else 12
  x = np.random.default_rng(0).normal(size=(3, 5, 8)).astype(np.float32)
  projector = Projector(kind, width)
  got, params = jax.jit(projector.init_with_output)(jax.random.key(1), x)
  params = jax.device_get(nn.unbox(params).get("params", {}))
  assert list(params) == names
  want = x
  for i, name in enumerate(names):
    want = want * (1 + np.vectorize(math.erf)(want / np.sqrt(2))) / 2 if i else want
    want = want @ params[name]["kernel"] + params[name]["bias"]
    bound = 1 / np.sqrt(params[name]["kernel"].shape[0])
    for leaf in params[name].values():  # torch's default: uniform, and biases are not zero
      assert 0.5 * bound < np.abs(leaf).max() <= bound
  close(got, want)


def test_identity_projector_names_the_widths():
  with pytest.raises(ValueError, match=r"code width 8 .* llm\.width 9"):
    Projector("identity", 9).init(jax.random.key(0), jnp.zeros((1, 8)))


# --- a tiny model -----------------------------------------------------------------------------


def tiny(**overrides) -> VilaUConfig:
  c = dict(visual_positions="next_cell", code_scale=0.5, llm=dict(vocab_size=30, vocab_multiple=8))
  return VilaUConfig.from_preset("tiny", **(c | overrides))


@functools.cache
def variables(config: VilaUConfig):
  """Parameters far enough from zero that every part shows, and a codebook."""
  params = jax.jit(lambda k: nn.unbox(vilau.init(config, k)))(jax.random.key(0))
  random = np.random.default_rng(1)
  draw = lambda shape: random.normal(size=shape).astype(np.float32)  # noqa: E731
  moved = jax.tree.map(lambda a: jnp.asarray(a + np.float32(0.1) * draw(a.shape)), params)
  q = config.tower.quantizer
  return moved, jnp.asarray(draw((1, q.entries, q.width)))


T, F = 16, 2
SHAPE = (80, 50)  # positions and slots of a padded row: one compiled program serves most tests


def sample(seed: int, text: int, images: list[int]) -> dict[str, np.ndarray]:
  """One sample: text with images of T positions starting at the given places."""
  draw = np.random.default_rng(seed)
  length = text + T * len(images)
  tokens = draw.integers(0, 30, (1, length), np.int32)
  places = np.concatenate([np.arange(i, i + T) for i in images]) if images else np.zeros(0)
  return dict(
    tokens=tokens,
    positions=np.arange(length, dtype=np.int32)[None],
    segment_ids=np.ones((1, length), np.int32),
    visual_position=places.astype(np.int32)[None],
    codes=draw.integers(0, 32, (1, len(places), 3)).astype(np.uint16),
  )


def join(samples, length, slots):
  """Packs samples into one row of a given length and number of slots."""
  row = {k: np.zeros((1, length), np.int32) for k in ("tokens", "positions", "segment_ids")}
  row |= {
    "visual_position": np.full((1, slots), -1, np.int32),
    "codes": np.zeros((1, slots, 3), np.uint16),
  }
  at = slot = 0
  for i, s in enumerate(samples):
    n, m = s["tokens"].shape[1], s["codes"].shape[1]
    row["tokens"][0, at : at + n], row["positions"][0, at : at + n] = s["tokens"], s["positions"]
    row["segment_ids"][0, at : at + n] = i + 1
    row["visual_position"][0, slot : slot + m] = s["visual_position"] + at
    row["codes"][0, slot : slot + m] = s["codes"]
    at, slot = at + n, slot + m
  return row


@functools.cache
def program(config):
  return jax.jit(
    lambda params, batch, codebook: VilaU(config).apply({"params": params}, batch, codebook)
  )


def logits(config, batch):
  params, codebook = variables(config)
  return program(config)(params, batch, codebook)


def test_packed_samples_equal_separate_ones():
  samples = [sample(0, 9, [3]), sample(1, 5, []), sample(2, 8, [2, 2 + T])]
  text, visual = jax.device_get(logits(tiny(), join(samples, *SHAPE)))
  at = slot = 0
  for s in samples:
    n, m = s["tokens"].shape[1], s["codes"].shape[1]
    alone, alone_visual = jax.device_get(logits(tiny(), join([s], *SHAPE)))
    close(text[:, at : at + n], alone[:, :n])
    if m:
      close(visual[:, slot : slot + m], alone_visual[:, :m])
    at, slot = at + n, slot + m


def test_empty_slots_and_tokens_under_images_change_nothing():
  s, n = sample(3, 9, [4]), 9 + T
  want = logits(tiny(), s)  # no padding at all
  wide = join([s], *SHAPE)
  wide["tokens"][0, 4 : 4 + T] = 7
  wide["codes"][0, T:] = 9
  text, visual = jax.device_get(logits(tiny(), wide))
  close(text[:, :n], want[0])
  close(visual[:, :T], want[1])


def test_text_only_rows_need_no_codes():
  row, (params, _) = join([sample(4, 11, [])], *SHAPE), variables(tiny())
  args = [row["tokens"], None, None, row["segment_ids"], row["positions"], None]

  @jax.jit
  def run(v, args):
    return VilaU(tiny()).apply(
      v, VilaU(tiny()).apply(v, *args, method="hidden"), method="text_logits"
    )

  text = run({"params": params}, args)
  close(text[:, :11], logits(tiny(), row)[0][:, :11])


def test_visual_logits_come_from_the_position_before():
  row, (params, codebook) = join([sample(5, 9, [4])], *SHAPE), variables(tiny())
  rows = ("tokens", "codes", "visual_position", "segment_ids", "positions")
  model = VilaU(tiny())

  @jax.jit
  def run(v, row, codebook):
    hidden = model.apply(v, *(row[k] for k in rows), codebook, method="hidden")
    args = (hidden[:, 3 : 3 + T], row["codes"][:, :T], codebook)
    features = model.apply(v, *args, method="visual_features")
    return model.apply(v, features, method="code_logits")

  got = run({"params": params}, row, codebook)
  close(got, logits(tiny(), row)[1][:, :T])


def test_run_index_restarts_where_positions_jump():
  position = jnp.array([[5, 6, 7, 9, 10, -1, -1], [0, 1, 2, 3, 4, 5, 6]])
  index = vilau.run_index(position)
  np.testing.assert_array_equal(index[0, :5], [0, 1, 2, 0, 1])
  np.testing.assert_array_equal(index[1], np.arange(7))


def test_next_cell_adds_the_cell_and_frame_to_come():
  plain, cells = tiny(visual_positions="none"), tiny()
  params, codebook = variables(cells)
  bare = {k: v for k, v in params.items() if k != "visual_positions"}
  n = T * F + 3  # an over-long run stays at the last frame
  codes, position = np.zeros((1, n, 3), np.int32), np.arange(4, 4 + n)[None]
  embed = lambda c, p, *args: compiled(VilaU(c), "embed_codes")({"params": p}, *args)  # noqa: E731
  x = np.asarray(embed(cells, params, codebook, codes, position))
  base = embed(plain, bare, codebook, codes, position)
  tables = jax.device_get(params["visual_positions"])
  assert tables["cell"].shape == (T, 64) and tables["frame"].shape == (F + 1, 64)
  coming = np.arange(1, n + 1)
  want = tables["cell"][coming % T] + tables["frame"][np.minimum(coming // T, F)]
  close((x - base)[0], want, 1e-4)  # a difference of larger numbers
  step = embed(cells, params, codebook, codes[:, :1], np.array([[30]]), np.array([[17]]))
  close(step[0, 0], x[0, 17])


def test_code_scale_equals_a_scaled_codebook():
  row, c = join([sample(6, 9, [4])], *SHAPE), tiny()
  params, codebook = variables(c)
  plain = program(dataclasses.replace(c, code_scale=1.0))(params, row, 0.5 * codebook)
  jax.tree.map(close, logits(c, row), plain)


def test_the_codebook_gets_no_gradient():
  row, (params, codebook) = join([sample(7, 9, [4])], *SHAPE), variables(tiny())
  grad = jax.jit(jax.grad(lambda e: sum(a.sum() for a in program(tiny())(params, row, e))))
  assert np.all(grad(codebook) == 0)


@functools.cache
def compiled(net, method):
  return jax.jit(functools.partial(net.apply, method=method))


def depth_logits_by_steps(c, params, codebook, hidden, row):
  """Logits [B, R, E] of one visual position by the cached form, given its codes [B, R]."""
  net = depth_model.DepthTransformer(c.depth, c.tower.quantizer)
  v, out = {"params": params}, []
  caches = depth_model.init_cache(c.depth, c.tower.quantizer, hidden.shape[0])
  token, book = compiled(net, "from_hidden")(v, hidden), np.asarray(codebook[0])
  for d in range(row.shape[1]):
    features, caches = compiled(net, "step")(v, token, d, caches)
    out.append(compiled(net, "logits")(v, features))
    so_far = c.code_scale * book[row[:, : d + 1]].sum(1)
    token = compiled(net, "from_codes")(v, so_far)
  return np.stack(out, 1)


@pytest.mark.parametrize("pad", [0, 3])
def test_cached_decoding_of_text_and_image_equals_the_whole_forward(pad):
  c, prompt = tiny(), 3 + T + 2
  params, codebook = variables(c)
  s = sample(8, 12, [3, prompt])  # an image in the prompt, then one that is generated
  total = s["tokens"].shape[1]
  text, visual = jax.device_get(logits(c, join([s], *SHAPE)))
  params = vilau.decoding_params(params)
  model, v = VilaU(c), {"params": params}
  decode = compiled(llama.Llama(c.llm), "decode")
  caches, places = llama.init_cache(c.llm, 1, pad + total), np.arange(pad + total)

  rows = (s["tokens"][:, :prompt], s["codes"][:, :T], s["visual_position"][:, :T])
  x = compiled(model, "inputs")(v, *rows, codebook)
  x = np.pad(np.asarray(x), ((0, 0), (pad, 0), (0, 0)))
  at = 0  # place in the cache of the first position in x
  for now in range(prompt - 1, total):  # the last position in x, without padding
    query = np.arange(at, pad + now + 1)
    mask = (places <= query[:, None]) & (places >= pad)
    positions = np.maximum(query - pad, 0)[None]
    hidden, caches = decode({"params": params["llm"]}, x, positions, mask[None], caches, at)
    hidden = np.asarray(hidden)
    close(compiled(model, "text_logits")(v, hidden[:, -1]), text[:, now])
    at, slot = pad + now + 1, T + now + 1 - prompt
    if slot < 2 * T:  # the next position is visual
      row = s["codes"][:, slot].astype(np.int32)
      steps = depth_logits_by_steps(c, params["depth"], codebook, hidden[:, -1], row)
      close(steps, visual[:, slot])
      args = (codebook, row[:, None], None, np.array([[slot - T]]))
      x = compiled(model, "embed_codes")(v, *args)
    elif now + 1 < total:
      x = compiled(model, "inputs")(v, s["tokens"][:, now + 1 : now + 2], None, None, None)


@functools.cache
def single_device():
  """Eight packed rows, and their logits and gradients on one device."""
  c = tiny()
  params, codebook = variables(c)
  rows = [join([sample(i, 6, [2]), sample(i + 50, 4, [])], 28, T + 2) for i in range(8)]
  batch = {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}

  def run(p, rows, book):
    out, pull = jax.vjp(lambda q: VilaU(c).apply({"params": q}, rows, book), p)
    grads = pull(jax.tree.map(jnp.sin, out))[0]
    grads["depth"]["layers"]["attn"]["key"].pop("bias")  # no gradient but rounding
    return out, grads

  return run, batch, jax.jit(run)(params, batch, codebook)


@pytest.mark.mesh
@pytest.mark.parametrize("shape", MESHES)
def test_every_mesh_gives_the_same_logits_and_gradients(shape):
  (run, batch, want), (params, codebook) = single_device(), variables(tiny())
  mesh = sharding.make_mesh(**shape)
  with jax.set_mesh(mesh):
    boxed = vilau.abstract_variables(tiny())
    boxed["params"].pop("tower")
    placed = jax.device_put(params, sharding.state_shardings(boxed["params"], mesh))
    book = sharding.state_shardings(boxed["quantizer"], mesh)["codebook"]
    got = jax.jit(run)(placed, sharding.global_batch(batch, mesh), jax.device_put(codebook, book))
  jax.tree.map(close, got, want)


def test_bfloat16_compute_keeps_float32_logits():
  row = join([sample(9, 9, [4])], *SHAPE)
  got, want = logits(tiny(dtype="bfloat16"), row), logits(tiny(), row)
  for a, b in zip(got, want):
    assert a.dtype == jnp.float32 and np.abs(a - b).max() < 0.1 * np.abs(b).max()
    assert (a != a.astype(jnp.bfloat16).astype(jnp.float32)).mean() > 0.9  # sums are not rounded


def test_remat_changes_nothing():
  row = join([sample(10, 9, [4])], *SHAPE)
  jax.tree.map(close, logits(tiny(remat="dots_saveable"), row), logits(tiny(), row))
  with pytest.raises(ValueError, match="remat must be"):
    logits(tiny(remat="everything"), row)
