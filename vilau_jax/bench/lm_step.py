"""The language model's training step against the same step in PyTorch eager, on this machine's CPU.

python -m vilau_jax.bench.lm_step [--rounds=3] [--steps=3] [--rows=4] [--length=512] [--layers=12]

Needs torch and transformers. Llama 12 x 768 (transformers'), a depth head 2 x 768 of torch's own
layers, 4 codes of 1024 a position, 32004 text ids; 4 rows of 512 positions, 256 of them supervised
visual ones, the others supervised text; AdamW, float32. Each side is a process of its own; they
take turns of a few steps, of which the first is not counted: while the other side works, a virtual
machine may take back the memory that a step needs. Prints the seconds of each step and the ratio of
the medians (above 1: this package is faster).
"""

import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection

import flax.linen as nn
import jax
import numpy as np
from absl import app, flags

from vilau_jax import sharding
from vilau_jax.config import VilaUConfig
from vilau_jax.train import defaults
from vilau_jax.train.lm import LmStage

WIDTH, HEADS, HIDDEN, VOCAB, CODES, ENTRIES, CODE_WIDTH = 768, 12, 2048, 32004, 4, 1024, 256
_ROUNDS = flags.DEFINE_integer("rounds", 3, "turns of each side", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 3, "steps of a turn; the first is not timed", lower_bound=2)
_ROWS = flags.DEFINE_integer("rows", 4, "rows of a batch")
_LENGTH = flags.DEFINE_integer("length", 512, "positions of a row; half of them are visual")
_LAYERS = flags.DEFINE_integer("layers", 12, "layers of the language model")


def batch_of(rows: int, length: int) -> dict[str, np.ndarray]:
  """Rows of text, then visual positions that are all supervised."""
  draw, slots = np.random.default_rng(0), length // 2
  place = np.broadcast_to(np.arange(length - slots, length, dtype=np.int32), (rows, slots))
  target = draw.integers(0, VOCAB, (rows, length)).astype(np.int32)
  target[:, length - slots :] = -1
  return {
    "tokens": draw.integers(0, VOCAB, (rows, length)).astype(np.int32),
    "visual_position": place,
    "codes": draw.integers(0, ENTRIES, (rows, slots, CODES)).astype(np.uint16),
    "visual_target": np.ones((rows, slots), bool),
    "segment_ids": np.ones((rows, length), np.int32),
    "positions": np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)),
    "text_target": target,
  }


def ours(batch: dict[str, np.ndarray], layers: int):
  """A function that makes one step and waits for it."""
  rows, length = batch["tokens"].shape
  c = defaults.lm()
  c.steps, c.batch_size = 1000, rows
  c.data.row.update(dict(length=length, slots=length // 2, targets=length // 2))
  c.loss.update(dict(text_chunk=length, code_chunk=length, head_block=0))
  model = VilaUConfig.from_preset(
    "tiny",
    tower=dict(quantizer=dict(depth=CODES, entries=ENTRIES, width=CODE_WIDTH)),
    llm=dict(
      vocab_size=VOCAB, width=WIDTH, hidden=HIDDEN, depth=layers, heads=HEADS, kv_heads=HEADS
    ),
    depth=dict(width=WIDTH, hidden=4 * WIDTH, depth=2, heads=HEADS, dropout=0.0, unroll=True),
  )
  stage = LmStage(c, model)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  key = jax.random.key(0)
  with jax.set_mesh(mesh):
    state, frozen = jax.jit(lambda k: nn.unbox(stage.init(k)))(key)
    compiled = jax.jit(stage.step, donate_argnames="state")

  def step():
    nonlocal state
    with jax.set_mesh(mesh):
      state, metrics = compiled(state, frozen, batch, key)
      return float(metrics["loss"])

  return step


def theirs(batch: dict[str, np.ndarray], layers: int):
  """As `ours`, in PyTorch eager."""
  import torch
  from torch import nn
  from transformers import LlamaConfig, LlamaModel

  class Model(nn.Module):
    def __init__(self):
      super().__init__()
      self.llm = LlamaModel(
        LlamaConfig(vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=HIDDEN,
                    num_hidden_layers=layers, num_attention_heads=HEADS)
      )  # fmt: skip
      self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)
      self.projector = nn.Sequential(
        nn.Linear(CODE_WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH)
      )
      self.from_codes, self.from_hidden = nn.Linear(CODE_WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
      self.position = nn.Parameter(torch.zeros(CODES, WIDTH))
      block = nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
      )
      self.depth = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
      self.norm, self.classifier = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, ENTRIES)

    def forward(self, tokens, codes, codebook, place, target):
      words = codebook[codes]
      x = self.llm.embed_tokens(tokens)
      x = torch.cat([x[:, : place[0]], self.projector(words.sum(2))], 1)
      hidden = self.llm(inputs_embeds=x, use_cache=False).last_hidden_state
      text = target >= 0
      loss = nn.functional.cross_entropy(self.lm_head(hidden[text]), target[text])
      sums = self.from_codes(words.cumsum(2)[:, :, :-1])
      y = torch.cat([self.from_hidden(hidden[:, place - 1])[:, :, None], sums], 2) + self.position
      mask = nn.Transformer.generate_square_subsequent_mask(CODES)
      y = self.depth(y.flatten(0, 1), mask=mask, is_causal=True)
      logits = self.classifier(self.norm(y))
      return loss + nn.functional.cross_entropy(logits.flatten(0, 1), codes.flatten())

  torch.manual_seed(0)
  model = Model().train()
  optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
  given = {k: torch.from_numpy(np.array(v.astype(np.int64))) for k, v in batch.items()}
  codebook = torch.randn(ENTRIES, CODE_WIDTH)

  def step():
    optimizer.zero_grad()
    place = given["visual_position"][0]
    loss = model(given["tokens"], given["codes"], codebook, place, given["text_target"])
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())

  return step


SIDES = {"vilau_jax": ours, "torch": theirs}


def _turns(side: str, rows: int, length: int, layers: int, line: Connection) -> None:
  """Makes as many steps as it is asked for, and answers with their seconds; 0 ends it."""
  step = SIDES[side](batch_of(rows, length), layers)
  while count := line.recv():
    seconds = []
    for _ in range(count):
      began = time.perf_counter()
      loss = step()
      if not np.isfinite(loss):
        raise FloatingPointError(f"{side}: loss {loss}")
      seconds.append(time.perf_counter() - began)
    line.send(seconds)


def main(_) -> None:
  fresh = multiprocessing.get_context("spawn")
  seconds: dict[str, list[float]] = {side: [] for side in SIDES}
  lines = {}
  for side in SIDES:
    lines[side], there = fresh.Pipe()
    given = side, _ROWS.value, _LENGTH.value, _LAYERS.value, there
    fresh.Process(target=_turns, args=given, daemon=True).start()
    there.close()
  for round_ in range(_ROUNDS.value + 1):
    for side, line in lines.items():
      line.send(_STEPS.value if round_ else 1)  # the first compiles
      seconds[side] += line.recv()[1:]
  for line in lines.values():
    line.send(0)
  for side, values in seconds.items():
    print(f"{side}: {', '.join(f'{v:.2f}' for v in values)} s a step")
  medians = {side: statistics.median(values) for side, values in seconds.items()}
  print(f"torch / vilau_jax: {medians['torch'] / medians['vilau_jax']:.2f}")


if __name__ == "__main__":
  app.run(main)
