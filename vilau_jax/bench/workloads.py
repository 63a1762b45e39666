"""What `vilau bench` runs: each part of a model as it is used, on random weights and inputs.

A workload prepares itself once and returns a call that does `Workload.work` units; the caller waits
for its result. Axis letters: B rows, L positions, S image side, T visual positions, R residual
depth, E entries.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vilau_jax.config import VilaUConfig
from vilau_jax.generate import sampling, speculative
from vilau_jax.generate.engine import Draws, Engine
from vilau_jax.generate.vision import Vision
from vilau_jax.models import quantizer, vilau
from vilau_jax.models.tower import Tower
from vilau_jax.train import defaults
from vilau_jax.train.lm import LmStage


@dataclasses.dataclass(frozen=True)
class Workload:
  """One thing that is timed.

  Attributes:
    call: does the work and returns arrays to wait for.
    work: units a call.
    unit: what is counted.
    bytes: that a call must read at least (weights, and the filled part of the cache), or None where
      arithmetic is the limit.
    ready: goes before every call, and is not timed.
  """

  call: Callable[[], Any]
  work: int
  unit: str
  bytes: int | None = None
  ready: Callable[[], None] = lambda: None


@dataclasses.dataclass(frozen=True)
class Sizes:
  """How much of everything.

  Attributes:
    batch: outputs at once; guidance doubles the rows of drawing.
    prompt: positions of a prompt.
    length: positions of a training row.
    positions: room for decoded positions behind the prompt.
    window: drafted positions of a speculative pass.
  """

  batch: int = 1
  prompt: int = 64
  length: int = 256
  positions: int = 256
  window: int = 8


class Bench:
  """A model of random weights, prepared part by part as workloads ask for it."""

  def __init__(self, config: VilaUConfig, sizes: Sizes):
    """Raises: ValueError: if the vocabulary's size is left to a tokenizer that is not there."""
    if config.llm is not None and not config.llm.vocab_size:
      raise ValueError("this preset leaves llm.vocab_size to a tokenizer: --set=llm.vocab_size=N")
    on_cpu = jax.default_backend() == "cpu"
    self.config = dataclasses.replace(config, dtype="float32") if on_cpu else config
    self.sizes, self.rng = sizes, np.random.default_rng(0)
    self._engine: Engine | None = None

  def tower_encode(self) -> Workload:
    """Pictures to codes."""
    vision, n, s = self._vision(), self.sizes.batch, self.config.tower.image_size
    images = self.rng.integers(0, 256, (n, s, s, 3), np.uint8)
    return Workload(lambda: vision.encode(images), n, "images")

  def tower_decode(self) -> Workload:
    """Codes to pixels."""
    vision, n, tower = self._vision(), self.sizes.batch, self.config.tower
    shape = (n, tower.image_tokens, tower.quantizer.depth)
    codes = self.rng.integers(0, tower.quantizer.entries, shape, np.int32)
    return Workload(lambda: vision.decode(codes), n, "images")

  def prefill(self) -> Workload:
    """A prompt through the language model."""
    engine, rows = self._prepared(), self.sizes.batch
    batch = self._prompts(rows)
    call = lambda: engine.start(batch, room=self.sizes.positions)  # noqa: E731
    return Workload(call, rows * self.sizes.prompt, "positions")

  def text(self) -> Workload:
    """One step of text decoding."""
    engine, rows = self._prepared(), self.sizes.batch
    entries = self.config.llm.vocab_size
    wish = sampling.Sampling(top_p=0.95)
    switches, draws = wish.switches(entries), self._draws(rows, wish.values(entries))
    run = _Again(self, rows, lambda state: engine.text_step(state, draws, switches))
    head = engine.params["llm"]["embed_tokens" if self.config.llm.tied else "lm_head"]
    least = self._llm_bytes() + run.cache_bytes + _size(head)
    return Workload(run, rows, "tokens", least, run.ready)

  def image(self) -> Workload:
    """Visual positions with guidance: a pass of the language model and R depth steps each."""
    engine, n = self._prepared(), self.sizes.batch
    wish, entries = self._visual_wish(), self.config.tower.quantizer.entries
    switches, draws = wish.switches(entries), self._draws(n, wish.values(entries))
    steps = engine.steps_at_once
    chunk = lambda state: engine.visual_chunk(state, 0, draws, switches, steps)  # noqa: E731
    run = _Again(self, 2 * n, chunk, steps)
    least = steps * self._visual_bytes(run.cache_bytes)
    return Workload(run, n * steps, "positions", least, run.ready)

  def speculative(self) -> Workload:
    """Passes over a window of drafted positions, with guidance. How many of them are kept depends
    on the model, so it is not measured here; `vilau generate --speculative` says it."""
    engine, n, size = self._prepared(), self.sizes.batch, self.sizes.window
    entries, total = self.config.tower.quantizer.entries, self.sizes.positions
    wish = self._visual_wish()
    state = engine.start(self._prompts(2 * n), room=total + size)
    cache_bytes = _size(state.caches)
    held = [speculative.open_windows(state, n, size, engine.config)]
    keys = sampling.output_keys(list(range(n)))

    def call():  # an output that is complete runs on at its end, which costs the same
      held[0], *drawn = speculative.advance(
        engine.params, engine.codebook, held[0], keys, np.int32(0), wish.values(entries),
        config=engine.config, switches=wish.switches(entries), total=total,
      )  # fmt: skip
      return drawn

    return Workload(call, n, "passes", self._visual_bytes(cache_bytes))

  def train(self) -> Workload:
    """A training step of the language-model stage, rows half text and half pictures."""
    c, rows, length = self.config, self.sizes.batch, self.sizes.length
    experiment = defaults.lm()
    experiment.batch_size = rows
    slots = length // 2
    experiment.data.row = dict(length=length, slots=slots, targets=slots, window=length)
    chunks = dict(text_chunk=min(1024, length), code_chunk=min(256, slots))
    experiment.loss.update(chunks)
    stage = LmStage(experiment, c)
    state, frozen = nn.unbox(jax.jit(stage.init)(jax.random.key(0)))
    step = jax.jit(stage.step, donate_argnums=0)
    held, batch = [state], self._rows(rows, length, slots)

    def call():
      held[0], metrics = step(held[0], frozen, batch, jax.random.key(1))
      return metrics

    return Workload(call, rows * length, "positions")

  def _rows(self, rows: int, length: int, slots: int) -> dict[str, jax.Array]:
    codes = self.config.tower.quantizer
    places = np.arange(length - slots, length, dtype=np.int32)
    target = np.full((rows, length), -1, np.int32)
    target[:, : length - slots] = self.rng.integers(
      0, self.config.llm.vocab_size, (rows, length - slots)
    )
    batch = dict(
      tokens=np.maximum(target, 0),
      segment_ids=np.ones((rows, length), np.int32),
      positions=np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
      visual_position=np.tile(places, (rows, 1)),
      codes=self.rng.integers(0, codes.entries, (rows, slots, codes.depth), np.int32),
      text_target=target,
      visual_target=np.ones((rows, slots), bool),
    )
    return jax.tree.map(jnp.asarray, batch)

  def _vision(self) -> Vision:
    side = self.config.tower.image_size
    tower = Tower(self.config.tower)
    variables = self._random(lambda key: tower.init(key, jnp.zeros((1, side, side, 3))))
    return Vision(self.config.tower, variables, self.config.dtype)

  def _prepared(self) -> Engine:
    if self._engine is None:
      variables = {"params": self._random(lambda key: vilau.init(self.config, key))}
      if self.config.tower is not None:
        codes = quantizer.init_state(jax.random.key(0), self.config.tower.quantizer)
        variables["quantizer"] = {"codebook": codes["codebook"]}
      self._engine = Engine(self.config, variables)
    return self._engine

  def _random(self, init: Callable[[jax.Array], Any]) -> Any:
    """Weights in the model's dtype, made by one program: in float32 they may not fit."""
    cast = lambda leaf: leaf.astype(self.config.dtype)  # noqa: E731
    return jax.jit(lambda key: jax.tree.map(cast, nn.unbox(init(key))))(jax.random.key(0))

  def _prompts(self, rows: int) -> dict[str, np.ndarray]:
    shape = rows, self.sizes.prompt + 1
    depth = self.config.tower.quantizer.depth if self.config.tower is not None else 1
    return dict(
      tokens=self.rng.integers(0, self.config.llm.vocab_size, shape, np.int32),
      valid=np.ones(shape, bool),
      positions=np.tile(np.arange(shape[1], dtype=np.int32), (rows, 1)),
      visual_position=np.zeros((rows, 0), np.int32),
      codes=np.zeros((rows, 0, depth), np.int32),
    )

  def _draws(self, n: int, values: dict[str, np.ndarray]) -> Draws:
    return Draws(sampling.output_keys(list(range(n))), np.zeros(n, np.int32), values)

  def _visual_wish(self) -> sampling.Sampling:
    d = self.config.sampling
    top_k = min(d.top_k, self.config.tower.quantizer.entries)
    return sampling.Sampling(d.temperature, top_k, d.top_p, 3.0)

  def _visual_bytes(self, cache_bytes: int) -> int:
    """What a visual position must read: language model, cache, projector, R times the depth
    transformer."""
    params = self._prepared().params
    head = {k: v for k, v in params["depth"].items() if k not in ("in_mlp_1", "in_mlp_2")}
    least = self._llm_bytes() + cache_bytes + self.config.tower.quantizer.depth * _size(head)
    return least + _size([params[k] for k in ("projector",) if k in params])

  def _llm_bytes(self) -> int:
    params = self._prepared().params["llm"]
    return _size({k: v for k, v in params.items() if k not in ("embed_tokens", "lm_head")})


class _Again:
  """Calls a decoding step on the state it left behind."""

  def __init__(self, bench: Bench, rows: int, step: Callable, steps: int = 1):
    self._start = lambda: bench._prepared().start(
      bench._prompts(rows), room=max(steps, bench.sizes.positions)
    )
    self._step, self._steps, self._room = step, steps, max(steps, bench.sizes.positions)
    self._state, self._used = self._start(), 0
    self.cache_bytes = _size(self._state.caches)

  def ready(self) -> None:
    """Starts anew where the room ends."""
    if self._used + self._steps > self._room:
      self._state, self._used = jax.block_until_ready(self._start()), 0

  def __call__(self) -> Any:
    self._state, *drawn = self._step(self._state)
    self._used += self._steps
    return drawn


def _size(tree: Any) -> int:
  return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
