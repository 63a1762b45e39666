"""Rotary position embeddings in the half-rotation convention of Hugging Face Llama weights."""

import jax
import jax.numpy as jnp
import numpy as np


def rotary(
  positions: jax.Array, head_dim: int, theta: float = 10_000.0, scaling: float = 1.0
) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines of the rotation angles, in float32 whatever the compute dtype.

  Args:
    positions: int32 [B, L].
    head_dim: C, even.
    theta: base of the frequencies.
    scaling: linear scaling; positions are divided by it.

  Returns:
    Two float32 [B, L, C/2]: pair j of a head turns by position / scaling * theta**(-2j/C).
  """
  exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
  frequencies = 1.0 / np.float32(theta) ** exponents  # on the host: pow is approximate on TPU
  angles = (positions.astype(jnp.float32) / scaling)[..., None] * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Turns the pairs (j, j + C/2) of every head: x [B, L, H, C], cos and sin [B, L, C/2].

  Returns:
    [B, L, H, C] in x's dtype; the rotation itself is float32.
  """
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cos, sin = cos[:, :, None], sin[:, :, None]
  turned = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)
