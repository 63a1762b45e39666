"""vilau_jax: VILA-U in JAX. Public names are imported when they are first used."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from vilau_jax.api import Cancelled, Image, Video, VilaU, load
  from vilau_jax.config import VilaUConfig

__version__ = "0.1.0"

_PUBLIC = {
  "load": "vilau_jax.api",
  "VilaU": "vilau_jax.api",
  "Image": "vilau_jax.api",
  "Video": "vilau_jax.api",
  "Cancelled": "vilau_jax.api",
  "VilaUConfig": "vilau_jax.config",
}
__all__ = ["Cancelled", "Image", "Video", "VilaU", "VilaUConfig", "load"]


def __getattr__(name: str):
  if name not in _PUBLIC:
    raise AttributeError(f"module 'vilau_jax' has no attribute {name!r}")
  return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
  return sorted([*globals(), *_PUBLIC])
