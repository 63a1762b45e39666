"""Weights that a run starts from: what config.init_from names, and the two kinds of tables that may
have another size there, the vocabulary's and the positions'.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from vilau_jax import checkpoint, lora
from vilau_jax.config import VilaUConfig
from vilau_jax.data.tokenizer import ADDED
from vilau_jax.models import quantizer

# What init_from may name -> the variables it loads; what holds others goes before them.
COMPONENTS = {
  "whole": ("params", "quantizer"),
  "tower": ("params/tower", "quantizer"),
  "siglip": (
    "params/tower/vision",
    "params/tower/text",
    "params/tower/logit_scale",
    "params/tower/logit_bias",
  ),
  "vision": ("params/tower/vision",),
  "text": ("params/tower/text",),
  "encoder": ("params/tower/encoder", "params/tower/quant"),
  "decoder": ("params/tower/decoder", "params/tower/post_quant"),
  "llm": ("params/llm",),
  "projector": ("params/projector",),
  "depth": ("params/depth",),
  "visual_positions": ("params/visual_positions",),
}
# Variables -> the section of the config that says what they compute.
_SECTIONS = {
  "params/llm": "llm",
  "params/depth": "depth",
  "params/tower/vision": "tower.vision",
  "params/tower/text": "tower.text",
  "params/tower/encoder": "tower.cnn",
  "params/tower/decoder": "tower.decoder",
}
_SUMS = ("quantizer", "embed_sum")
# Fields that change what weights of the same shapes compute.
_SILENT = ("eps", "rope_theta", "groups")
Key = tuple[str, ...]
Adapt = Callable[[np.ndarray], np.ndarray]


def in_order(init_from: Mapping[str, Any]) -> list[tuple[str, Any]]:
  """Its entries, a part behind the whole that holds it, so that the part's weights are kept."""
  order = list(COMPONENTS)
  return sorted(init_from.items(), key=lambda item: item[0] in order and order.index(item[0]))


def load(
  component: str,
  directory: epath.PathLike,
  model: VilaUConfig,
  wanted: Mapping[Key, Any],
  stage: str,
) -> dict[Key, jax.Array]:
  """The variables of a component, placed and typed as `wanted` says.

  A language model without the four added tokens gets rows for them; rows that pad the vocabulary
  come and go; position embeddings of pictures of another size are interpolated. Moving averages of
  the codebook that are stored in half precision are made anew from its counts.

  Args:
    component: key of COMPONENTS.
    directory: model directory or workdir.
    model: the architecture that starts.
    wanted: variable -> jax.ShapeDtypeStruct with its sharding; those of other components are left
      out.
    stage: for messages.

  Raises:
    ValueError: for an unknown component, one that the run does not have, weights of another shape,
      or weights that compute something else in this model.
  """
  if component not in COMPONENTS:
    raise ValueError(f"init_from: unknown component {component!r}; known: {sorted(COMPONENTS)}")
  prefixes = [tuple(p.split("/")) for p in COMPONENTS[component]]
  part = {k: v for k, v in wanted.items() if any(k[: len(p)] == p for p in prefixes)}
  part = {k: v for k, v in part.items() if not lora.is_adapter(k)}  # those always start fresh
  if not part:
    raise ValueError(f"init_from.{component}: stage {stage!r} has no such part")
  stored = checkpoint.model_config(directory)
  _check_function(f"init_from.{component} {directory}", stored, model, part)
  adapted = _adaptations(stored, model, part)
  plain = traverse_util.unflatten_dict({k: v for k, v in part.items() if k not in adapted})
  values = traverse_util.flatten_dict(checkpoint.load_variables(directory, plain))
  arrays = checkpoint.open_arrays(directory) if adapted else {}
  for key, adapt in adapted.items():
    if key not in arrays:
      raise ValueError(f"{directory} does not fit this model:\n  {'/'.join(key)}: missing")
    value = adapt(arrays[key].read()).astype(part[key].dtype)
    if value.shape != part[key].shape:
      raise ValueError(f"{directory} does not fit this model:\n  {'/'.join(key)}: "
                       f"{arrays[key].shape} there, {part[key].shape} wanted")  # fmt: skip
    values[key] = jax.make_array_from_callback(value.shape, part[key].sharding, value.__getitem__)
  if _SUMS in values and checkpoint.open_arrays(directory)[_SUMS].dtype.itemsize == 2:
    state = {k[1]: v for k, v in values.items() if k[0] == "quantizer"}
    sums = quantizer.matching_sums(model.tower.quantizer, state)
    values[_SUMS] = jax.device_put(sums, part[_SUMS].sharding)
  return values


def _check_function(where: str, stored: VilaUConfig, model: VilaUConfig, part: Any) -> None:
  """Refuses weights that would silently compute something else here."""
  differing = []
  for prefix, section in _SECTIONS.items():
    head = tuple(prefix.split("/"))
    if not any(k[: len(head)] == head for k in part):
      continue
    there, here = (functools.reduce(getattr, section.split("."), c) for c in (stored, model))
    for field in _SILENT if there is not None and here is not None else ():
      values = [getattr(c, field, None) for c in (there, here)]
      if values[0] != values[1]:
        differing.append(f"{section}.{field}: {values[0]!r} there, {values[1]!r} here")
  if any(k[:2] in (("params", "projector"), ("params", "depth")) for k in part):
    if stored.code_scale != model.code_scale:
      differing.append(f"code_scale: {stored.code_scale!r} there, {model.code_scale!r} here")
  if differing:
    raise ValueError(f"{where} computes something else with these weights:\n  "
                     + "\n  ".join(differing) + "\nset the fields with config.model")  # fmt: skip


def _adaptations(stored: VilaUConfig, model: VilaUConfig, part: Any) -> dict[Key, Adapt]:
  """Variables that need another size -> how they get it."""
  rules: dict[Key, Adapt] = {}
  if stored.llm is not None and model.llm is not None:
    known, size, rows = stored.llm.vocab_size, model.llm.vocab_size, model.llm.padded_vocab
    if (known, stored.llm.padded_vocab) != (size, rows):
      for name, axis in (("embed_tokens", 0), ("lm_head", 1)):
        rules["params", "llm", name] = functools.partial(
          fit_vocabulary, known=known, size=size, rows=rows, axis=axis
        )
  towers = [c.tower.vision if c.tower is not None else None for c in (stored, model)]
  if None not in towers and towers[0].grid != towers[1].grid:
    for name in (("embed", "position"), ("pool_position",)):
      rules["params", "tower", "vision", *name] = functools.partial(
        resize_positions, side=towers[1].grid
      )
  return {k: rule for k, rule in rules.items() if k in part}


def fit_vocabulary(
  table: np.ndarray, known: int, size: int, rows: int, axis: int = 0
) -> np.ndarray:
  """A table over the vocabulary for `size` ids in `rows` rows, float32.

  Rows of the four added tokens are the mean of all earlier ones (VILA-U's own rule); what pads the
  table is zero.

  Args:
    table: [>= known, D], or [D, >= known] with axis 1.
    known: ids of the table.
    size: ids wanted: `known`, or four more.
    rows: of the result, at least `size`.

  Raises:
    ValueError: for other sizes: then the ids do not mean the same words.
  """
  if size - known not in (0, len(ADDED)):
    raise ValueError(
      f"the language model there has {known} ids, {size} are wanted: only the {len(ADDED)} added "
      f"tokens ({', '.join(ADDED)}) can be new; is it the right tokenizer?"
    )
  table = np.moveaxis(table, axis, 0)[:known].astype(np.float32)
  fitted = np.zeros((rows, table.shape[1]), np.float32)
  fitted[:known] = table
  fitted[known:size] = table.mean(axis=0, dtype=np.float64)
  return np.ascontiguousarray(np.moveaxis(fitted, 0, axis))


def resize_positions(table: np.ndarray, side: int) -> np.ndarray:
  """Position embeddings of a square grid, row-major, for another one: [g * g, D] -> [side**2, D].

  Bicubic with half-pixel centres and no antialiasing, as transformers interpolates SigLIP's.
  """
  grid = round(len(table) ** 0.5)
  weights = _bicubic(grid, side)
  square = table.astype(np.float64).reshape(grid, grid, -1)
  return np.einsum("yi,xj,ijd->yxd", weights, weights, square).reshape(side**2, -1)


def _bicubic(old: int, new: int) -> np.ndarray:
  """[new, old]: weights of the old places at every new one (Keys' kernel with a = -0.75; places
  beyond the edge repeat it)."""
  a, weights = -0.75, np.zeros((new, old))
  centres = (np.arange(new) + 0.5) * old / new - 0.5
  first = np.floor(centres).astype(int)
  for tap in range(-1, 3):
    t = np.abs(centres - (first + tap))
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * (t**3 - 5 * t**2 + 8 * t - 4)
    place = np.clip(first + tap, 0, old - 1)
    np.add.at(weights, (np.arange(new), place), np.where(t <= 1, near, far))
  return weights
