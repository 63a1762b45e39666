"""What is compiled: the trainer's step, the tower's encoding, a row of drawn positions.

Each is the very function that runs, with abstract arguments on a mesh of the machine asked for.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from vilau_jax import sharding
from vilau_jax.config import VilaUConfig
from vilau_jax.generate import engine, int8, sampling, vision
from vilau_jax.generate.cache import State, bucket
from vilau_jax.models import llama, vilau
from vilau_jax.models.tower import Tower
from vilau_jax.plan import flops
from vilau_jax.train import step

WORKLOADS = ("train", "tokenize", "generate")
PROMPT = 64  # positions of a drawing's prompt; SPEC-like captions have 35 to 60


@dataclasses.dataclass(frozen=True)
class Work:
  """A program to compile and what a run of it achieves.

  Attributes:
    jitted, arguments: lowered as jitted.lower(*arguments, **static).
    parameters, optimizer: trees of arguments that are weights and optimizer state.
    model_flops: by part, of all devices together; see flops.py.
    minimum_bytes: that any program has to move on a device.
    activations: bytes on a device that wait for the backward pass: the inputs of rematerialised
      blocks (part of the temporaries); 0 where there is none.
    tokens, images: of a run, all devices together.
    quantized: weights are in eight bits.
    beside: tree of weights that stay in memory while it runs, though it does not take them.
  """

  workload: str
  jitted: Callable[..., Any]
  arguments: tuple[Any, ...]
  static: dict[str, Any]
  parameters: Any
  optimizer: Any
  model_flops: dict[str, float]
  minimum_bytes: float
  tokens: float
  images: float
  activations: float = 0.0
  quantized: bool = False
  beside: Any = dataclasses.field(default_factory=dict)

  def lower(self, mesh: Mesh) -> Any:
    with jax.set_mesh(mesh):
      return self.jitted.lower(*self.arguments, **self.static)


def device_bytes(tree: Any) -> float:
  """Bytes of an abstract tree on one device; static arguments have none."""

  def one(leaf):
    size = math.prod(leaf.sharding.shard_shape(leaf.shape))
    return size * _width(leaf.dtype) if _plain(leaf) else 8

  leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.ShapeDtypeStruct)]
  return float(sum(one(leaf) for leaf in leaves))


def _width(dtype: Any) -> float:
  """Bytes of an element; two of four bits share one."""
  dtype = jax.dtypes.canonicalize_dtype(dtype)
  whole = jnp.issubdtype(dtype, jnp.integer)
  return jnp.iinfo(dtype).bits / 8 if whole else dtype.itemsize


def _plain(leaf: Any) -> bool:
  return not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def train(config: ConfigDict, mesh: Mesh) -> Work:
  """One optimisation step, as train/loop.py runs it."""
  model = step.planned_model(config)
  stage = step.make_stage(config, model)
  state, frozen, batch, key = step.abstract_arguments(config, model, stage, mesh)
  frozen = stage.compressed(frozen)
  weights = {"trained": state.params, "frozen": frozen, "collections": state.collections}
  work, tokens, images = counted(config, model)
  # Weights are read forward and backward in the compute dtype, and once with their gradient and
  # moments, of which all but the gradient are written again.
  whole = _bytes_used((state.params, frozen["params"]), jnp.dtype(model.dtype))
  updates = 2 * device_bytes(state.opt) + 3 * device_bytes(state.params)
  return Work(
    "train", step.compiled_step(stage, state), (state, frozen, batch, key), {}, weights, state.opt,
    work, 2 * whole / mesh.shape["tensor"] + updates, tokens, images,
    _block_inputs(config, model, mesh),
  )  # fmt: skip


def _bytes_used(params: Any, dtype: jnp.dtype) -> float:
  """Of all devices together, of weights as they are read: in `dtype`, or packed integers."""

  def one(leaf):
    packed = jnp.issubdtype(leaf.dtype, jnp.integer)
    return leaf.size * (_width(leaf.dtype) if packed else dtype.itemsize)

  return float(sum(one(leaf) for leaf in jax.tree.leaves(params)))


def counted(config: ConfigDict, model: VilaUConfig) -> tuple[dict[str, float], float, float]:
  """Model FLOPs of a training step by part (flops.py), its tokens and its images, where every row
  is full."""
  rows = config.batch_size
  if config.stage == "tower":
    return flops.tower_step(config, model.tower), rows * model.tower.image_tokens, rows
  row = config.data.row
  work = flops.lm_step(
    model, rows=rows, length=row.length, slots=row.slots,
    supervised=math.ceil(row.targets * config.loss.visual_fraction),
    freeze=config.optim.freeze, rank=config.lora.rank, targets=config.lora.targets,
  )  # fmt: skip
  return work, rows * row.length, rows * row.slots / model.tower.image_tokens


def _block_inputs(config: ConfigDict, model: VilaUConfig, mesh: Mesh) -> float:
  """Inputs of the stacked blocks for one piece of the batch on a device, in the compute dtype."""
  rows = config.batch_size / config.optim.accumulate / mesh.shape["data"] / mesh.shape["fsdp"]
  size = jnp.dtype(model.dtype).itemsize
  if config.stage == "lm":
    c = model.llm
    return rows * config.data.row.length * c.width * c.depth * size / mesh.shape["context"]
  tower, total = model.tower, 0.0
  if tower.vision is not None:
    total += (tower.vision.depth - 1) * tower.vision.grid**2 * tower.vision.width
  if config.loss.contrastive:
    total += tower.text.depth * tower.text.length * tower.text.width
  return rows * total * size / mesh.shape["context"]


def tokenize(config: ConfigDict, mesh: Mesh) -> Work:
  """A call of `vilau tokenize` with all devices at work: weights whole on every device."""
  model = VilaUConfig.from_preset(**config.model.to_dict())
  rows, whole = sharding.batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
  side = model.tower.image_size
  tower = Tower(model.tower, dtype=jnp.dtype(model.dtype))
  images = jnp.zeros((1, side, side, 3))
  variables = jax.eval_shape(lambda: nn.unbox(tower.init(jax.random.key(0), images)))
  variables = jax.tree.map(lambda a: _leaf(a.shape, a.dtype, whole), variables)
  count = vision.at_once(side) * mesh.size
  pictures = _leaf((count, side, side, 3), jnp.uint8, rows)
  work = {"tokenize": count * flops.tokenize_image(model.tower)}
  used = {k: v for k, v in variables["params"].items() if k in ("vision", "encoder", "quant")}
  least = device_bytes(used) + device_bytes(variables["quantizer"]["codebook"])
  return Work(
    "tokenize", vision._encode, (tower, variables, pictures), {}, variables, {},
    work | {"total": sum(work.values())}, least + device_bytes(pictures),
    count * model.tower.image_tokens, count,
  )  # fmt: skip


def generate(config: ConfigDict, mesh: Mesh, outputs: int = 1, quantize: str | None = None) -> Work:
  """A row of the grid of `outputs` drawings with guidance, as generate/engine.py runs it; weights
  are shared out over the mesh's tensor and fsdp axes by THE table. `quantize`: see int8.py."""
  int8.check(quantize)
  model = dataclasses.replace(VilaUConfig.from_preset(**config.model.to_dict()), remat="none")
  if model.llm is None:
    raise ValueError("--workload=generate needs a language model; this config trains a tower")
  dtype, steps = jnp.dtype(model.dtype), model.tower.grid
  boxed = vilau.abstract_variables(model)
  # Pictures are encoded and decoded between; what reads captions came for training alone.
  tower = {k: v for k, v in boxed["params"]["tower"].items() if k != "text"}
  whole = NamedSharding(mesh, PartitionSpec())  # as generate/vision.py holds it
  tower = jax.tree.map(lambda a: _leaf(a.shape, dtype, whole), step.unboxed(tower))
  params = {k: v for k, v in boxed["params"].items() if k != "tower"}
  params = jax.tree.map(
    lambda a, where: _leaf(a.shape, dtype, where), step.unboxed(params),
    sharding.state_shardings(params, mesh),
  )  # fmt: skip
  params = _taken_apart(params)
  if quantize:
    parts = jax.eval_shape(int8.quantize_params, params)
    params = jax.tree.map(_leaf_like, parts, sharding.of_parts(params, parts))
  book = step.unboxed(boxed["quantizer"]["codebook"])
  book = _leaf(book.shape, jnp.float32, whole)
  state = _decoding_state(model, 2 * outputs, mesh, dtype)
  key = jax.eval_shape(lambda: sampling.output_keys([0] * outputs))
  wish = sampling.Sampling(**dataclasses.asdict(model.sampling))
  entries = model.tower.quantizer.entries
  values = jax.tree.map(lambda v: _leaf(jnp.shape(v), jnp.result_type(v), whole),
                        wish.values(entries))  # fmt: skip
  draws = engine.Draws(
    _leaf(key.shape, key.dtype, whole), _leaf((outputs,), jnp.int32, whole), values
  )
  static = dict(config=model, switches=wish.switches(entries), steps=steps)
  first = _leaf((), jnp.int32, whole)
  counted = _drawing_flops(model, 2 * outputs * steps, state)
  least = steps * (_weights_read(model, params) + device_bytes(state.caches))
  return Work(
    "generate", engine.visual_chunk, (params, book, state, first, draws), static, params, {},
    counted, least, outputs * steps, outputs * steps / model.tower.image_tokens,
    quantized=bool(quantize), beside=tower,
  )  # fmt: skip


def _weights_read(model: VilaUConfig, params: Any) -> float:
  """Bytes of weights a position reads on a device: the language model's blocks once, the depth
  transformer R times; tables of words not at all."""
  r = model.tower.quantizer.depth
  blocks = {k: v for k, v in params["llm"].items() if k not in ("embed_tokens", "lm_head")}
  inputs = {k: v for k, v in params["depth"].items() if k == "in_mlp_2"}
  again = {k: v for k, v in params["depth"].items() if k not in ("in_mlp_1", "in_mlp_2")}
  codes = {k: v for k, v in params["depth"].items() if k == "in_mlp_1"}
  rest = {k: v for k, v in params.items() if k not in ("llm", "depth")}
  once = device_bytes((blocks, inputs, rest))
  return once + r * device_bytes(again) + (r - 1) * device_bytes(codes)


def _drawing_flops(model: VilaUConfig, positions: int, state: State) -> dict[str, float]:
  c = model.llm
  work = {
    "llm": positions * 2.0 * flops.llm_parameters(c),
    "attention": positions
    * c.depth
    * flops.attention(1, state.valid.shape[1], c.heads * c.head_dim),
    "projector": flops.projector_forward(model, positions),
    "depth": flops.depth_forward(model, positions),
  }
  return work | {"total": sum(work.values())}


def _decoding_state(model: VilaUConfig, rows: int, mesh: Mesh, dtype: Any) -> State:
  columns = bucket(PROMPT) + model.tower.image_tokens
  whole = NamedSharding(mesh, PartitionSpec())
  heads = NamedSharding(mesh, sharding.spec(None, "kv_heads", None, None))
  cache = jax.eval_shape(lambda: llama.init_cache(model.llm, rows, columns, dtype))
  return State(
    caches=jax.tree.map(lambda a: _leaf(a.shape, a.dtype, heads), cache),
    valid=_leaf((rows, columns), jnp.bool_, whole),
    column=_leaf((), jnp.int32, whole),
    position=_leaf((rows,), jnp.int32, whole),
    pending=_leaf((rows, 1, model.llm.width), dtype, whole),
  )


def _taken_apart(params: Any) -> Any:
  """vilau.decoding_params of abstract parameters: a layer has its stack's sharding without the
  first axis."""
  apart = jax.eval_shape(vilau.decoding_params, params)

  def where(path, leaf):
    keys = [p.key for p in path]
    stacked = ["layers" if k.startswith("layers_") and keys[0] != "projector" else k for k in keys]
    node = params
    for key in stacked:
      node = node[key]
    spec = node.sharding.spec
    if len(node.shape) > len(leaf.shape):
      spec = PartitionSpec(*spec[1:])
    return _leaf(leaf.shape, leaf.dtype, NamedSharding(node.sharding.mesh, spec))

  return jax.tree_util.tree_map_with_path(where, apart)


def _leaf_like(like: jax.ShapeDtypeStruct, where: NamedSharding) -> jax.ShapeDtypeStruct:
  return _leaf(like.shape, like.dtype, where)


def _leaf(shape: tuple[int, ...], dtype: Any, where: NamedSharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype, sharding=where)
