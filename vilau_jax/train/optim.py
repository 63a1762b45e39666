"""What is trained and how: splitting by path prefix, schedules, AdamW, the training state."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from flax import struct, traverse_util
from ml_collections import ConfigDict

# Matrices that optim.muon changes, by the module that holds the kernel: axes it reads, axes it
# writes. Heads are split off what is one matrix; leading axes are layers.
_READ_WIDTH, _READ_HEADS, _DENSE = ((-3,), (-2, -1)), ((-3, -2), (-1,)), ((-2,), (-1,))
_MATRICES = {
  **dict.fromkeys(("query", "key", "value", "q_proj", "k_proj", "v_proj"), _READ_WIDTH),
  **dict.fromkeys(("out", "o_proj"), _READ_HEADS),
  **dict.fromkeys(("fc1", "fc2", "gate_proj", "up_proj", "down_proj"), _DENSE),
}
# Norms, biases and the contrastive scalars: one-dimensional before stacking and head splitting.
_NO_DECAY = ("bias", "scale", "logit_scale", "logit_bias")
Tree = dict[str, Any]


class State(struct.PyTreeNode):
  """What training changes; what is frozen stands outside.

  Attributes:
    step: int32 scalar, steps done.
    params: trained parameters by component.
    opt: optimizer state.
    collections: "quantizer" and "discriminator" (its batch norms) in the tower stage, "ema" (the
      averaged copy of params) where optim.ema is on.
  """

  step: jax.Array
  params: Tree
  opt: Any
  collections: Tree


def _under(path: tuple[str, ...], prefix: str) -> bool:
  parts = tuple(prefix.strip("/").split("/"))
  return path[: len(parts)] == parts


def split(params: Tree, prefixes: Iterable[str]) -> tuple[Tree, Tree]:
  """Splits parameters into (trained, frozen) by path prefixes such as "llm" or "tower/text".

  Raises:
    ValueError: for a prefix that names no parameter, or when nothing is left to train.
  """
  flat = traverse_util.flatten_dict(params)
  for prefix in prefixes:
    if not any(_under(path, prefix) for path in flat):
      raise ValueError(f"optim.freeze: no parameter starts with {prefix!r}; {_known(flat)}")
  frozen = {path for path in flat if any(_under(path, p) for p in prefixes)}
  if len(frozen) == len(flat):
    raise ValueError(f"optim.freeze {tuple(prefixes)} freezes every parameter")
  parts = ({k: v for k, v in flat.items() if (k in frozen) == want} for want in (False, True))
  trained, frozen = (traverse_util.unflatten_dict(part) for part in parts)
  return trained, frozen


def merge(trained: Tree, frozen: Tree) -> Tree:
  """Inverse of split."""
  flat = traverse_util.flatten_dict(trained) | traverse_util.flatten_dict(frozen)
  return traverse_util.unflatten_dict(flat)


def _known(flat: Iterable[tuple[str, ...]]) -> str:
  return f"parameters begin with {sorted({'/'.join(path[:2]) for path in flat})}"


def schedule(optim: ConfigDict, steps: int) -> optax.Schedule:
  """Linear warm-up from 0 over optim.warmup steps, then cosine to peak * end_lr_fraction at
  `steps`.

  Raises:
    ValueError: if the warm-up is as long as the training.
  """
  if optim.warmup >= steps:
    raise ValueError(f"optim.warmup {optim.warmup} must be shorter than the {steps} steps")
  end = optim.peak_lr * optim.end_lr_fraction
  cosine = optax.cosine_decay_schedule(1.0, steps - optim.warmup)

  def rate(step):
    step = jnp.asarray(step, jnp.float32)
    rising = optim.peak_lr * step / max(optim.warmup, 1)
    falling = end + (optim.peak_lr - end) * cosine(step - optim.warmup)
    return jnp.where(step < optim.warmup, rising, falling)

  return rate


def optimizer(
  optim: ConfigDict, steps: int, params: Tree | None = None
) -> optax.GradientTransformation:
  """AdamW with clipping by the global norm and learning-rate multipliers by path prefix.

  Args:
    optim: peak_lr, b1, b2, eps, weight_decay, decay_1d, warmup, end_lr_fraction, clip (0 = off),
      lr_multipliers, muon (the matrices of transformer blocks by Muon, see `_muon`).
    steps: length of the schedule.
    params: trained parameters; given to check that every multiplier names some.

  Raises:
    ValueError: for a multiplier that matches nothing.
  """
  multipliers = dict(optim.lr_multipliers)
  for prefix in multipliers if params is not None else ():
    flat = traverse_util.flatten_dict(params)
    if not any(_under(path, prefix) for path in flat):
      raise ValueError(
        f"optim.lr_multipliers: no trained parameter starts with {prefix!r}; {_known(flat)}"
      )

  def decayed(tree: Tree) -> Tree:
    return _by_path(lambda path, _: bool(optim.decay_1d) or path[-1] not in _NO_DECAY, tree)

  def factor(path: tuple[str, ...]) -> float:
    return math.prod(m for prefix, m in multipliers.items() if _under(path, prefix))

  parts = [optax.clip_by_global_norm(optim.clip)] if optim.clip else []
  parts += [
    _muon(optim) if optim.muon else optax.scale_by_adam(optim.b1, optim.b2, optim.eps),
    optax.add_decayed_weights(optim.weight_decay, mask=decayed),
    optax.scale_by_learning_rate(schedule(optim, steps)),
  ]
  if multipliers:
    parts.append(
      optax.stateless(lambda grads, _: _by_path(lambda path, g: g * factor(path), grads))
    )
  return optax.chain(*parts)


def _muon(optim: ConfigDict) -> optax.GradientTransformation:
  """Orthogonal updates (Newton-Schulz) for the matrices of transformer blocks, Adam for the rest.

  Updates have Adam's usual size (Liu et al., arXiv 2502.16982, equation 4), so that one learning
  rate and weight decay serve both.
  """

  def axes(path: tuple[str, ...]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    return _MATRICES.get(path[-2]) if path[-1] == "kernel" else None

  def numbers(path: tuple[str, ...], leaf: Any) -> Any:
    if isinstance(leaf, optax.MaskedNode):
      return leaf
    read, written = (tuple(a % leaf.ndim for a in group) for group in axes(path))
    return optax.contrib.MuonDimensionNumbers(read, written)

  def sized(path: tuple[str, ...], update: Any) -> Any:
    if isinstance(update, optax.MaskedNode):
      return update
    sides = (math.prod(update.shape[a] for a in group) for group in axes(path))
    return update * 0.2 * math.sqrt(max(sides))

  matrices = optax.chain(
    optax.contrib.scale_by_muon(weight_dimension_numbers=lambda tree: _by_path(numbers, tree)),
    optax.stateless(lambda updates, _: _by_path(sized, updates)),
  )
  rest = optax.scale_by_adam(optim.b1, optim.b2, optim.eps)
  label = lambda path, _: "rest" if axes(path) is None else "matrices"  # noqa: E731
  return optax.partition({"matrices": matrices, "rest": rest}, lambda tree: _by_path(label, tree))


def _by_path(fn, tree: Tree) -> Tree:
  flat = traverse_util.flatten_dict(tree)
  return traverse_util.unflatten_dict({path: fn(path, leaf) for path, leaf in flat.items()})


def average(optim: ConfigDict, collections: Mapping[str, Any], params: Tree) -> Tree:
  """{"ema": moved average of params} where optim.ema (its decay) is on, else {}."""
  if not optim.ema:
    return {}
  blend = jax.tree.map(lambda a, b: optim.ema * a + (1 - optim.ema) * b, collections["ema"], params)
  return {"ema": blend}


def initial_average(optim: ConfigDict, params: Tree) -> Tree:
  """The averaged copy at the start of training."""
  return {"ema": jax.tree.map(jnp.copy, params)} if optim.ema else {}
