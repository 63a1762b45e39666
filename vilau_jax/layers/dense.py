"""Dense and embedding layers whose parameters carry logical axis names."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vilau_jax import sharding

LECUN = nn.initializers.lecun_normal()


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
    logits = jnp.matmul(self.x, self.kernel, preferred_element_type=jnp.float32)
    return (logits if self.bias is None else logits + self.bias)[..., : self.size]


def dense(
  features: int,
  axes: tuple[str, str],
  name: str,
  *,
  dtype: jnp.dtype,
  bias: bool = True,
  init: nn.initializers.Initializer = LECUN,
) -> nn.Dense:
  """Projection with kernel [in, out]; parameters float32, compute in `dtype`."""
  return nn.Dense(
    features,
    use_bias=bias,
    dtype=dtype,
    param_dtype=jnp.float32,
    kernel_init=sharding.boxed(init, *axes),
    bias_init=sharding.boxed(nn.initializers.zeros, axes[1]),
    name=name,
  )


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
    y = jnp.einsum("...d,dhc->...hc", x.astype(self.dtype), kernel.astype(self.dtype))
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
    # One product over H * C: over two axes, the CPU backend copies the kernel at every step.
    x = x.astype(self.dtype).reshape(*x.shape[:-2], heads * head_dim)
    # jnp.dot, not @: that is what adapters attach to (lora.py).
    y = jnp.dot(x, kernel.astype(self.dtype).reshape(heads * head_dim, self.width))
    if self.bias:
      y = y + self.param(
        "bias", sharding.boxed(nn.initializers.zeros, "norm"), (self.width,)
      ).astype(self.dtype)
    return y
