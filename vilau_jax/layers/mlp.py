"""Feed-forward blocks. Axis letters: B batch, L length, D width, F hidden."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from vilau_jax import sharding
from vilau_jax.layers.dense import Dense

gelu_tanh = functools.partial(nn.gelu, approximate=True)  # SigLIP
gelu_exact = functools.partial(nn.gelu, approximate=False)  # projector, depth transformer


class Mlp(nn.Module):
  """Two biased projections around an activation."""

  hidden: int
  activation: Callable[[jax.Array], jax.Array]
  dtype: jnp.dtype = jnp.float32
  init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, L, D] -> [B, L, D]."""
    y = Dense(self.hidden, ("embed", "mlp"), name="fc1", dtype=self.dtype, kernel_init=self.init)(x)
    y = sharding.constrain(self.activation(y), "batch", "length", "act_mlp")
    return Dense(
      x.shape[-1], ("mlp", "embed"), name="fc2", dtype=self.dtype, kernel_init=self.init
    )(y)


class GatedMlp(nn.Module):
  """Llama's SiLU-gated MLP: down(silu(gate(x)) * up(x)), no biases."""

  hidden: int
  dtype: jnp.dtype = jnp.float32
  init: nn.initializers.Initializer = nn.initializers.normal(0.02)

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, L, D] -> [B, L, D]."""
    project = dict(dtype=self.dtype, bias=False, kernel_init=self.init)
    gate = Dense(self.hidden, ("embed", "mlp"), name="gate_proj", **project)(x)
    up = Dense(self.hidden, ("embed", "mlp"), name="up_proj", **project)(x)
    y = sharding.constrain(nn.silu(gate) * up, "batch", "length", "act_mlp")
    return Dense(x.shape[-1], ("mlp", "embed"), name="down_proj", **project)(y)
