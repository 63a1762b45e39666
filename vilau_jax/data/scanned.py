"""What one look at all records found, kept in the workdir: a run that goes on need not look again.

A file's name is a hash of everything that its content depends on; the zip inside carries checksums,
and one that is damaged or of something else counts as absent.
"""

import hashlib
import io
import json
import os
import zipfile
from typing import Any

import numpy as np
from etils import epath

from vilau_jax.data.records import INFO, Records

VERSION = 1  # of how records are looked at


def load(directory: epath.PathLike | None, records: Records, facts: Any) -> np.ndarray | None:
  """What `save` kept of these records under these facts; None if nothing.

  Args:
    directory: None keeps nothing.
    records: the data set.
    facts: all else that the array depends on, as JSON.
  """
  file = directory and epath.Path(directory) / _name(records, facts)
  if not file or not file.exists():
    return None
  try:
    with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as stored:
      array = stored["found"]
  except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
    return None
  return array if len(array) == len(records) else None


def save(directory: epath.PathLike | None, records: Records, facts: Any, array: np.ndarray) -> None:
  """Keeps `array`, one row a record. Processes may do so at once: they write the same."""
  if not directory:
    return
  directory = epath.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  data = io.BytesIO()
  np.savez(data, found=array)
  name = _name(records, facts)
  partial = directory / f"{name}.{os.uname().nodename}-{os.getpid()}.partial"
  partial.write_bytes(data.getvalue())
  partial.replace(directory / name)


def _name(records: Records, facts: Any) -> str:
  digest = hashlib.sha256((records.path / INFO).read_bytes())
  stats = [(records.path / shard).stat() for shard in records.shards]
  state = [(s.length, str(s.mtime)) for s in stats]  # other files are looked at again
  digest.update(json.dumps([VERSION, facts, state], sort_keys=True).encode())
  return f"{records.name}-{digest.hexdigest()[:16]}.npz"
