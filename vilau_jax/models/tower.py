"""The vision tower: images to residual codes, codes to pixels, and both to the space of texts.

A SigLIP tower (VILA-U) quantises the output of the encoder's last but one layer; the quantised
features feed the pixel decoder and, through the last layer and the pooling head, the contrastive
loss. An RQ-VAE tower (the baseline) has a CNN encoder and no contrastive route, unless it has a
text encoder (recipe C2 of the appendix): then a pooling head of its own reads the codes.

Axis letters: B batch, T visual positions of an image, g = sqrt(T) side of the code grid, R residual
depth, E entries, Z code width (folded), D embedding width, S image side.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vilau_jax import sharding
from vilau_jax.config import TowerConfig
from vilau_jax.layers.conv import pointwise
from vilau_jax.models import quantizer
from vilau_jax.models.pixel_decoder import CnnEncoder, PixelDecoder, resize_latents, scale_factor
from vilau_jax.models.siglip import CodePooling, TextEncoder, VisionEncoder

COLLECTION = "quantizer"


def check_geometry(config: TowerConfig) -> None:
  """Checks that the parts of a tower fit together.

  Raises:
    ValueError: naming the sizes that disagree.
  """
  code, latent = config.quantizer, config.grid * config.quantizer.fold
  if config.encoded != latent:
    raise ValueError(
      f"quantizer.fold {code.fold} does not divide the latent grid of side {config.encoded}"
    )
  if config.encoder == "siglip" and code.width != config.vision.width:
    raise ValueError(
      f"quantizer.width {code.width} must equal vision.width {config.vision.width}: the SigLIP "
      "tower quantises hidden states as they are"
    )
  drawn = (config.latent_grid or latent) * scale_factor(config.decoder)
  if drawn != config.image_size:
    raise ValueError(
      f"the decoder draws {drawn} pixels a side ({config.latent_grid or latent} latents x "
      f"{scale_factor(config.decoder)}), but images have {config.image_size}; change "
      "decoder.multipliers, decoder.pixel_shuffle or latent_grid"
    )


def last_kernel(params: dict[str, Any]) -> jax.Array:
  """Kernel of the decoder's last convolution; the adversarial loss is weighted at it."""
  return params["decoder"]["conv_out"]["kernel"]


def _normalised(x: jax.Array) -> jax.Array:
  x = x.astype(jnp.float32)
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class Tower(nn.Module):
  """Methods are called by `tower.apply({"params": .., "quantizer": ..}, .., method="encode")`. What
  does not touch the codebook (`decode`, the embeddings) needs "params" only.

  Attributes:
    config: the parts; see config.py.
    dtype: compute dtype; the quantiser always computes in float32.
    remat: "none" or the name of a jax.checkpoint_policies member, applied to each block.
    initial_logit_scale: logarithm of the contrastive temperature (SigLIP from scratch: ln 10).
    initial_logit_bias: contrastive bias.
  """

  config: TowerConfig
  dtype: jnp.dtype = jnp.float32
  remat: str = "none"
  initial_logit_scale: float = math.log(10)
  initial_logit_bias: float = -10.0

  def setup(self):
    config, fields = self.config, dict(dtype=self.dtype, remat=self.remat)
    check_geometry(config)
    if config.encoder == "siglip":
      self.vision = VisionEncoder(config.vision, **fields)
    else:
      self.encoder = CnnEncoder(config.cnn, **fields)
      self.quant = pointwise(config.quantizer.width, None, self.dtype)
      if self._has_text:
        c = config.text
        self.pooling = CodePooling(c.width, c.heads, c.hidden, c.eps, self.dtype)
    self.post_quant = pointwise(config.decoder.latent_channels, None, self.dtype)
    self.decoder = PixelDecoder(config.decoder, **fields)
    if self._has_text:
      self.text = TextEncoder(config.text, **fields)
      self.scale = self._scalar("logit_scale", self.initial_logit_scale)
      self.bias = self._scalar("logit_bias", self.initial_logit_bias)
    if self.is_mutable_collection(COLLECTION) or self.has_variable(COLLECTION, "codebook"):
      self.codebook_state = self._quantizer_variables()

  def _scalar(self, name: str, value: float) -> jax.Array:
    return self.param(name, sharding.boxed(nn.initializers.constant(value), "norm"), (1,))

  @property
  def _has_contrastive(self) -> bool:
    return self.config.encoder == "siglip" or self._has_text

  @property
  def _has_text(self) -> bool:
    return self.config.text is not None

  def _quantizer_variables(self) -> dict[str, nn.Variable]:
    fresh = {}
    if not self.has_variable(COLLECTION, "codebook"):
      fresh = quantizer.init_state(self.make_rng("params"), self.config.quantizer)

    def boxed(name):
      init = sharding.boxed(lambda *_: fresh[name], *quantizer.AXES[name])
      return init(None, fresh[name].shape)

    return {n: self.variable(COLLECTION, n, boxed, n) for n in quantizer.AXES}

  def _quantizer_state(self) -> quantizer.State:
    return {name: variable.value for name, variable in self.codebook_state.items()}

  def features(self, images: jax.Array) -> jax.Array:
    """float32 [B, S, S, 3] in [-1, 1] -> what is quantised, [B, g, g, Z].

    Raises:
      ValueError: for images of another size.
    """
    side = self.config.image_size
    if images.shape[1:] != (side, side, 3):
      raise ValueError(f"the tower reads images [B, {side}, {side}, 3], got {images.shape}")
    if self.config.encoder == "siglip":
      x = self.vision(images)
      grid = self.config.vision.grid
      x = x.reshape(x.shape[0], grid, grid, x.shape[-1])
    else:
      x = self.quant(self.encoder(images))
    return quantizer.fold(x, self.config.quantizer.fold)

  def encode(self, images: jax.Array) -> jax.Array:
    """float32 [B, S, S, 3] in [-1, 1] -> codes int32 [B, T, R], row-major."""
    x = self.features(images)
    codebook = self.codebook_state["codebook"].value
    codes = quantizer.quantize(self.config.quantizer, codebook, x).codes
    return codes.reshape(x.shape[0], self.config.image_tokens, -1)

  def _latents(self, z: jax.Array) -> jax.Array:
    """[B, T, Z] -> latents [B, h, w, Z / fold**2]."""
    grid = self.config.grid
    return quantizer.unfold(
      z.reshape(z.shape[0], grid, grid, z.shape[-1]), self.config.quantizer.fold
    )

  def decoder_features(self, z: jax.Array) -> jax.Array:
    """[B, T, Z] -> the decoder's features before its last convolution."""
    x = self._latents(z)
    if self.config.latent_grid:
      x = resize_latents(x, self.config.latent_grid)
    return self.decoder(self.post_quant(x))

  def decoder_out(self, features: jax.Array) -> jax.Array:
    """The decoder's last convolution: decoder features -> float32 images [B, S, S, 3]."""
    return self.decoder.out(features)

  def decode(self, z: jax.Array) -> jax.Array:
    """Sums of codewords [B, T, Z] -> float32 images [B, S, S, 3], about [-1, 1], not clamped."""
    return self.decoder_out(self.decoder_features(z))

  def decode_codes(self, codes: jax.Array) -> jax.Array:
    """Codes [B, T, R'] of the first R' depths -> float32 images [B, S, S, 3]."""
    return self.decode(quantizer.embed(self.codebook_state["codebook"].value, codes))

  def image_embedding(self, z: jax.Array) -> jax.Array:
    """Features [B, T, Z], quantised or not -> L2-normalised float32 [B, D].

    Raises:
      ValueError: for an RQ-VAE tower without a text encoder, which has no contrastive route.
    """
    if not self._has_contrastive:
      raise ValueError("an RQ-VAE tower has no contrastive route: it cannot embed images")
    x = self._latents(z)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    pool = self.vision.pool if self.config.encoder == "siglip" else self.pooling
    return _normalised(pool(x))

  def text_embedding(self, ids: jax.Array) -> jax.Array:
    """int32 [B, length] -> L2-normalised float32 [B, D].

    Raises:
      ValueError: for a tower without a text encoder.
    """
    if not self._has_text:
      raise ValueError("this tower has no text encoder: it cannot embed texts")
    return _normalised(self.text(ids))

  def _quantized(self, x: jax.Array, train: bool, key: jax.Array | None):
    config, state = self.config.quantizer, self._quantizer_state()
    if not train:
      return quantizer.quantize(config, state["codebook"], x), {}
    quantized, state, metrics = quantizer.train_quantize(config, state, x, key)
    if not self.is_initializing():
      for name, value in state.items():
        self.codebook_state[name].value = value
    return quantized, metrics

  def __call__(
    self,
    images: jax.Array,
    text: jax.Array | None = None,
    *,
    train: bool = False,
    quantize_weight: jax.Array | float = 1.0,
    key: jax.Array | None = None,
  ) -> dict[str, Any]:
    """Both routes at once.

    Args:
      images: float32 [B, S, S, 3] in [-1, 1].
      text: int32 [B', length], or None.
      train: move the codebook too; apply with mutable=["quantizer"].
      quantize_weight: scalar, 1 quantises; 0 (warm-up extension) lets the features pass as they are
        while the codebook still follows them.
      key: of the codebook's restarts.

    Returns:
      z [B, T, Z], codes int32 [B, T, R], commitment, features [B, g, g, Z], decoder_features, image
      [B, S, S, 3], image_embedding [B, D], text_embedding [B', D], logit_scale (the logarithm) and
      logit_bias (1,), metrics of the quantiser. What the tower or the call lacks is None.
    """
    x = self.features(images)
    quantized, metrics = self._quantized(x, train, key)
    tokens = (x.shape[0], self.config.image_tokens, -1)
    z = x + quantize_weight * jax.lax.stop_gradient(quantized.z - x)
    z = z.astype(x.dtype).reshape(tokens)
    drawn = self.decoder_features(z)
    if self.is_initializing() and text is None and self._has_text:
      text = jnp.zeros((1, self.config.text.length), jnp.int32)
    return {
      "z": z,
      "codes": quantized.codes.reshape(tokens),
      "commitment": quantized.commitment,
      "features": x,
      "decoder_features": drawn,
      "image": self.decoder_out(drawn),
      "image_embedding": self.image_embedding(z) if self._has_contrastive else None,
      "text_embedding": None if text is None else self.text_embedding(text),
      "logit_scale": self.scale if self._has_text else None,
      "logit_bias": self.bias if self._has_text else None,
      "metrics": metrics,
    }
