"""The tower stage: one step of contrastive, reconstruction and adversarial training."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from vilau_jax import lora, sharding
from vilau_jax.config import VilaUConfig
from vilau_jax.models.discriminator import PatchDiscriminator
from vilau_jax.models.perceptual import Lpips
from vilau_jax.models.tower import Tower, last_kernel
from vilau_jax.train import losses, optim
from vilau_jax.train.optim import State, Tree

_METHODS = ("__call__", "decoder_out", "encode", "decode_codes")  # through which it is called
DISCRIMINATOR_LOSSES = {"hinge": losses.hinge, "vanilla": losses.vanilla}


def normalise(images: jax.Array) -> jax.Array:
  """uint8 [B,S,S,3] -> float32 in [-1,1]."""
  return images.astype(jnp.float32) / 127.5 - 1


@dataclasses.dataclass(frozen=True)
class TowerStage:
  """`init` and `step` of the tower stage, pure functions for jit.

  Batches: image uint8 [B,S,S,3]; with a contrastive loss text int32 [B,length] and caption_id int32
  [B]; with loss.wrong_captions wrong_text int32 [B,length] and has_wrong bool [B]. `frozen` is
  {"params": what optim.freeze names, ["lpips": variables of Lpips]}.
  """

  config: ConfigDict
  model: VilaUConfig

  def __post_init__(self):
    loss = self.config.loss
    lora.check(self.config.lora)
    if self.config.optim.accumulate != 1:
      raise ValueError(
        "optim.accumulate must be 1 here: contrastive loss and codebook see the batch"
      )
    if loss.gan_mode not in ("adaptive", "fixed"):
      raise ValueError(f"loss.gan_mode must be 'adaptive' or 'fixed', got {loss.gan_mode!r}")
    if loss.disc.loss not in DISCRIMINATOR_LOSSES:
      known = sorted(DISCRIMINATOR_LOSSES)
      raise ValueError(f"loss.disc.loss must be one of {known}, got {loss.disc.loss!r}")
    if loss.contrastive and self.model.tower.text is None:
      raise ValueError(f"loss.contrastive {loss.contrastive}: this tower has no contrastive route")
    if loss.wrong_captions and not loss.contrastive:
      raise ValueError(
        "loss.wrong_captions is a part of the contrastive loss: loss.contrastive is 0"
      )
    if unknown := sorted(set(loss.disc.optim) - set(self.config.optim)):
      known = ", ".join(sorted(self.config.optim))
      raise ValueError(f"loss.disc.optim: unknown {', '.join(unknown)}; known: {known}")
    if bool(loss.lpips) != bool(loss.lpips_weights):
      raise ValueError(
        "loss.lpips and loss.lpips_weights (a file) are given together or not at all"
      )

  @property
  def tower(self) -> Tower:
    return self._tower()

  def _tower(self, base: bool = True) -> Tower:
    loss, dtype = self.config.loss, jnp.dtype(self.model.dtype)
    scalars = math.log(loss.temperature), loss.bias
    tower = Tower(self.model.tower, dtype, self.model.remat, *scalars)
    return lora.adapted(tower, self.config.lora, _METHODS, root="tower", base=base)

  def compressed(self, frozen: Tree) -> Tree:
    """`frozen` as the step reads it; see LmStage.compressed."""
    if not self.config.lora.base:
      return frozen
    images = jnp.zeros((1, *[self.model.tower.image_size] * 2, 3))
    quantised = jax.eval_shape(lambda k: self._tower().init({"params": k}, images)["params"],
                               jax.random.key(0))  # fmt: skip
    params = lora.compressed(frozen["params"], {"tower": quantised})
    return frozen | {"params": params}

  @property
  def discriminator(self) -> PatchDiscriminator:
    disc = self.config.loss.disc
    return PatchDiscriminator(disc.channels, disc.layers, disc.norm, jnp.dtype(self.model.dtype))

  def init(self, key: jax.Array) -> tuple[State, Tree]:
    """Boxed random state and boxed frozen parameters."""
    names = jax.random.split(key, 2)
    images = jnp.zeros((1, *[self.model.tower.image_size] * 2, 3))
    variables = self._tower(base=False).init({"params": names[0]}, images)
    params = {"tower": variables["params"]}
    if self.config.lora.rank:
      trained, frozen = lora.split(params, self.config.lora, self.config.optim.freeze)
    else:
      trained, frozen = optim.split(params, self.config.optim.freeze)
    opt = {"tower": self._optimizer(trained).init(trained)}
    collections = {"quantizer": variables["quantizer"]}
    collections |= optim.initial_average(self.config.optim, trained)
    if self.config.loss.gan:
      judge = self.discriminator.init({"params": names[1]}, images, False)
      trained |= {"discriminator": judge["params"]}
      collections |= {"discriminator": judge.get("batch_stats", {})}
      opt |= {"discriminator": self._judge_optimizer().init(judge["params"])}
    return State(jnp.zeros((), jnp.int32), trained, opt, collections), {"params": frozen}

  def step(
    self, state: State, frozen: Tree, batch: dict[str, jax.Array], key: jax.Array
  ) -> tuple[State, Tree]:
    """One update of everything that is trained; returns the new state and scalar metrics."""
    images = sharding.constrain(normalise(batch["image"]), "batch", "height", "width", None)
    grads, drawn, moved, metrics = self.gradients(state, frozen, images, batch, key)
    trained = {"tower": state.params["tower"]}
    tx = self._optimizer(trained)
    updates, opt = tx.update(grads, state.opt["tower"], trained)
    trained = optax.apply_updates(trained, updates)
    collections = {"quantizer": moved["quantizer"]}
    collections |= optim.average(self.config.optim, state.collections, trained)
    opt = {"tower": opt}
    metrics["grad_norm"] = optax.tree.norm(grads)
    metrics["lr"] = optim.schedule(self.config.optim, self.config.steps)(state.step)
    if self.config.loss.gan:
      judged, judge_metrics = self._judge_step(state, images, drawn, moved["discriminator"])
      trained |= {"discriminator": judged[0]}
      opt |= {"discriminator": judged[1]}
      collections |= {"discriminator": judged[2]}
      metrics |= judge_metrics
    return State(state.step + 1, trained, opt, collections), metrics

  def gradients(
    self, state: State, frozen: Tree, images: jax.Array, batch: Tree, key: jax.Array
  ) -> tuple[Tree, jax.Array, Tree, Tree]:
    """Gradients of the total loss with one backward pass through the generator.

    The cotangent of the drawn images is formed first; the adaptive weight needs two gradients of
    the last kernel alone, which are cheap.

    Returns:
      Gradients of {"tower"}, drawn images, moved collections, metrics.
    """
    loss = self.config.loss
    trained = {"tower": state.params["tower"]}

    def generate(trained):
      if self.config.lora.rank:
        trained = lora.cast(trained, self.model.dtype)
      params = optim.merge(trained, frozen["params"])["tower"]
      out, moved = self._forward(state, params, images, batch, key)
      contrastive = self._contrastive(out, batch) if loss.contrastive else jnp.zeros(())
      return (out["image"], out["commitment"], contrastive), (out, moved, params)

    (drawn, commitment, contrastive), backward, (out, moved, params) = jax.vjp(
      generate, trained, has_aux=True
    )
    value = jax.value_and_grad(lambda x: self._distance(frozen, x, images), has_aux=True)
    (distance, parts), cotangent = value(drawn)
    metrics = dict(parts)
    if loss.gan:
      weighted, moved["discriminator"], gan_metrics = self._adversary(
        state, params, out["decoder_features"], drawn, cotangent
      )
      cotangent += weighted
      metrics |= gan_metrics
    total = loss.reconstruction * (distance + loss.commitment * commitment)
    total += loss.contrastive * contrastive
    (grads,) = backward(
      (
        loss.reconstruction * cotangent,
        jnp.asarray(loss.reconstruction * loss.commitment, commitment.dtype),
        jnp.asarray(loss.contrastive, contrastive.dtype),
      )
    )
    metrics |= {"loss": total, "loss_commitment": commitment, "psnr": losses.psnr(drawn, images)}
    metrics |= out["metrics"]
    if loss.contrastive:
      metrics["loss_contrastive"] = contrastive
      metrics["temperature"] = jnp.exp(out["logit_scale"][0])
      metrics["bias"] = out["logit_bias"][0]
    return grads, drawn, moved, metrics

  def _forward(self, state: State, params: Tree, images: jax.Array, batch: Tree, key: jax.Array):
    """The tower in training mode, and the moved codebook."""
    text = batch["text"] if self.config.loss.contrastive else None
    if self.config.loss.wrong_captions:  # both go through the text encoder at once
      text = jnp.concatenate([text, batch["wrong_text"]])
    return self.tower.apply(
      {"params": params, "quantizer": state.collections["quantizer"]},
      images,
      text,
      train=True,
      quantize_weight=(state.step >= self.config.loss.quantizer_start).astype(jnp.float32),
      key=jax.random.fold_in(key, state.step),
      mutable=["quantizer"],
    )

  def _contrastive(self, out: Tree, batch: Tree) -> jax.Array:
    config = self.config.loss
    same = batch["caption_id"] if config.equal_captions else None
    image, text = out["image_embedding"], out["text_embedding"]
    scalars = out["logit_scale"], out["logit_bias"]
    chunked = config.contrastive_chunked
    loss = losses.sigmoid_contrastive_chunked if chunked else losses.sigmoid_contrastive
    if not config.wrong_captions:
      return loss(image, text, *scalars, same)
    right, wrong = jnp.split(text, 2)
    own = losses.wrong_captions(image, right, wrong, scalars[0], batch["has_wrong"])
    return loss(image, right, *scalars, same) + config.wrong_captions * own

  def _distance(self, frozen: Tree, drawn: jax.Array, images: jax.Array) -> tuple[jax.Array, Tree]:
    """Pixel and perceptual loss, and their parts."""
    loss = self.config.loss
    pixel = losses.pixel(drawn, images, mse=loss.mse, l1=loss.l1)
    if not loss.lpips:
      return pixel, {"loss_pixel": pixel}
    widths = tuple(frozen["lpips"]["params"][f"lin_{i}"].shape[0] for i in range(5))
    perceptual = jnp.mean(Lpips(widths).apply(frozen["lpips"], images, drawn))
    parts = {"loss_pixel": pixel, "loss_lpips": perceptual}
    return pixel + loss.lpips * perceptual, parts

  def _judge(self, params: Tree, stats: Tree, images: jax.Array) -> tuple[jax.Array, Tree]:
    variables = {"params": params, "batch_stats": stats}
    logits, moved = self.discriminator.apply(variables, images, True, mutable=["batch_stats"])
    return logits, moved.get("batch_stats", {})

  def _started(self, state: State) -> jax.Array:
    return state.step >= self.config.loss.disc.start_step

  def _adversary(
    self,
    state: State,
    params: Tree,
    features: jax.Array,
    drawn: jax.Array,
    distance_grad: jax.Array,
  ) -> tuple[jax.Array, Tree, Tree]:
    """The generator's side of the game.

    Returns:
      Weighted gradient of the drawn images, the discriminator's moved statistics, metrics.
    """
    loss = self.config.loss
    stats = state.collections["discriminator"]

    def fool(images):
      logits, moved = self._judge(state.params["discriminator"], stats, images)
      return losses.generator(logits), moved

    (fooled, moved), grad = jax.value_and_grad(fool, has_aux=True)(drawn)
    weight = jnp.ones(())
    if loss.gan_mode == "adaptive":
      kernel_grad = self._kernel_gradient(params, features)
      bounds = loss.gan_weight_low, loss.gan_weight_high
      weight = losses.adaptive_weight(kernel_grad(distance_grad), kernel_grad(grad), *bounds)
    on = self._started(state).astype(jnp.float32)
    metrics = {"loss_generator": on * fooled, "gan_weight": on * weight}
    return on * weight * loss.gan * grad, moved, metrics

  def _kernel_gradient(self, params: Tree, features: jax.Array):
    """Function: cotangent of the drawn images -> gradient of the decoder's last kernel."""

    def draw(kernel):
      conv_out = params["decoder"]["conv_out"] | {"kernel": kernel}
      with_kernel = params | {"decoder": params["decoder"] | {"conv_out": conv_out}}
      return self.tower.apply({"params": with_kernel}, features, method="decoder_out")

    pull = jax.vjp(draw, last_kernel(params))[1]
    return lambda cotangent: pull(cotangent)[0]

  def _judge_step(
    self, state: State, images: jax.Array, drawn: jax.Array, stats: Tree
  ) -> tuple[tuple[Tree, Any, Tree], Tree]:
    """The discriminator's own update; before it starts, nothing of it moves."""
    loss = self.config.loss
    before = (
      state.params["discriminator"],
      state.opt["discriminator"],
      state.collections["discriminator"],
    )

    def judge(params):
      fake, moved = self._judge(params, stats, jax.lax.stop_gradient(drawn))
      real, moved = self._judge(params, moved, images)
      value = DISCRIMINATOR_LOSSES[loss.disc.loss](real, fake)
      return loss.gan * value, (value, moved, fake.mean(), real.mean())

    grads, (value, moved, fake, real) = jax.grad(judge, has_aux=True)(before[0])
    updates, opt = self._judge_optimizer().update(grads, before[1], before[0])
    after = optax.apply_updates(before[0], updates), opt, moved
    on = self._started(state)
    kept = jax.tree.map(lambda new, old: jnp.where(on, new, old), after, before)
    metrics = {"loss_discriminator": value, "logits_fake": fake, "logits_real": real,
               "grad_norm_discriminator": optax.tree.norm(grads)}  # fmt: skip
    return kept, {k: jnp.where(on, v, 0) for k, v in metrics.items()}

  def _optimizer(self, trained: Tree) -> optax.GradientTransformation:
    return optim.optimizer(self.config.optim, self.config.steps, trained)

  def _judge_optimizer(self) -> optax.GradientTransformation:
    own = self.config.optim.copy_and_resolve_references()
    own.update(self.config.loss.disc.optim)
    own.lr_multipliers = ConfigDict()
    start = self.config.loss.disc.start_step
    return optim.optimizer(own, max(self.config.steps - start, own.warmup + 1))
