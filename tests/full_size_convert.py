"""Imports and exports a VILA-U-7B release of full size, and measures both.

  python -m tests.full_size_convert --directory=DIR [--keep]

Writes a release with the names, shapes and dtype (bfloat16) of mit-han-lab/vila-u-7b-256 (three llm
shards, tower, projector, configs, tokenizer; the values are made up), imports it, exports it again
and compares every tensor of the two by SHA-256. Prints seconds and peak resident memory of each
step; exit code 1 if import or export needs more than 6 GiB or 10 minutes, or if a bit differs. DIR
needs 33 GB (50 with --keep); not part of the default tests.
"""

import argparse
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import zlib

import numpy as np
from sentencepiece import sentencepiece_model_pb2

SHAPES = pathlib.Path(__file__).parent / "golden" / "shapes"
ROOT = pathlib.Path(__file__).parents[1]
SHARD_BYTES = 5 * 10**9
MOST_MEMORY, MOST_SECONDS = 6 * 2**30, 600.0
POOL = 33_554_393  # values drawn once; prime, so that no two tensors line up
Shapes = dict[str, list[int]]


def write_release(folder: pathlib.Path) -> None:
  """The whole release, a tensor at a time."""
  llama = json.loads((SHAPES / "llama-2-7b.shapes.json").read_text())
  vila_u = json.loads((SHAPES / "vila-u-7b-256.shapes.json").read_text())
  pool = _pool()
  write_tensors(folder / "llm", llama["shapes"], pool)
  for name in ("vision_tower", "mm_projector"):
    write_tensors(folder / name, vila_u["shapes"][name], pool)
  write_configs(folder, llama["config"], vila_u["config"])
  write_tokenizer(folder / "llm" / "tokenizer.model", llama["config"]["vocab_size"] - 4)


def write_tensors(folder: pathlib.Path, shapes: Shapes, pool: np.ndarray) -> None:
  """model.safetensors, or shards and their index where they are larger than SHARD_BYTES."""
  folder.mkdir(parents=True)
  shards: list[Shapes] = [{}]
  size = 0
  for name, shape in shapes.items():
    size += _bytes({name: shape})
    if size > SHARD_BYTES:
      shards.append({})
      size = _bytes({name: shape})
    shards[-1][name] = shape
  weight_map = {}
  for i, shard in enumerate(shards):
    file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
    file = file if len(shards) > 1 else "model.safetensors"
    weight_map |= dict.fromkeys(shard, file)
    with open(folder / file, "wb") as stream:
      stream.write(_header(shard))
      for name, shape in shard.items():
        stream.writelines(_values(name, shape, pool))
  if len(shards) > 1:
    index = {"metadata": {"total_size": _bytes(shapes)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _bytes(shapes: Shapes) -> int:
  return sum(2 * int(np.prod(shape)) for shape in shapes.values())


def _header(shapes: Shapes) -> bytes:
  entries, at = {"__metadata__": {"format": "pt"}}, 0
  for name, shape in shapes.items():
    end = at + _bytes({name: shape})
    entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
    at = end
  text = json.dumps(entries).encode()
  return len(text).to_bytes(8, "little") + text


def _pool() -> np.ndarray:
  """Finite bfloat16 values of sizes from 2^-15 to 1, as their 16 bits."""
  bits = np.random.default_rng(0).integers(0, 2**16, POOL, np.uint16)
  return (bits & 0x87FF) + np.uint16(0x3800)


def _values(name: str, shape: list[int], pool: np.ndarray):
  """A tensor in pieces: a stretch of the pool that its name picks. Copies of one tensor (shared
  codebooks, aliased scalars) get the same one; the last row of a codebook is zero."""
  parts = name.split(".")
  if "codebooks" in parts:
    parts[parts.index("codebooks") + 1] = "0"
  same = parts[-1] if parts[-1] in ("logit_scale", "logit_bias") else ".".join(parts)
  left, at = int(np.prod(shape)), zlib.crc32(same.encode()) % POOL
  zeros = shape[1] if same.endswith("codebooks.0.weight") else 0
  left -= zeros
  while left:
    piece = pool[at : at + left]
    yield piece.data
    left, at = left - len(piece), 0
  yield bytes(2 * zeros)


def write_configs(folder: pathlib.Path, llama: dict, tower: dict) -> None:
  """config.json, and one for each part, with what transformers 4.36 writes beside the sizes."""
  common = {"torch_dtype": "bfloat16", "transformers_version": "4.36.2"}
  llm = {k: v for k, v in llama.items() if k != "note"} | common | {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
    "model_max_length": 8192, "tokenizer_model_max_length": 8192, "tokenizer_padding_side": "right",
  }  # fmt: skip
  inner = {name: tower[name] | {"model_type": f"{name}_model"} for name in
           ("rqvaesiglip", "rqtransformer")}  # fmt: skip
  vision = inner | common | {
    "architectures": ["RQVAESIGLIPTransformer"], "model_type": "rqvaesigliptransformer_model",
    "hidden_size": tower["hidden_size"],
  }  # fmt: skip
  projector = common | {
    "architectures": ["MultimodalProjector"], "model_type": "v2l_projector",
    "mm_projector_type": "mlp2x_gelu",
  }  # fmt: skip
  top = {
    "architectures": ["VILAULlamaModel"], "model_type": "vila_u_llama",
    "model_dtype": "torch.bfloat16", "hidden_size": llm["hidden_size"],
    "mm_hidden_size": tower["hidden_size"], "image_aspect_ratio": "resize", "num_video_frames": 8,
    "mm_use_im_start_end": True, "mm_use_vi_start_end": True, "mm_use_im_patch_token": False,
    "mm_vision_select_layer": -2, "resume_path": "", "llm_cfg": llm, "vision_tower_cfg": vision,
    "mm_projector_cfg": projector,
  }  # fmt: skip
  for name, value in (
    ("", top), ("llm", llm), ("vision_tower", vision), ("mm_projector", projector),
  ):  # fmt: skip
    (folder / name / "config.json").write_text(json.dumps(value, indent=2))


def write_tokenizer(path: pathlib.Path, pieces: int) -> None:
  """A sentencepiece model with Llama's layout: unk, bos, eos, bytes, and words."""
  model = sentencepiece_model_pb2.ModelProto()
  kind = sentencepiece_model_pb2.ModelProto.SentencePiece
  for i in range(pieces):
    if i < 3:
      piece = kind(piece=("<unk>", "<s>", "</s>")[i], type=kind.CONTROL if i else kind.UNKNOWN)
    elif i < 259:
      piece = kind(piece=f"<0x{i - 3:02X}>", type=kind.BYTE)
    else:
      piece = kind(piece=f"\u2581w{i}", score=-float(i))
    model.pieces.append(piece)
  model.trainer_spec.model_type, model.trainer_spec.byte_fallback = 2, True
  model.normalizer_spec.name = "identity"
  path.write_bytes(model.SerializeToString())


def measured(*arguments: str) -> tuple[float, int]:
  """Runs a `vilau` command; its seconds and peak resident memory in bytes."""
  command = [sys.executable, "-m", "vilau_jax.cli.main", *arguments]
  print("+ vilau", *arguments, flush=True)
  began = time.monotonic()
  process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"})
  _, status, usage = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  if process.returncode:
    raise subprocess.CalledProcessError(process.returncode, command)
  return time.monotonic() - began, usage.ru_maxrss * 1024


def hashes(folder: pathlib.Path) -> dict[str, str]:
  """Part and name of every tensor -> kind, shape and SHA-256."""
  found = {}
  for file in sorted(folder.glob("*/*.safetensors")):
    with open(file, "rb") as stream:
      header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
      begin = stream.tell()
      for name, entry in header.items():
        if name == "__metadata__":
          continue
        first, end = entry["data_offsets"]
        stream.seek(begin + first)
        digest, left = hashlib.sha256(), end - first
        while left:
          part = stream.read(min(left, 2**24))
          digest.update(part)
          left -= len(part)
        key = f"{file.parent.name}/{name}"
        found[key] = f"{entry['dtype']} {entry['shape']} {digest.hexdigest()}"
  return found


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--directory", type=pathlib.Path, required=True, help="a new one, for 33 GB")
  parser.add_argument("--keep", action="store_true", help="leave what was written there")
  options = parser.parse_args()
  options.directory.mkdir(parents=True)
  source, model, again = (options.directory / n for n in ("release", "model", "exported"))
  try:
    began = time.monotonic()
    write_release(source)
    print(f"wrote {source} in {time.monotonic() - began:.0f} s", flush=True)
    steps, before = {}, hashes(source)
    steps["import"] = measured(
      "convert", "import", "vila-u", f"--source={source}", f"--output={model}"
    )
    if not options.keep:
      shutil.rmtree(source)
    steps["export"] = measured(
      "convert", "export", "vila-u", f"--model={model}", f"--output={again}"
    )
    after = hashes(again)
  finally:
    if not options.keep:
      shutil.rmtree(options.directory)
  wrong = [f"{name}: differs" for name in sorted(before.keys() | after.keys())
           if before.get(name) != after.get(name)]  # fmt: skip
  print(f"{len(before)} tensors before, {len(after)} after, {len(wrong)} differ", *wrong[:20],
        sep="\n  ")  # fmt: skip
  for name, (seconds, memory) in steps.items():
    print(f"{name}: {seconds:.0f} s, peak {memory / 2**30:.2f} GiB resident")
    if seconds > MOST_SECONDS or memory > MOST_MEMORY:
      wrong.append(name)
      print(f"  the limits are {MOST_SECONDS:.0f} s and {MOST_MEMORY / 2**30:.0f} GiB")
  return 1 if wrong else 0


if __name__ == "__main__":
  sys.exit(main())
