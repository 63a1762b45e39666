"""Dense and embedding layers whose parameters carry logical axis names."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vilau_jax import sharding
from vilau_jax.layers.product import Transposed, product

LECUN = nn.initializers.lecun_normal()


class Dense(nn.Module):
  """Projection [..., I] -> [..., O] with kernel [I, O]; parameters float32, compute in `dtype`,
  result (and the bias that is added to it) in `result`, or in `dtype` if None."""

  features: int
  axes: tuple[str, str]
  bias: bool = True
  dtype: jnp.dtype = jnp.float32
  result: jnp.dtype | None = None
  kernel_init: nn.initializers.Initializer = LECUN
  bias_init: nn.initializers.Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = product(x, self._kernel(x.shape[-1]), self.dtype, result=self.result)
    if self.bias:
      bias = sharding.boxed(self.bias_init, self.axes[1])
      y = y + self.param("bias", bias, (self.features,)).astype(y.dtype)
    return y

  def _kernel(self, width: int) -> jax.Array | Transposed:
    if self.has_variable("params", "kernel"):
      held = self.get_variable("params", "kernel")
      if isinstance(held, Transposed):  # flax would compare the shapes
        return held
    init = sharding.boxed(self.kernel_init, *self.axes)
    return self.param("kernel", init, (width, self.features))


class Head(NamedTuple):
  """The last projection of a classifier, taken apart.

  Attributes:
    x: inputs [..., D], in the compute dtype.
    kernel: [D, E].
    bias: [E], or None.
    size: classes; what the kernel has beyond them is padding.
  """

  x: jax.Array
  kernel: jax.Array
  bias: jax.Array | None
  size: int

  def logits(self) -> jax.Array:
    """float32 [..., size]."""
    logits = product(self.x, self.kernel, self.x.dtype, result=jnp.float32)
    return (logits if self.bias is None else logits + self.bias)[..., : self.size]


class HeadsIn(nn.Module):
  """Projection [..., D] -> [..., H, C] with kernel [D, H, C] (q, k or v)."""

  heads: int
  head_dim: int
  axis: str = "heads"
  bias: bool = True
  dtype: jnp.dtype = jnp.float32
  init: nn.initializers.Initializer = LECUN

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    width = x.shape[-1]

    def init(key, shape, dtype):  # fan-in is D, whatever the head split
      return self.init(key, (width, self.heads * self.head_dim), dtype).reshape(shape)

    kernel = self.param(
      "kernel",
      sharding.boxed(init, "embed", self.axis, "head_dim"),
      (width, self.heads, self.head_dim),
    )
    y = product(x, kernel, self.dtype)
    if self.bias:
      zeros = sharding.boxed(nn.initializers.zeros, self.axis, "head_dim")
      y = y + self.param("bias", zeros, (self.heads, self.head_dim)).astype(self.dtype)
    return y


class HeadsOut(nn.Module):
  """Projection [..., H, C] -> [..., D] with kernel [H, C, D] (attention output)."""

  width: int
  bias: bool = True
  dtype: jnp.dtype = jnp.float32
  init: nn.initializers.Initializer = LECUN

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    heads, head_dim = x.shape[-2:]

    def init(key, shape, dtype):
      return self.init(key, (heads * head_dim, self.width), dtype).reshape(shape)

    kernel = self.param(
      "kernel", sharding.boxed(init, "heads", "head_dim", "embed"), (heads, head_dim, self.width)
    )
    y = product(x, kernel, self.dtype, contracted=2)
    if self.bias:
      y = y + self.param(
        "bias", sharding.boxed(nn.initializers.zeros, "norm"), (self.width,)
      ).astype(self.dtype)
    return y
