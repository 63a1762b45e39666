"""The compiled programs of decoding: prompt, text step, visual chunk, and whole-sequence scoring.

Nothing branches on modality inside a program; the host switches between them (text.py, image.py,
interleaved.py). A step reads the pending input embedding, so a prompt is run up to its last
position only and every drawn token or position costs exactly one pass through the language model.
Axis letters: B rows, L columns, M cache columns, N slots, D width, V vocabulary, Z code width,
R residual depth, E entries; n outputs (with guidance B = 2n, conditional rows first).
"""

import contextlib
import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vilau_jax import sharding
from vilau_jax.config import VilaUConfig
from vilau_jax.generate import int8, sampling
from vilau_jax.generate.cache import State, grow
from vilau_jax.generate.placing import place
from vilau_jax.layers.product import for_decoding, natural
from vilau_jax.layers.stack import LAYERS
from vilau_jax.models import depth, llama
from vilau_jax.models.vilau import VilaU
from vilau_jax.streaming import StoredArray

COMPONENTS = ("llm", "projector", "depth", "visual_positions")  # what an engine decodes with


def compiled(*static: str, donate: tuple[str, ...] = ()):
  """jit with the config and the named arguments static."""
  return functools.partial(jax.jit, static_argnames=("config", *static), donate_argnames=donate)


class Engine:
  """Weights prepared for decoding (see placing.py), and the programs over them.

  Attributes:
    config: the model's, with the compute dtype of this machine.
    params: decoding parameters on the device.
    stored: their dtypes as they came, for saving.
    codebook: float32 [K, E, Z].
    context: positions a row may have.
    depth: R.
    steps_at_once: visual positions a program call runs. On CPU products inside a loop take a slow
      path (a step a call was twice as fast at 16 layers of 1024), elsewhere a call is a row of the
      grid.
    mesh: the devices that share the work, or None: one device.
    prefix: ids that nearly every prompt begins with (the system prompt); see start.py.
    prefix_caches: what the language model made of them, once it has.
  """

  def __init__(
    self,
    config: VilaUConfig,
    variables: dict[str, Any],
    mesh: Mesh | None = None,
    quantize: str | None = None,
  ):
    """Args: config and variables of a model that has a language model, and perhaps the rest; a mesh
    of this process's devices, over which weights and rows lie as the table in sharding.py says; and
    whether weights become "int8" (see int8.py)."""
    int8.check(quantize)
    if jax.default_backend() == "cpu":  # XLA has no fast half precision there
      config = dataclasses.replace(config, dtype="float32")
    self.config = dataclasses.replace(config, remat="none")
    source = {k: variables["params"][k] for k in COMPONENTS if k in variables["params"]}
    params, self.stored = place(source, self.config, mesh, quantize)
    self._source = source if not quantize and _rounded(params, self.stored) else None
    self.params = for_decoding(params)
    self.mesh, self.prefix, self.prefix_caches, self.quantized = mesh, (), None, quantize
    book = variables.get("quantizer", {}).get("codebook")
    self.codebook = None if book is None else jnp.asarray(book, jnp.float32)
    if book is not None and mesh is not None:
      self.codebook = jax.device_put(self.codebook, NamedSharding(mesh, PartitionSpec()))
    self.context = int(config.llm.max_positions * config.llm.rope_scaling)
    self.depth = config.tower.quantizer.depth if config.tower is not None else 0
    on_cpu = jax.default_backend() == "cpu"
    self.steps_at_once = 1 if on_cpu or config.tower is None else config.tower.grid

  @property
  def ways(self) -> int:
    """Shares into which rows are divided."""
    return 1 if self.mesh is None else self.mesh.shape["data"] * self.mesh.shape["fsdp"]

  def scope(self) -> contextlib.AbstractContextManager:
    """Inside of it programs lie on the engine's mesh."""
    return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

  def variables(self) -> dict[str, Any]:
    """Numpy parameters as they are trained and saved, bit for bit as they came; not of quantised
    ones."""
    if self._source is None:
      return stacked(self.params, self.stored)
    read = lambda leaf: leaf.read() if isinstance(leaf, StoredArray) else np.asarray(leaf)  # noqa: E731
    return jax.tree.map(read, self._source)

  def start(
    self, batch: dict[str, np.ndarray], room: int, prefix=(), take: np.ndarray | None = None
  ) -> State:
    """Runs prompts (see cache.left_pad) and leaves `room` free columns behind them; see prefill."""
    with self.scope():
      return prefill(self.params, self.codebook, batch, prefix, take, config=self.config, room=room)

  def text_step(self, state: State, draws: "Draws", switches: sampling.Switches):
    """One token a row: new state, int32 [B], finite bool [B]. The state is donated."""
    with self.scope():
      return text_step(self.params, state, draws, config=self.config, switches=switches)

  def visual_chunk(
    self, state: State, first: Any, draws: "Draws", switches: sampling.Switches, steps: int
  ):
    """`steps` visual positions: new state, codes int32 [n, steps, R], finite bool [n].

    The state is donated. `first` is the place of the first one in its run, one for all rows or
    [B, 1].
    """
    with self.scope():
      return visual_chunk(
        self.params, self.codebook, state, np.int32(first), draws,
        config=self.config, switches=switches, steps=steps,
      )  # fmt: skip

  def hidden(self, batch: dict[str, Any]) -> jax.Array:
    """Hidden states of whole rows [B, L, D]; see `hidden_states`."""
    with self.scope():
      return hidden_states(self.params, self.codebook, batch, config=self.config)

  def text_logits(self, hidden: jax.Array) -> jax.Array:
    """[..., D] -> float32 [..., V]."""
    with self.scope():
      return text_logits(self.params, hidden, config=self.config)

  def code_logits(self, hidden: jax.Array, codes: jax.Array) -> jax.Array:
    """Teacher-forced: hidden [n, D] before each position and its codes [n, R] -> [n, R, E]."""
    with self.scope():
      return code_logits(self.params, self.codebook, hidden, codes, config=self.config)


def _rounded(params: dict[str, Any], stored: dict[str, Any]) -> bool:
  """Whether some weights have fewer bits than where they came from."""
  fewer = lambda leaf, dtype: leaf.dtype.itemsize < np.dtype(dtype).itemsize  # noqa: E731
  return any(jax.tree.leaves(jax.tree.map(fewer, params, stored)))


def stacked(params: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
  """Decoding parameters -> numpy parameters as they are trained and saved, in the stored dtypes."""
  params = jax.tree.map(lambda leaf, dtype: np.asarray(leaf).astype(dtype), natural(params), stored)
  whole = {}
  for part, tree in params.items():
    layers = sorted((k for k in tree if k.startswith(f"{LAYERS}_")), key=lambda k: int(k[7:]))
    if part == "projector" or not layers:  # its layers_0, layers_2 are no stack
      whole[part] = tree
      continue
    blocks = [tree[name] for name in layers]
    rest = {k: v for k, v in tree.items() if k not in layers}
    whole[part] = rest | {LAYERS: jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)}
  return whole


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Draws:
  """Randomness and settings of a step.

  Attributes:
    keys: one key an output [n].
    numbers: int32 [n], how many positions the output has drawn before; the key of a draw is
      fold_in(fold_in(key, number), depth).
    values: traced settings, see sampling.Sampling.values.
  """

  keys: jax.Array
  numbers: jax.Array
  values: dict[str, Any]


@compiled("room")
def prefill(
  params, codebook, batch, prefix=(), take=None, *, config: VilaUConfig, room: int
) -> State:
  """Fills caches with all but the last column of left-padded prompts (see cache.left_pad).

  Args:
    params: decoding parameters.
    codebook: float32 [K, E, Z] or None.
    batch: of left_pad.
    prefix: caches [1, K, P, C] a layer of positions that stand before every row, or ().
    take: int32 [n], which row becomes row i of the state, or None: as they are. A prompt that many
      rows share (the unconditional one) is read once.
    config: of the model.
    room: free columns behind.

  Returns:
    A state whose pending embedding is the last column's.
  """
  valid, positions = batch["valid"], batch["positions"]
  rows, columns = valid.shape
  x = _inputs(params, codebook, batch, config)
  length = columns - 1
  known = prefix[0][0].shape[2] if prefix else 0
  before = jnp.ones((rows, known), bool)
  own = valid[:, None, :length] & jnp.tril(jnp.ones((length, length), bool))
  mask = jnp.concatenate([jnp.broadcast_to(before[:, None], (rows, length, known)), own], axis=2)
  caches = llama.init_cache(config.llm, rows, length, jnp.dtype(config.dtype))
  if prefix:
    caches = jax.tree.map(_behind, list(prefix), caches)
  _, caches = _apply(
    params,
    config,
    lambda m: m.llm.decode(x[:, :length], positions[:, :length], mask, caches, known),
  )
  valid = jnp.concatenate([before, valid[:, :length]], axis=1)
  rest = valid, positions[:, -1], x[:, length:]
  if take is not None:
    caches, rest = jax.tree.map(lambda leaf: leaf[take], (caches, rest))
  valid, position, pending = rest
  return State(
    caches=jax.tree.map(
      lambda leaf: sharding.constrain(leaf, "batch", "act_heads", None, None), grow(caches, room)
    ),
    valid=jnp.pad(valid, ((0, 0), (0, room))),
    column=jnp.int32((known + length) % (known + length + room)),
    position=position,
    pending=pending,
  )


def _behind(known: jax.Array, empty: jax.Array) -> jax.Array:
  """Caches [1, K, P, C] and [B, K, L, C] -> [B, K, P + L, C]."""
  known = jnp.broadcast_to(known, (empty.shape[0], *known.shape[1:]))
  return jnp.concatenate([known, empty], axis=2)


@compiled("switches", donate=("state",))
def text_step(params, state: State, draws: Draws, *, config: VilaUConfig, switches):
  """Reads the pending embedding, draws the next token and leaves its embedding pending.

  Returns:
    The new state, tokens int32 [B], finite bool [B].
  """

  def run(m: VilaU):
    hidden, advanced = _read(m, state)
    keys = sampling.fold(sampling.fold(draws.keys, draws.numbers), 0)
    tokens, finite = sampling.draw(m.text_logits(hidden), keys, draws.values, switches)
    return advanced.replace(pending=m.llm.embed(tokens[:, None])), tokens, finite

  return _apply(params, config, run)


@compiled("switches", "steps", donate=("state",))
def visual_chunk(
  params, codebook, state: State, first, draws: Draws, *, config: VilaUConfig, switches, steps: int
):
  """Draws `steps` visual positions: a pass of the language model and R depth steps each.

  Returns:
    The new state, codes int32 [n, steps, R], finite bool [n].
  """

  def run(m: VilaU, state: State, i):
    hidden, advanced = _read(m, state)
    keys = sampling.fold(draws.keys, draws.numbers + i)
    codes, finite = _draw_codes(m, codebook, hidden, keys, draws.values, switches)
    both = jnp.concatenate([codes, codes]) if switches.guided else codes
    index = jnp.broadcast_to(first + i, (both.shape[0], 1))
    pending = m.embed_codes(codebook, both[:, None], index, index)
    return advanced.replace(pending=pending), codes, finite

  def step(state, i):
    state, codes, finite = _apply(params, config, lambda m: run(m, state, i))
    return state, (codes, finite)

  if steps == 1:
    state, (codes, finite) = step(state, jnp.int32(0))
    return state, codes[:, None], finite
  state, (codes, finite) = jax.lax.scan(step, state, jnp.arange(steps, dtype=jnp.int32))
  return state, codes.swapaxes(0, 1), finite.all(axis=0)


@compiled()
def hidden_states(params, codebook, batch, *, config: VilaUConfig) -> jax.Array:
  """Final hidden states of whole rows, [B, L, D].

  Args:
    params: decoding parameters.
    codebook: float32 [K, E, Z] or None.
    batch: tokens [B, L], segment_ids [B, L] (0 = padding), positions [B, L] and, with pictures,
      visual_position [B, N] and codes [B, N, R].
    config: of the model.
  """
  x = _inputs(params, codebook, batch, config)
  rows, length = batch["tokens"].shape
  same = batch["segment_ids"][:, :, None] == batch["segment_ids"][:, None, :]
  mask = same & jnp.tril(jnp.ones((length, length), bool))
  scratch = llama.init_cache(config.llm, rows, length, jnp.dtype(config.dtype))
  decode = lambda m: m.llm.decode(x, batch["positions"], mask, scratch, 0)  # noqa: E731
  return _apply(params, config, decode)[0]


@compiled()
def text_logits(params, hidden, *, config: VilaUConfig) -> jax.Array:
  """[..., D] -> float32 [..., V]."""
  return _apply(params, config, lambda m: m.text_logits(hidden))


@compiled()
def code_logits(params, codebook, hidden, codes, *, config: VilaUConfig) -> jax.Array:
  """Hidden states [n, D] before the positions and their codes [n, R] -> float32 [n, R, E]."""
  logits = []

  def given(step_logits, d):
    logits.append(step_logits)
    return codes[:, d]

  _apply(params, config, lambda m: _depth_steps(m, codebook, hidden, given))
  return jnp.stack(logits, axis=1)


def _apply(params, config: VilaUConfig, run):
  return nn.apply(run, VilaU(config))({"params": params})


def _inputs(params, codebook, batch, config: VilaUConfig) -> jax.Array:
  visual = batch.get("visual_position")
  some = visual is not None and visual.shape[1] > 0
  codes, visual = (batch["codes"], visual) if some else (None, None)
  return _apply(params, config, lambda m: m.inputs(batch["tokens"], codes, visual, codebook))


def _read(m: VilaU, state: State) -> tuple[jax.Array, State]:
  """One pass of the language model over the pending embedding: hidden [B, D] and the state."""
  valid = state.valid.at[:, state.column].set(True)
  hidden, caches = m.llm.decode(
    state.pending, state.position[:, None], valid[:, None], state.caches, state.column
  )
  column = (state.column + 1) % valid.shape[1]
  advanced = state.replace(caches=caches, valid=valid, column=column, position=state.position + 1)
  return hidden[:, 0], advanced


def _draw_codes(m: VilaU, codebook, hidden, keys, values, switches):
  """The R codes of one position: hidden [B, D] -> int32 [n, R], finite bool [n]."""
  codes, finite = [], []

  def choose(logits, d):
    code, ok = sampling.draw(logits, sampling.fold(keys, d), values, switches)
    codes.append(code)
    finite.append(ok)
    return jnp.concatenate([code, code]) if switches.guided else code

  _depth_steps(m, codebook, hidden, choose)
  return jnp.stack(codes, axis=1), jnp.stack(finite).all(axis=0)


def _depth_steps(m: VilaU, codebook, hidden, choose) -> None:
  """Runs the depth transformer over the depths; `choose(logits [B, E], d)` gives the codes [B]."""
  c = m.config
  caches = depth.init_cache(c.depth, c.tower.quantizer, hidden.shape[0], jnp.dtype(c.dtype))
  token, total = m.depth.from_hidden(hidden), 0.0
  for d in range(c.tower.quantizer.depth):
    features, caches = m.depth.step(token, d, caches)
    code = choose(m.code_logits(features), d)
    if d + 1 < c.tower.quantizer.depth:
      total = total + codebook[0 if c.tower.quantizer.shared else d][code]
      token = m.depth.from_codes(c.code_scale * total)
