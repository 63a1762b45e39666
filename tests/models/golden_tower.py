"""Golden towers, through the importer; and the parts of other torch trees that it does not read."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from vilau_jax import convert
from vilau_jax.checkpoint import LoadedModel
from vilau_jax.config import TowerConfig

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def arrays(name: str) -> dict[str, np.ndarray]:
  return dict(np.load(GOLDEN / name))


def assert_close(got, want, tolerance=1e-5):
  """rtol and atol, the latter relative to the largest expected value."""
  want = np.asarray(want)
  scale = max(float(np.abs(want).max()), 1e-30)
  np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * scale)


def nhwc(x: np.ndarray) -> np.ndarray:
  return np.moveaxis(x, -3, -1)


def random_variables(shapes: dict, seed: int = 1) -> dict:
  """Random values for an abstract tree, from NumPy: compiling a real initialisation takes longer
  than most tests."""
  random = np.random.default_rng(seed)

  def fill(path, leaf):
    if path[-1].key == "scale":
      return jnp.asarray(np.ones(leaf.shape, np.float32))
    bound = max(1, np.prod(leaf.shape[:-1])) ** -0.5
    if path[0].key == "quantizer":
      bound = 0.0 if path[-1].key == "cluster_size" else 1.0
    return jnp.asarray(random.uniform(-bound, bound, leaf.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(fill, shapes)


def put(tree: dict, path: str, value: np.ndarray) -> None:
  *parents, leaf = path.split("/")
  for key in parents:
    tree = tree.setdefault(key, {})
  tree[leaf] = jnp.asarray(value)


def leaf_of(name: str, value: np.ndarray) -> tuple[str, np.ndarray]:
  """A torch leaf name and tensor -> ours: kernels transposed, scales of norms."""
  if name == "bias":
    return "bias", value
  if value.ndim == 4:
    return "kernel", value.transpose(2, 3, 1, 0)
  return ("kernel", value.T) if value.ndim == 2 else ("scale", value)


def cnn_params(tensors: dict[str, np.ndarray], prefix: str) -> dict:
  """RQ-VAE encoder or decoder."""
  tree: dict = {}
  for name, value in tensors.items():
    if name.startswith(prefix):
      path = re.sub(r"\b(up|down|block|attn)\.(\d+)\.", r"\1_\2.", name.removeprefix(prefix))
      path, _, leaf = path.rpartition(".")
      leaf, value = leaf_of(leaf, value)
      put(tree, f"{path.replace('.', '/')}/{leaf}", value)
  return tree


def sub(tensors: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
  return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


@functools.cache
def release() -> LoadedModel:
  """Golden checkpoint a as the importer reads it."""
  return convert.load_checkpoint("vila-u", GOLDEN / "a" / "checkpoint")


def siglip_tower() -> tuple[TowerConfig, dict]:
  """The tower of golden checkpoint a: config and variables."""
  return release().config.tower, _tower(release())


def rqvae_tower() -> tuple[TowerConfig, dict]:
  """The golden RQ-VAE: config and variables."""
  loaded = convert.load_checkpoint("rqvae", GOLDEN / "rqvae" / "rqvae.safetensors")
  return loaded.config.tower, _tower(loaded)


def _tower(loaded: LoadedModel) -> dict:
  tower = {
    "params": loaded.variables["params"]["tower"], "quantizer": loaded.variables["quantizer"],
  }  # fmt: skip
  return jax.tree.map(jnp.asarray, tower)


def discriminator_variables(tensors: dict[str, np.ndarray], layers: int) -> dict:
  """main.{0,2,3,..} -> PatchDiscriminator's variables."""
  params: dict = {}
  stats: dict = {}
  convs = {0: "conv_0"} | {3 * i - 1: f"conv_{i}" for i in range(1, layers + 1)}
  convs[3 * layers + 2] = "conv_out"
  norms = {3 * i: f"norm_{i}" for i in range(1, layers + 1)}
  for name, value in tensors.items():
    _, index, leaf = name.split(".")
    if int(index) in convs:
      leaf, value = leaf_of(leaf, value)
      put(params, f"{convs[int(index)]}/{leaf}", value)
    elif leaf in ("weight", "bias"):
      put(params, f"{norms[int(index)]}/{leaf_of(leaf, value)[0]}", value)
    elif leaf in ("running_mean", "running_var"):
      put(stats, f"{norms[int(index)]}/{leaf.removeprefix('running_')}", value)
    elif leaf in ("loc", "scale"):
      put(stats, f"{norms[int(index)]}/{leaf}", value.reshape(-1))
      put(params, f"{norms[int(index)]}/{leaf}_offset", np.zeros(value.size, np.float32))
    elif leaf == "initialized":
      put(stats, f"{norms[int(index)]}/initialized", value.astype(bool).reshape(()))
  return {"params": params, "batch_stats": stats}
