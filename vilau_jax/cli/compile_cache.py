"""Where compiled programs are kept between commands."""

import hashlib
import os
import pathlib

DEFAULT = "auto"


def use_compile_cache(directory: str = DEFAULT) -> pathlib.Path | None:
  """Makes jax keep compiled programs, so that a second start is quick.

  Args:
    directory: "auto" leaves a cache that is set already (JAX_COMPILATION_CACHE_DIR); else it is
      vilau_jax/ below $XDG_CACHE_HOME or ~/.cache, apart for every kind of processor, as programs
      for one may not run on another. "" turns it off.

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
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    path = pathlib.Path(home) / "vilau_jax" / _processor()
  jax.config.update("jax_compilation_cache_dir", str(path))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  return path


def _processor() -> str:
  """Short name for what this machine's processor can do."""
  cpuinfo = pathlib.Path("/proc/cpuinfo")
  lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
  abilities = next((x for x in lines if x.startswith(("flags", "Features"))), "")
  return hashlib.sha256(f"{os.uname().machine} {abilities}".encode()).hexdigest()[:12]
