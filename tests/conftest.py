"""Every test sees 8 fake CPU devices and full-precision products.

JAX_PLATFORMS=cuda (or tpu) runs them on what is there; those that need 8 devices are skipped then.
"""

import gc
import os
import pathlib
import signal
import sys
from importlib.metadata import version
from importlib.util import find_spec

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Every fake device blocks a thread in every collective that is under way; with a thread a device
# (XLA's choice) independent collectives of one program can wait for each other for ever.
os.environ.setdefault("NPROC", "32")

# The suite's time is XLA compiling small programs, so it compiles them badly and quickly: without
# LLVM's expensive passes, with XLA's preset for that, and with the older of its two ways of writing
# loops, which newer jaxlibs do not have (the last two: 39 -> 22 s of three tests). The quickstart
# and the notebooks compile as users do.
# A libtpu, where there is one, ends the process over flags that it does not know.
if os.environ["JAX_PLATFORMS"] == "cpu":
  os.environ["XLA_FLAGS"] = " ".join(
    [
      "--xla_backend_optimization_level=0",
      "--xla_llvm_disable_expensive_passes=true",
      "--xla_cpu_opt_preset=FAST_COMPILE" if find_spec("libtpu") is None else "",
      "--xla_cpu_use_fusion_emitters=false"
      if version("jaxlib").startswith("0.10.") and find_spec("libtpu") is None
      else "",
      os.environ.get("XLA_FLAGS", ""),
    ]
  )

import hypothesis
import jax
import pytest

# A shell that runs the tests in the background has them, and what they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The machine is shared: how long one example took says nothing.
hypothesis.settings.register_profile("vilau", deadline=None)
hypothesis.settings.load_profile("vilau")

jax.config.update("jax_num_cpu_devices", int(os.environ.get("JAX_NUM_CPU_DEVICES", 8)))
jax.config.update("jax_default_matmul_precision", "highest")


def pytest_runtest_setup(item):
  if item.get_closest_marker("mesh") and jax.device_count() < 8:
    pytest.skip("needs 8 devices")


@pytest.fixture(autouse=True, scope="module")
def programs_go_with_their_file():
  """Compiled programs of one file serve no other, and would fill the memory."""
  yield
  jax.clear_caches()
  gc.collect()


# Helpers that several rooms' tests read: golden tensors as our trees, tiny experiments, a release.
for room in ("convert", "data", "evaluate", "models", "train"):
  sys.path.insert(0, str(pathlib.Path(__file__).parent / room))
