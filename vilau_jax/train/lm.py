"""The language-model stage: one step over packed rows of text and visual codes."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vilau_jax import lora, sharding
from vilau_jax.config import VilaUConfig
from vilau_jax.models import quantizer, vilau
from vilau_jax.train import heads, losses, optim
from vilau_jax.train.optim import State, Tree

_METHODS = ("touch", "hidden", "visual_features")  # those that run projections with adapters
_DRAW = 2**31 - 1  # beyond the number of any chunk, whose keys are folded in the same way


@dataclasses.dataclass(frozen=True)
class LmStage:
  """`init` and `step` of language-model training and fine-tuning, pure functions for jit.

  Batches are packed rows (see data/packing.py). `frozen` is {"params": what optim.freeze names,
  "quantizer": {"codebook"}}: of the tower only the codebook takes part.
  """

  config: ConfigDict
  model: VilaUConfig

  def __post_init__(self):
    weights = self.config.loss.code_depth_weights
    depth = self.model.tower.quantizer.depth
    if weights and len(weights) != depth:
      raise ValueError(
        f"loss.code_depth_weights has {len(weights)} entries, the tower {depth} depths"
      )
    lora.check(self.config.lora)
    fraction = self.config.loss.visual_fraction
    if not 0 < fraction <= 1:
      raise ValueError(f"loss.visual_fraction must be above 0 and at most 1, got {fraction}")
    if self.config.batch_size % self.config.optim.accumulate:
      raise ValueError(
        f"optim.accumulate {self.config.optim.accumulate} does not divide batch_size "
        f"{self.config.batch_size}"
      )

  def net(self, base: bool = True) -> vilau.VilaU:
    """The model, with adapters where there are some; `base`: its frozen projections quantised."""
    return lora.adapted(vilau.VilaU(self.model), self.config.lora, _METHODS, base=base)

  def compressed(self, frozen: Tree) -> Tree:
    """`frozen` as the step reads it: projections under adapters quantised, where lora.base is."""
    if not self.config.lora.base:
      return frozen
    quantised = jax.eval_shape(lambda k: vilau.init(self.model, k, self.net()), jax.random.key(0))
    return frozen | {"params": lora.compressed(frozen["params"], quantised)}

  def init(self, key: jax.Array) -> tuple[State, Tree]:
    """Boxed random state and boxed frozen variables; the codebook is a placeholder."""
    params = vilau.init(self.model, key, self.net(base=False))
    if self.config.lora.rank:
      trained, frozen = lora.split(params, self.config.lora, self.config.optim.freeze)
    else:
      trained, frozen = optim.split(params, self.config.optim.freeze)
    codebook = quantizer.init_state(key, self.model.tower.quantizer)["codebook"]
    codebook = nn.LogicallyPartitioned(codebook, quantizer.AXES["codebook"])
    collections = optim.initial_average(self.config.optim, trained)
    opt = self._optimizer(trained).init(trained)
    state = State(jnp.zeros((), jnp.int32), trained, opt, collections)
    return state, {"params": frozen, "quantizer": {"codebook": codebook}}

  def step(
    self, state: State, frozen: Tree, batch: dict[str, jax.Array], key: jax.Array
  ) -> tuple[State, Tree]:
    """One update; returns the new state and metrics ([R] where they are by depth)."""
    key = jax.random.fold_in(key, state.step)
    grads, metrics = self.gradients(state.params, frozen, batch, key)
    updates, opt = self._optimizer(state.params).update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    collections = optim.average(self.config.optim, state.collections, params)
    metrics["grad_norm"] = optax.tree.norm(grads)
    metrics["lr"] = optim.schedule(self.config.optim, self.config.steps)(state.step)
    return State(state.step + 1, params, opt, collections), metrics

  def gradients(
    self, params: Tree, frozen: Tree, batch: dict[str, jax.Array], key: jax.Array
  ) -> tuple[Tree, Tree]:
    """Gradients of the mean losses over the global batch, in optim.accumulate pieces.

    Every piece is divided by the counts of the whole batch, so the pieces add up to exactly the
    gradient of the batch in one go.
    """
    counts = {
      "text": jnp.maximum(jnp.sum(batch["text_target"] >= 0), 1).astype(jnp.float32),
      "image": jnp.maximum(jnp.sum(batch["visual_target"]), 1).astype(jnp.float32),
    }
    value = jax.grad(self.loss, has_aux=True)
    pieces = self.config.optim.accumulate
    if pieces == 1:
      grads, metrics = value(params, frozen, batch, counts, key)
    else:
      # Strided, so that a device keeps its own rows.
      split = jax.tree.map(
        lambda x: x.reshape(x.shape[0] // pieces, pieces, *x.shape[1:]).swapaxes(0, 1), batch
      )

      def add(total, numbered):
        number, piece = numbered
        part = value(params, frozen, piece, counts, jax.random.fold_in(key, number))
        return jax.tree.map(jnp.add, total, part), None

      shapes = jax.eval_shape(value, params, frozen, batch, counts, key)
      zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
      (grads, metrics), _ = jax.lax.scan(add, zero, (jnp.arange(pieces), split))
    metrics |= {"text_targets": counts["text"], "image_targets": counts["image"]}
    metrics["fill"] = jnp.mean(batch["segment_ids"] > 0)
    return grads, metrics

  def loss(
    self, trained: Tree, frozen: Tree, batch: Tree, counts: Tree, key: jax.Array
  ) -> tuple[jax.Array, Tree]:
    """Text cross-entropy plus code cross-entropy, and their parts.

    Args:
      trained: trained parameters.
      frozen: see the class.
      batch: packed rows, all of the batch or a piece of it.
      counts: supervised text positions and visual slots of the whole batch.
      key: of the dropout in the depth transformer.
    """
    weights, model = self.config.loss, self.net()
    if self.config.lora.rank:
      trained = lora.cast(trained, self.model.dtype)
    variables = {"params": optim.merge(trained, frozen["params"])}
    # Its rows whole on every device: if their width were sharded, so would be looked-up codes.
    codebook = quantizer.whole_rows(jax.lax.stop_gradient(frozen["quantizer"]["codebook"]))
    batch = {k: sharding.constrain(v, "batch", *[None] * (v.ndim - 1)) for k, v in batch.items()}
    codes = batch["codes"].astype(jnp.int32)

    def apply(method, *args, **kwargs):
      return model.apply(variables, *args, method=method, **kwargs)

    def text_nll(hidden, wanted):
      return heads.nll(apply("text_head", hidden), wanted, weights.head_block)

    def code_nll(hidden, codes, number):
      rngs = {"dropout": jax.random.fold_in(key, number)}
      features = apply("visual_features", hidden, codes, codebook, False, rngs=rngs)
      return heads.nll(apply("code_head", features), codes, weights.head_block)

    places = (batch[k] for k in ("visual_position", "segment_ids", "positions"))
    hidden = apply("hidden", batch["tokens"], codes, *places, codebook, batch.get("branches"))
    text = losses.text_cross_entropy(text_nll, hidden, batch["text_target"], weights.text_chunk)
    visual = losses.code_cross_entropy(
      code_nll,
      hidden,
      codes,
      batch["visual_position"],
      batch["visual_target"],
      capacity=self.config.data.row.targets,
      chunk=weights.code_chunk,
      fraction=weights.visual_fraction,
      key=jax.random.fold_in(key, _DRAW),
    )
    return self._total(text, visual, counts)

  def _total(self, text: Tree, visual: Tree, counts: Tree) -> tuple[jax.Array, Tree]:
    weights = self.config.loss
    by_depth = visual["nll"] / counts["image"]
    depth_weights = jnp.asarray(weights.code_depth_weights or 1.0, jnp.float32)
    loss_text = text["nll"] / counts["text"]
    loss_image = jnp.mean(by_depth * depth_weights)
    total = weights.text * loss_text + weights.image * loss_image
    metrics: dict[str, Any] = {
      "loss": total,
      "loss_text": loss_text,
      "loss_image": jnp.mean(by_depth),
      "loss_code": by_depth,
      "accuracy_text": text["correct"] / counts["text"],
      "accuracy_code": visual["correct"] / counts["image"],
    }
    return total, metrics

  def _optimizer(self, trained: Tree) -> optax.GradientTransformation:
    return optim.optimizer(self.config.optim, self.config.steps, trained)
