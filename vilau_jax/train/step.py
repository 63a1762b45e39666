"""A stage's compiled step and its arguments, from a config, a model and a mesh alone.

The loop runs it and `vilau plan` compiles it for machines that are not there: it is one program.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from vilau_jax import sharding
from vilau_jax.config import VilaUConfig
from vilau_jax.models.perceptual import Lpips
from vilau_jax.train.lm import LmStage
from vilau_jax.train.optim import State, Tree
from vilau_jax.train.tower import TowerStage

STAGES = {"tower": TowerStage, "lm": LmStage}


def make_stage(config: ConfigDict, model: VilaUConfig) -> Any:
  """The stage that config.stage names."""
  return STAGES[config.stage](config, model)


def planned_model(config: ConfigDict) -> VilaUConfig:
  """The architecture a run of `config` has, without its data: vocabularies that a tokenizer decides
  get the size that config asks of it."""
  model = VilaUConfig.from_preset(**config.model.to_dict())
  size = config.data.tokenizer_size or 32_000
  tower, llm = model.tower, model.llm
  if tower is not None and tower.text is not None and not tower.text.vocab_size:
    text = dataclasses.replace(tower.text, vocab_size=size)
    model = dataclasses.replace(model, tower=dataclasses.replace(tower, text=text))
  if llm is not None and not llm.vocab_size:
    model = dataclasses.replace(model, llm=dataclasses.replace(llm, vocab_size=size))
  return dataclasses.replace(model, llm=None, depth=None) if config.stage == "tower" else model


def abstract_state(stage: Any, mesh: Mesh) -> tuple[State, Tree]:
  """Shapes, dtypes and shardings of state and frozen variables, the latter without "lpips".

  Raises:
    ValueError: if the mesh does not divide a parameter.
  """
  return _placed(jax.eval_shape(stage.init, jax.random.key(0)), mesh)


def abstract_lpips(mesh: Mesh, widths: tuple[int, ...] = Lpips.widths) -> Tree:
  """The same of LPIPS: its variables are shared out like all others."""
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  return _placed(jax.eval_shape(Lpips(widths).init, jax.random.key(0), images, images), mesh)


def check_rows(config: ConfigDict, mesh: Mesh) -> None:
  """Checks that every device gets as many rows as every other, in every piece of a batch.

  Raises:
    ValueError: if the mesh does not divide the rows: all devices would compute all of them.
  """
  ways, pieces = mesh.shape["data"] * mesh.shape["fsdp"], config.optim.accumulate
  if config.batch_size % (ways * pieces):
    by = f" x optim.accumulate = {ways} x {pieces}" if pieces > 1 else f" = {ways}"
    raise ValueError(f"batch_size {config.batch_size} is not a multiple of mesh data x fsdp{by}")


def abstract_batch(config: ConfigDict, model: VilaUConfig, mesh: Mesh) -> Tree:
  """The same of a global batch.

  Raises:
    ValueError: if the mesh does not divide the rows.
  """
  rows, where = config.batch_size, sharding.batch_sharding(mesh)
  check_rows(config, mesh)

  def leaf(dtype, *shape):
    return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=where)

  if config.stage == "tower":
    side = model.tower.image_size
    batch = {"image": leaf(jnp.uint8, side, side, 3)}
    if config.loss.contrastive:
      batch["text"] = leaf(jnp.int32, model.tower.text.length)
      batch["caption_id"] = leaf(jnp.int32)
    if config.loss.wrong_captions:
      batch["wrong_text"] = leaf(jnp.int32, model.tower.text.length)
      batch["has_wrong"] = leaf(jnp.bool_)
    return batch
  row, depth = config.data.row, model.tower.quantizer.depth
  names = ("tokens", "segment_ids", "positions", "text_target")
  names += ("branches",) if config.data.independent_turns else ()
  batch = {name: leaf(jnp.int32, row.length) for name in names}
  batch["visual_position"] = leaf(jnp.int32, row.slots)
  batch["visual_target"] = leaf(jnp.bool_, row.slots)
  batch["codes"] = leaf(jnp.uint16, row.slots, depth)
  return batch


def abstract_arguments(
  config: ConfigDict, model: VilaUConfig, stage: Any, mesh: Mesh
) -> tuple[State, Tree, Tree, jax.ShapeDtypeStruct]:
  """All four arguments of `compiled_step`'s function: state, frozen, batch, key."""
  state, frozen = abstract_state(stage, mesh)
  if config.stage == "tower" and config.loss.lpips:
    frozen = frozen | {"lpips": abstract_lpips(mesh)}
  whole = NamedSharding(mesh, PartitionSpec())
  key = jax.eval_shape(lambda: jax.random.key(0))
  key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole)
  return state, frozen, abstract_batch(config, model, mesh), key


def compiled_step(stage: Any, state: State) -> Any:
  """The jitted step; the old state's memory becomes the new one's. `state` may be abstract."""
  placed = jax.tree.map(lambda x: x.sharding, state)
  return jax.jit(stage.step, donate_argnames=("state",), out_shardings=(placed, None))


def _placed(boxed: Any, mesh: Mesh) -> Any:
  return jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
    unboxed(boxed),
    sharding.state_shardings(boxed, mesh),
  )


def unboxed(tree: Any) -> Any:  # nn.unbox refuses abstract leaves under a mesh
  box = nn.LogicallyPartitioned
  return jax.tree.map(
    lambda x: x.value if isinstance(x, box) else x, tree, is_leaf=lambda x: isinstance(x, box)
  )
