"""The stages that the chaos command disturbs, and what they must leave, bit for bit."""

import dataclasses
import hashlib
import json
import os
import pathlib
import socket
import sys
from collections.abc import Callable, Iterator

ROOT = pathlib.Path(__file__).parents[2]
VILAU = [sys.executable, "-m", "vilau_jax.cli.main"]
CONFIG = ROOT / "tests/chaos/configs.py"
SCENES = "emoji/train_scenes"


@dataclasses.dataclass(frozen=True)
class Stage:
  """One command of the pipeline.

  Attributes:
    name: also that of its log.
    commands: root -> one command line a process.
    outputs: paths below the root that belong to it alone.
    inputs: paths below the root whose shards may go bad.
    faults: the kinds it is disturbed by, see faults.py.
    digest: root -> name -> fingerprint of what must be equal.
  """

  name: str
  commands: Callable[[pathlib.Path], list[list[str]]]
  outputs: tuple[str, ...]
  inputs: tuple[str, ...]
  faults: tuple[str, ...]
  digest: Callable[[pathlib.Path], dict[str, str]]

  @property
  def watched(self) -> bool:
    """Whether the command ends itself when it hangs."""
    return self.name in ("tower", "lm", "lm2")


def _sha(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()[:16]


def _files(directory: pathlib.Path, *patterns: str) -> Iterator[pathlib.Path]:
  for pattern in patterns:
    yield from sorted(directory.rglob(pattern))


def _records(*parts: str) -> Callable[[pathlib.Path], dict[str, str]]:
  """Shards and their descriptions, byte for byte."""

  def digest(root: pathlib.Path) -> dict[str, str]:
    files = (f for p in parts for f in _files(root / p, "*.array_record", "dataset_info.json"))
    return {str(f.relative_to(root)): _sha(f.read_bytes()) for f in files}

  return digest


def _run(workdir: str) -> Callable[[pathlib.Path], dict[str, str]]:
  """Every loss of every step, all final parameters, and where the data stands."""

  def digest(root: pathlib.Path) -> dict[str, str]:
    import jax
    import numpy as np

    from vilau_jax import checkpoint
    from vilau_jax.metrics import TIMINGS

    path = root / workdir
    found = {}
    for line in (path / "metrics.jsonl").read_text().splitlines():
      values = {k: v for k, v in json.loads(line).items() if k not in TIMINGS}
      found[f"step {values['step']}"] = _sha(json.dumps(values, sort_keys=True).encode())
    variables = checkpoint.load_model(path).variables
    for key, leaf in jax.tree_util.tree_leaves_with_path(variables):
      found[jax.tree_util.keystr(key)] = _sha(np.ascontiguousarray(leaf).tobytes())
    last = max((path / "checkpoints").glob("[0-9]*"), key=lambda p: int(p.name))
    found["position"] = _sha((last / "data" / "metadata").read_bytes())
    return found

  return digest


def _evaluated(root: pathlib.Path) -> dict[str, str]:
  output = root / "scores"
  rows = sorted((output / "predictions.jsonl").read_text().splitlines())
  scores = json.loads((output / "scores.json").read_text())
  return {"predictions": _sha("\n".join(rows).encode()),
          "scores": _sha(json.dumps(scores["metrics"], sort_keys=True).encode())}  # fmt: skip


def _drawn(root: pathlib.Path) -> dict[str, str]:
  output = root / "drawn"
  lines = sorted((output / "results.jsonl").read_text().splitlines())
  found = {f.name: _sha(f.read_bytes()) for f in _files(output, "*.png")}
  return found | {"results": _sha("\n".join(lines).encode())}


def _import(root: pathlib.Path) -> list[list[str]]:
  sizes = ["--scenes=160", "--videos=16", "--test_scenes=24", "--test_videos=8"]
  return [[*VILAU, "data", "import", "emoji", f"--output={root}/data/emoji", "--size=35", *sizes]]


def _tokenize(root: pathlib.Path) -> list[list[str]]:
  return [[*VILAU, "tokenize", f"--model={root}/tower", f"--records={root}/data/{SCENES}",
           f"--output={root}/codes/{SCENES}", "--batch_size=8"]]  # fmt: skip


def _train(stage: str, workdir: str, processes: int = 1):
  def commands(root: pathlib.Path) -> list[list[str]]:
    base = [*VILAU, "train", f"--config={CONFIG}:{stage},{root}", f"--workdir={root}/{workdir}"]
    if processes == 1:
      return [base]
    with socket.socket() as free:
      free.bind(("localhost", 0))
      address = f"localhost:{free.getsockname()[1]}"
    base += ["--config.mesh.data=1", f"--config.mesh.fsdp={processes}"]
    return [[*base, f"--distributed={address},{i},{processes}"] for i in range(processes)]

  return commands


def _evaluate(root: pathlib.Path) -> list[list[str]]:
  return [[*VILAU, "evaluate", "scenes", f"--model={root}/lm", f"--data={root}/data/emoji",
           f"--output={root}/scores", "--limit=24", "--batch_size=2",
           "--max_new_tokens=8"]]  # fmt: skip


def _batch(root: pathlib.Path) -> list[list[str]]:
  prompts = root / "prompts.txt"
  prompts.write_text("a fox\ntwo cats on grass\n")
  return [[*VILAU, "generate", "batch", f"--model={root}/lm", f"--prompts={prompts}", "--num=24",
           "--batch_size=2", f"--output={root}/drawn"]]  # fmt: skip


_ALL = ("kill", "term", "child", "memory", "disk", "clock")
_TRAINING = (*_ALL, "vanish", "damage", "shard")
STAGES = (
  Stage("import", _import, ("data",), (), _ALL, _records("data")),
  Stage("tower", _train("tower", "tower"), ("tower",), (f"data/{SCENES}",), _TRAINING,
        _run("tower")),
  Stage("tokenize", _tokenize, ("codes",), (f"data/{SCENES}",), (*_ALL, "shard"),
        _records("codes")),
  Stage("lm", _train("lm", "lm"), ("lm",), (f"codes/{SCENES}",), _TRAINING, _run("lm")),
  Stage("lm2", _train("lm", "lm2", 2), ("lm2",), (f"codes/{SCENES}",), ("peer", "kill", "term"),
        _run("lm2")),
  Stage("evaluate", _evaluate, ("scores",), (), ("kill", "term", "memory", "disk", "clock"),
        _evaluated),
  Stage("batch", _batch, ("drawn",), (), ("kill", "term", "memory", "disk", "clock"), _drawn),
)  # fmt: skip


def environment(root: pathlib.Path) -> dict[str, str]:
  """Of all processes: one device, and compiled programs kept between them, since most of a short
  run is compiling, where a blow does no harm."""
  paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
  fixed = {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "1",
    "JAX_COMPILATION_CACHE_DIR": str(root / "programs"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
  }
  return os.environ | fixed | {"PYTHONPATH": os.pathsep.join(p for p in paths if p)}
