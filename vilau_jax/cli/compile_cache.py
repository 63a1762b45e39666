"""Where compiled programs are kept between commands."""

import os
import pathlib

DEFAULT = "auto"


def use_compile_cache(directory: str = DEFAULT) -> pathlib.Path | None:
  """Makes jax keep compiled programs, so that a second start is quick.

  After jax.distributed.initialize, as it asks for the devices.

  Args:
    directory: "auto" leaves a cache that is set already (JAX_COMPILATION_CACHE_DIR); else it is
      vilau_jax/ below $XDG_CACHE_HOME or ~/.cache, and none on a CPU: XLA's CPU loader refuses its
      own programs on some processors and has crashed on big ones. "" turns it off.

  Returns:
    The directory in use.
  """
  if not directory:
    return None
  import jax

  path = pathlib.Path(directory).expanduser()
  if directory == DEFAULT:
    if jax.config.jax_compilation_cache_dir:
      return pathlib.Path(jax.config.jax_compilation_cache_dir)
    if jax.default_backend() == "cpu":
      return None
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    path = pathlib.Path(home) / "vilau_jax"
  jax.config.update("jax_compilation_cache_dir", str(path))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  return path
