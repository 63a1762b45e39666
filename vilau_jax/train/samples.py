"""Pictures drawn while a model trains, so that one sees how it comes along."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vilau_jax import checkpoint, lora
from vilau_jax.data import media
from vilau_jax.train import optim
from vilau_jax.train.experiment import Experiment
from vilau_jax.train.optim import State, Tree
from vilau_jax.train.tower import normalise

SHOWN = 8
Drawer = Callable[[State, Tree, int], np.ndarray]


def check(config: ConfigDict) -> None:
  """Before a run starts: whether it can draw what log.samples_every wants.

  Raises:
    ValueError: saying why not.
  """
  if not config.log.samples_every or config.stage == "tower":
    return
  if not config.log.prompts:
    raise ValueError("log.samples_every is set, but log.prompts is empty")
  if config.lora.base:
    raise ValueError("log.samples_every must be 0 with lora.base: quantised weights do not draw")
  if jax.process_count() > 1:
    raise ValueError("log.samples_every must be 0 with several processes in stage 'lm'")


def drawer(run: Experiment, stage: Any, mesh: jax.sharding.Mesh) -> Drawer:
  """Function (state, frozen, step) -> uint8 sheet, which it also writes to samples/STEP.png."""
  make = _reconstructions if run.config.stage == "tower" else _drawings
  sheet = make(run, stage, mesh)

  def draw(state: State, frozen: Tree, step: int) -> np.ndarray:
    pixels = sheet(state, frozen)
    if jax.process_index() == 0:
      media.write_image(pixels, run.workdir / "samples" / f"{step:06}.png")
    return pixels

  return draw


def to_uint8(images: jax.Array) -> jax.Array:
  """float [-1,1] -> uint8, truncated as the reference's savers do."""
  return jnp.clip((images + 1) * 127.5, 0, 255).astype(jnp.uint8)


def _reconstructions(run: Experiment, stage: Any, mesh: jax.sharding.Mesh):
  """Rows: pictures of the training set, from their first code alone, from all of their codes."""
  images: list[np.ndarray] = []
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

  def reconstruct(params: Tree, codebook: Tree, images: jax.Array):
    variables = {"params": params, "quantizer": codebook}
    codes = stage.tower.apply(variables, normalise(images), method="encode")
    parts = (codes[..., :1], codes)
    return [to_uint8(stage.tower.apply(variables, c, method="decode_codes")) for c in parts]

  compiled = jax.jit(reconstruct, out_shardings=whole)

  def sheet(state: State, frozen: Tree) -> np.ndarray:
    if not images:
      images.append(run.dataset(0, 1, batch_size=SHOWN)[0]["image"])
    params = optim.merge({"tower": state.params["tower"]}, frozen["params"])["tower"]
    first, full = jax.device_get(compiled(params, state.collections["quantizer"], images[0]))
    return media.contact_sheet([*images[0], *first, *full], columns=SHOWN)

  return sheet


def _drawings(run: Experiment, stage: Any, mesh: jax.sharding.Mesh):
  """One drawing for each of log.prompts, with the model's own sampling defaults."""
  prompts = list(run.config.log.prompts)

  def sheet(state: State, frozen: Tree) -> np.ndarray:
    from vilau_jax import api  # generation is needed for samples only

    params = optim.merge(state.params, frozen["params"])
    if run.config.lora.rank:
      params = lora.merged(jax.device_get(params), run.config.lora)
    tower = checkpoint.load_frozen_tower(run.workdir)
    variables = {"params": params | tower["params"], "quantizer": tower["quantizer"]}
    names = (checkpoint.TOKENIZER, checkpoint.TOWER_TOKENIZER)
    files = [run.workdir / name for name in names]
    files = [str(file) if file.exists() else None for file in files]
    loaded = checkpoint.LoadedModel(run.model, variables, *files, str(run.workdir))
    drawn = api.VilaU.from_loaded(loaded).generate_images(
      prompts, cfg_scale=run.model.sampling.cfg_scale
    )
    return media.contact_sheet(list(drawn), columns=SHOWN, captions=prompts)

  return sheet
