"""One run a workdir: a second one is refused, and a crash leaves nothing that has to be removed.

On one machine the kernel holds the lock (flock), and drops it with the process however that dies.
Between machines that share a file system a beat tells: the holder rewrites its file every few
seconds, and whoever comes from elsewhere watches for a while whether the file changes. No clock is
compared, so neither a clock that is wrong nor one that jumps matters.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

NAME = "run.lock"
BEAT, PATIENCE = 5.0, 20.0  # seconds between beats, and until a silent holder counts as dead


@contextlib.contextmanager
def only_run(
  workdir: epath.PathLike, beat: float = BEAT, patience: float = PATIENCE
) -> Iterator[None]:
  """Holds the workdir for the block; process 0 does so for the whole job.

  Args:
    workdir: exists, and no other run may be in it.
    beat: seconds between signs of life.
    patience: seconds without one after which a holder on another machine counts as dead.

  Raises:
    ValueError: if another run holds it; says which.
  """
  lock, refusal = None, ""
  if jax.process_index() == 0:
    try:
      lock = _Lock(epath.Path(workdir), beat, patience)
    except ValueError as error:
      refusal = str(error)
  if jax.process_count() > 1:
    refused = multihost_utils.broadcast_one_to_all(np.array(bool(refusal)))
    if refused and not refusal:
      refusal = f"workdir {workdir} is in use; process 0 says by whom"
  if refusal:
    raise ValueError(refusal)
  try:
    yield
  finally:
    if lock is not None:
      lock.release()


class _Lock:
  def __init__(self, workdir: epath.Path, beat: float, patience: float):
    self._path, self._beat = workdir / NAME, beat
    self._file = None
    local = not str(workdir).startswith(("gs://", "s3://"))
    if local:
      self._file = os.open(os.fspath(self._path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
      try:
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        os.close(self._file)
        raise ValueError(self._refusal(self._read())) from error
      except OSError:  # some shared file systems know no locks: as in a bucket, beats must do
        os.close(self._file)
        self._file, local = None, False
    holder = self._read()
    if holder and not (local and holder.get("machine") == _machine()) and not holder.get("ended"):
      self._watch(holder, beat, patience)
    self._count, self._ended = 0, threading.Event()
    self._write()
    self._thread = threading.Thread(target=self._keep_beating, daemon=True, name="run.lock")
    self._thread.start()

  def release(self) -> None:
    self._ended.set()
    self._thread.join()
    self._write(ended=True)
    if self._file is not None:
      os.close(self._file)

  def _watch(self, holder: dict, beat: float, patience: float) -> None:
    until = time.monotonic() + patience
    while time.monotonic() < until:
      time.sleep(min(beat / 2, patience / 4))
      if self._read() != holder:
        if self._file is not None:
          os.close(self._file)
        raise ValueError(self._refusal(holder))

  def _refusal(self, holder: dict) -> str:
    who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
    return (
      f"workdir {self._path.parent} is in use by another run ({who}); wait for it or stop it, or "
      "give another --workdir"
    )

  def _keep_beating(self) -> None:
    while not self._ended.wait(self._beat):
      with contextlib.suppress(OSError):  # a full or vanished disk is for the checkpoints to report
        self._write()

  def _write(self, ended: bool = False) -> None:
    self._count += 1
    holder = {"machine": _machine(), "host": socket.gethostname(), "pid": os.getpid(),
              "beat": self._count, "ended": ended}  # fmt: skip
    data = json.dumps(holder).ljust(300).encode() + b"\n"
    if self._file is None:
      self._path.write_bytes(data)
    else:  # in place: a new file would not carry the lock
      os.pwrite(self._file, data, 0)

  def _read(self) -> dict:
    """Who holds it; {} if nobody ever did. Half a line counts as somebody."""
    try:
      text = self._path.read_text()
      return json.loads(text) if text.strip() else {}
    except FileNotFoundError:
      return {}
    except ValueError:
      return {"text": text}


def _machine() -> str:
  """Names this start of this machine: process numbers and flocks mean something here only."""
  boot = pathlib.Path("/proc/sys/kernel/random/boot_id")
  return boot.read_text().strip() if boot.exists() else socket.gethostname()
