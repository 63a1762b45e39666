"""The vision tower in use: pictures to codes and embeddings, codes to pixels, in fixed batch sizes.

Axis letters: n pictures, S image side, T visual positions, R residual depth, D embedding width.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vilau_jax.config import TowerConfig
from vilau_jax.models import quantizer
from vilau_jax.models.tower import Tower


class Vision:
  """The tower's weights on the device. Batches are padded to a few sizes, so that another number of
  pictures does not compile again.

  Attributes:
    config: of the tower.
  """

  def __init__(self, config: TowerConfig, variables: dict[str, Any], dtype: str):
    """Args: variables of the tower, {"params", "quantizer"}; the compute dtype."""
    on_cpu = jax.default_backend() == "cpu"  # XLA has no fast half precision there
    self.config = config
    self._tower = Tower(config, dtype=jnp.dtype("float32" if on_cpu else dtype))
    self._variables = jax.tree.map(jnp.asarray, variables)
    if on_cpu:
      self._variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), self._variables)
    most = at_once(config.image_size)
    self._sizes = (1, 8, most) if most > 8 else (1, most)

  def encode(self, images: np.ndarray) -> np.ndarray:
    """uint8 [n, S, S, 3] -> codes int32 [n, T, R]; batches of more than 8 are shared by this
    process's devices, except inside of jax.default_device."""
    c = self.config
    empty = np.zeros((0, c.image_tokens, c.quantizer.depth), np.int32)
    sizes = (*self._sizes, self.full_batch) if _devices() > 1 else self._sizes
    return self._run(_encode, images, empty=empty, spread=True, sizes=sizes)

  @property
  def full_batch(self) -> int:
    """Pictures that `encode` reads in one call where all devices of this process are at work."""
    return at_once(self.config.image_size) * _devices()

  @functools.cached_property
  def _everywhere(self) -> tuple[jax.sharding.NamedSharding, Any]:
    """How rows are shared by the devices of this process, and the weights on each of them."""
    devices = np.asarray(jax.local_devices())
    mesh = jax.sharding.Mesh(devices, ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return rows, jax.device_put(self._variables, whole)

  def decode(
    self, codes: np.ndarray, known: np.ndarray | None = None, floats: bool = False
  ) -> np.ndarray:
    """Codes [n, T, R'] of the first R' depths -> uint8 [n, S, S, 3], truncated as the reference.

    Pictures are decoded one by one: in another batch size a sum may be rounded otherwise, and a
    picture would depend on its company by a unit in a pixel.

    Args:
      codes: R' may be below R: a coarser picture.
      known: bool [n, T]; other positions are drawn from zeros. None knows all.
      floats: returns float32 clamped to [-1, 1] instead of uint8.

    Raises:
      ValueError: if a picture is not finite: as uint8 it would be black.
    """
    codes = np.asarray(codes, np.int32)
    known = np.ones(codes.shape[:2], bool) if known is None else known
    s = self.config.image_size
    dtype, program = (np.float32, _decode_floats) if floats else (np.uint8, _decode)
    nothing = np.zeros((0, s, s, 3), dtype), np.zeros(0, bool)
    pixels, finite = self._run(program, codes, known, empty=nothing, sizes=(1,))
    if not finite.all():
      raise ValueError(
        f"the pixels of pictures {np.flatnonzero(~finite).tolist()[:10]} are not finite (NaN or "
        "infinity): the weights of the tower's decoder are damaged, or the compute dtype overflows "
        "(try float32)"
      )
    return pixels

  def embed_images(self, images: np.ndarray) -> np.ndarray:
    """uint8 [n, S, S, 3] -> L2-normalised float32 [n, D]; the quantised features are embedded, or,
    of an imported SigLIP, which has no quantiser, the features as they are."""
    return self._run(_embed_images, images, empty=np.zeros((0, self.width), np.float32))

  def embed_texts(self, ids: np.ndarray) -> np.ndarray:
    """int32 [n, length] -> L2-normalised float32 [n, D]."""
    return self._run(_embed_texts, ids, empty=np.zeros((0, self.width), np.float32))

  @property
  def width(self) -> int:
    """D, which pictures and texts share."""
    return (self.config.vision or self.config.text).width

  def _run(
    self,
    program: Callable,
    *rows: np.ndarray,
    empty: Any,
    spread: bool = False,
    sizes: tuple[int, ...] | None = None,
  ) -> Any:
    """Arrays of the program's output for all rows; `empty` is that of no rows."""
    sizes = sizes or self._sizes
    parts, done, total = [empty], 0, len(rows[0])
    while done < total:
      size = next((s for s in sizes if s >= total - done), sizes[-1])
      here = [r[done : done + size] for r in rows]
      count = len(here[0])
      filled = [np.concatenate([h, np.repeat(h[-1:], size - count, axis=0)]) for h in here]
      variables = self._variables
      if spread and _devices() > 1 and size > 8 and size % _devices() == 0:
        share, variables = self._everywhere
        filled = [jax.device_put(f, share) for f in filled]
      made = program(self._tower, variables, *filled)
      parts.append(jax.tree.map(lambda leaf: leaf[:count], made))  # noqa: B023
      done += count
      if len(parts) > _AHEAD:  # calls are under way together, and few results wait on the device
        parts[-_AHEAD] = jax.device_get(parts[-_AHEAD])
    return jax.tree.map(lambda *some: np.concatenate(some), *jax.device_get(parts))


_AHEAD = 8  # calls


def at_once(image_size: int) -> int:
  """Pictures of a side that a device reads in one call."""
  return max(1, min(64, 2**21 // image_size**2))


def _devices() -> int:
  return jax.local_device_count() if jax.config.jax_default_device is None else 1


def _compiled(program):
  """Compiles a program of a tower. Float32 means float32 on every device: GPUs and TPUs multiply it
  in TF32 or bfloat16 unless told, and the codes would be others there."""

  @functools.partial(jax.jit, static_argnums=0)
  @functools.wraps(program)
  def run(tower: Tower, *arguments):
    whole = jnp.dtype(tower.dtype) == jnp.float32
    with jax.default_matmul_precision("highest") if whole else contextlib.nullcontext():
      return program(tower, *arguments)

  return run


@_compiled
def _encode(tower: Tower, variables, images):
  return tower.apply(variables, _to_floats(images), method="encode")


@_compiled
def _decode(tower: Tower, variables, codes, known):
  pixels = _pixels(tower, variables, codes, known)
  return to_uint8(pixels), _finite(pixels)


@_compiled
def _decode_floats(tower: Tower, variables, codes, known):
  pixels = _pixels(tower, variables, codes, known)
  return jnp.clip(pixels.astype(jnp.float32), -1, 1), _finite(pixels)


def _finite(pixels: jax.Array) -> jax.Array:
  """[n, S, S, 3] -> bool [n]."""
  return jnp.isfinite(pixels).all(axis=(1, 2, 3))


def _pixels(tower: Tower, variables, codes, known) -> jax.Array:
  z = quantizer.embed(variables["quantizer"]["codebook"], codes)
  z = jnp.where(known[..., None], z, 0)
  return tower.apply(variables, z, method="decode")


@_compiled
def _embed_images(tower: Tower, variables, images):
  images = _to_floats(images)
  if variables["quantizer"]:
    return tower.apply(variables, images)["image_embedding"]  # the rest is not computed
  features = tower.apply(variables, images, method="features")
  features = features.reshape(len(images), -1, features.shape[-1])
  return tower.apply(variables, features, method="image_embedding")


@_compiled
def _embed_texts(tower: Tower, variables, ids):
  return tower.apply(variables, ids, method="text_embedding")


def _to_floats(images: jax.Array) -> jax.Array:
  """uint8 -> float32 in [-1, 1], as the released processor does."""
  return (images.astype(jnp.float32) * np.float32(1 / 255) - 0.5) / 0.5


def to_uint8(images: jax.Array) -> jax.Array:
  """float [-1, 1] -> uint8 by clamping and truncation, not rounding."""
  return jnp.clip((images.astype(jnp.float32) + 1) * 127.5, 0, 255).astype(jnp.uint8)
