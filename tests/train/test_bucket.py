"""A run whose workdir is a bucket: saved, gone on with, and loaded, over Cloud Storage's interface.

Wants gcsfs and the package gcp-storage-emulator, which .ci/nightly installs.
"""

import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
MISSING = [n for n in ("gcsfs", "gcp_storage_emulator") if importlib.util.find_spec(n) is None]
pytestmark = [
  pytest.mark.nightly,
  pytest.mark.skipif(bool(MISSING), reason=f"needs {MISSING}"),
]
SERVE = """
import sys
from gcp_storage_emulator.server import create_server
create_server("127.0.0.1", int(sys.argv[1]), in_memory=True, default_bucket="bucket").run()
"""
# The emulator knows no request that moves an object, which newer gcsfs makes.
RUN = """
import sys
import gcsfs
from vilau_jax.cli import main

async def move(self, source, target, **kwargs):
  await self._cp_file(source, target)
  await self._rm_file(source)

gcsfs.GCSFileSystem._mv_file = move
sys.exit(main.run(sys.argv[1:]))
"""
LOOK = """
import json
import vilau_jax
from etils import epath
run = epath.Path("gs://bucket/run")
steps = [json.loads(x)["step"] for x in (run / "metrics.jsonl").read_text().splitlines()]
shown = sorted(p.name for p in (run / "samples").iterdir())
model = vilau_jax.load("gs://bucket/run")
print(json.dumps([steps, shown, model.embed_texts(["a fox"]).shape[0]]))
"""


@pytest.fixture
def bucket():
  """The environment of processes that find gs://bucket on this machine."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  server = subprocess.Popen([sys.executable, "-c", SERVE, str(port)])
  while socket.socket().connect_ex(("127.0.0.1", port)):
    assert server.poll() is None
    time.sleep(0.1)
  names = ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT")
  here = dict.fromkeys(names, f"http://127.0.0.1:{port}")
  here |= dict(GCE_METADATA_HOST="127.0.0.1:1", NO_GCE_CHECK="true", JAX_NUM_CPU_DEVICES="1")
  yield (
    os.environ
    | here
    | dict(PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
  )
  server.kill()
  server.wait()


def test_a_workdir_in_a_bucket(bucket, tmp_path):
  def run(code, *argv):
    done = subprocess.run(
      [sys.executable, "-c", code, *argv], env=bucket, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

  few = ("--scenes=60", "--videos=8", "--test_scenes=8", "--test_videos=4")
  run(RUN, "data", "import", "emoji", f"--output={tmp_path / 'data' / 'emoji'}", *few)
  config = f"--config={ROOT / 'tests' / 'chaos' / 'configs.py'}:tower,{tmp_path}"
  for steps in (4, 6):
    told = (f"--config.steps={steps}", "--config.log.samples_every=2")
    run(RUN, "train", config, "--workdir=gs://bucket/run", *told)
  steps, shown, embedded = json.loads(run(LOOK).splitlines()[-1])
  assert steps == [1, 2, 3, 4, 5, 6] and embedded == 1
  assert shown == ["000002.png", "000004.png", "000006.png"]
  assert not list(tmp_path.glob("gs:*"))
