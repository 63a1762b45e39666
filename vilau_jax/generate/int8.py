"""Weights of the language model and the depth transformer in eight bits (qwix), for small devices.

A product's weight becomes int8 with one float32 scale a feature, half the bytes of bfloat16;
embeddings, norms, biases, the projector and the codebook stay as they are. Activations are not
quantised: layers/product.py multiplies them by the integers and scales the result.
"""

from typing import Any

import jax
import jax.numpy as jnp
import qwix

from vilau_jax.layers.product import contracted_axes

PARTS = ("llm", "depth")
METHODS = ("int8",)


def check(method: str | None) -> None:
  """Raises: ValueError: for an unknown method; None is none."""
  if method is not None and method not in METHODS:
    raise ValueError(f"quantize must be None or one of {METHODS}, got {method!r}")


def quantize_params(params: dict[str, Any]) -> dict[str, Any]:
  """Decoding parameters with qwix.QArray leaves; pure, so that jax.eval_shape gives the shapes of a
  quantised model for compiling ahead of time."""
  return jax.tree_util.tree_map_with_path(quantize_leaf, params)


def quantize_leaf(path: tuple[Any, ...], leaf: Any) -> Any:
  """One parameter, given its key path {component, ..., name}; as it is if it is not multiplied."""
  names = tuple(str(getattr(step, "key", step)) for step in path)
  axes = contracted_axes(names, jnp.ndim(leaf))
  if names[0] not in PARTS or not axes:
    return leaf
  features = tuple(range(axes, jnp.ndim(leaf)))
  # Scales and quotients in the leaf's own bfloat16 would be rounded twice.
  return qwix.quantize(
    jnp.asarray(leaf, jnp.float32), jnp.int8, channelwise_axes=features, scale_dtype=jnp.float32
  )
