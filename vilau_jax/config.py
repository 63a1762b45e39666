"""Architectures as frozen dataclasses; the named ones are in presets.py.

Experiments (data, schedule, mesh) live in configs/; what a network *is* lives here. Fields marked
"extension" are not in the paper: they are off in the paper's presets, and an export that cannot
carry one refuses it.
"""

import dataclasses
import difflib
import types
import typing
from typing import Any

SYSTEM_PROMPT = (
  "A chat between a curious user and an artificial intelligence assistant. "
  "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def _one_of(config: Any, field: str, allowed: tuple[str, ...]) -> None:
  value = getattr(config, field.split(".")[-1])
  if value not in allowed:
    raise ValueError(f"{field} must be one of {allowed}, got {value!r:.200}")


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """SigLIP vision encoder. `depth` counts all layers; the tower quantises the output of layer
  depth-1.

  Attributes:
    pool_positions: extension; the quantised features get position embeddings of their own before
      the last layer, so that the contrastive route knows left from right even where a small
      codebook cannot afford to say where a code stands.
  """

  image_size: int = 256
  patch_size: int = 16
  width: int = 1024
  hidden: int = 4096
  depth: int = 24
  heads: int = 16
  eps: float = 1e-6
  pool_positions: bool = False

  @property
  def grid(self) -> int:
    return self.image_size // self.patch_size


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """SigLIP text encoder. `vocab_size` 0: taken from the tokenizer when training starts."""

  vocab_size: int = 32_000
  length: int = 64
  width: int = 1024
  hidden: int = 4096
  depth: int = 24
  heads: int = 16
  eps: float = 1e-6


@dataclasses.dataclass(frozen=True)
class CnnConfig:
  """One half of an RQ-VAE: the pixel decoder, or the CNN encoder of the table-8 baseline.

  Attributes:
    channels: base channels; level l has channels * multipliers[l].
    multipliers: level 0 is the full resolution.
    blocks: residual blocks a level (the decoder runs one more).
    latent_channels: z_channels, the width at the latent side.
    resolution: image side; attention is placed where the side derived from it is in
      attention_resolutions.
    pixel_shuffle: extension; the decoder's last convolution writes pixel_shuffle**2 sub-pixels and
      the levels stop at resolution / pixel_shuffle, because few channels at full resolution are the
      slow part on a CPU.
  """

  channels: int = 128
  multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
  blocks: int = 2
  latent_channels: int = 256
  resolution: int = 256
  attention_resolutions: tuple[int, ...] = (16,)
  groups: int = 32
  pixel_shuffle: int = 1


@dataclasses.dataclass(frozen=True)
class QuantizerConfig:
  """Residual quantiser with an EMA codebook (RQ-VAE).

  Attributes:
    depth: R, codes a position.
    entries: E, rows of a codebook.
    width: Z, channels of the latents before folding.
    fold: latents per code cell and side, folded into channels (1 in VILA-U).
    shared: one codebook for all depths, else one a depth.
    update: "sequential_per_depth" (each depth updates the table before the next one reads it) or
      "once_per_step".
    restart_threshold: a code whose EMA cluster size falls below it is restarted. 1.0 is the
      reference; other values are an extension for batches with few vectors a code.
    restart_draw: which vectors replace restarted codes: "uniform" (the reference) or, as an
      extension, "error": drawn by their quantisation error, so not ever the same background.
  """

  depth: int = 4
  entries: int = 16_384
  width: int = 1024
  fold: int = 1
  shared: bool = True
  decay: float = 0.99
  eps: float = 1e-5
  restart: bool = True
  restart_threshold: float = 1.0
  restart_draw: str = "uniform"
  update: str = "sequential_per_depth"

  def __post_init__(self):
    _one_of(self, "quantizer.update", ("sequential_per_depth", "once_per_step"))
    _one_of(self, "quantizer.restart_draw", ("uniform", "error"))


@dataclasses.dataclass(frozen=True)
class TowerConfig:
  """Vision tower: one front, the reconstruction route and, with SigLIP, the contrastive one.

  Attributes:
    encoder: "siglip" (vision and text are set) or "rqvae" (cnn is set; with text, which only the
      paper's failed recipe C2 has, the codes are pooled for the contrastive loss).
    latent_grid: side to which latents are resized before decoding (24 at 384 pixels), 0 = not.
  """

  encoder: str = "siglip"
  vision: VisionConfig | None = VisionConfig()
  text: TextConfig | None = TextConfig()
  cnn: CnnConfig | None = None
  quantizer: QuantizerConfig = QuantizerConfig()
  decoder: CnnConfig = CnnConfig()
  latent_grid: int = 0

  def __post_init__(self):
    needs = {"siglip": self.vision, "rqvae": self.cnn}
    if self.encoder not in needs:
      raise ValueError(f"tower.encoder must be one of {sorted(needs)}, got {self.encoder!r:.200}")
    if needs[self.encoder] is None:
      raise ValueError(f"tower.encoder {self.encoder!r:.200} needs its section of the config")

  @property
  def image_size(self) -> int:
    if self.encoder == "siglip" and self.vision is not None:
      return self.vision.image_size
    assert self.cnn is not None  # see __post_init__
    return self.cnn.resolution

  @property
  def encoded(self) -> int:
    """Side of the grid of latents as the encoder leaves them, before codes fold some into one."""
    if self.encoder == "siglip" and self.vision is not None:
      return self.vision.grid
    assert self.cnn is not None  # see __post_init__
    return self.cnn.resolution // 2 ** (len(self.cnn.multipliers) - 1)

  @property
  def grid(self) -> int:
    """Side of the code grid."""
    return self.encoded // self.quantizer.fold

  @property
  def image_tokens(self) -> int:
    """T, visual positions of one image."""
    return self.grid**2


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
  """Llama language model.

  Attributes:
    vocab_size: V, with the four added tokens as its last ids; 0: taken from the tokenizer when
      training starts.
    vocab_multiple: rows of embedding and head are padded to a multiple of it, for sharding; never
      exported.
    rope_scaling: linear factor by which positions are divided.
    max_positions: positions the weights were trained for, before scaling; a row in generation may
      have max_positions * rope_scaling of them.
    unroll: train without a loop over the blocks, for few and small ones: on a CPU the loop puts
      aside what the backward pass reads, a tenth of a step; a large model would compile for hours.
  """

  vocab_size: int = 32_004
  vocab_multiple: int = 1
  width: int = 4096
  hidden: int = 11_008
  depth: int = 32
  heads: int = 32
  kv_heads: int = 32
  rope_theta: float = 10_000.0
  rope_scaling: float = 1.0
  max_positions: int = 4096
  eps: float = 1e-5
  tied: bool = False
  attention: str = "auto"
  unroll: bool = False

  @property
  def head_dim(self) -> int:
    return self.width // self.heads

  @property
  def padded_vocab(self) -> int:
    return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple


@dataclasses.dataclass(frozen=True)
class DepthConfig:
  """Depth transformer: predicts the R codes of a position one after the other (paper eq. 6).

  Attributes:
    unroll: train without a loop over the blocks; on a CPU their small products are twice as fast.
  """

  width: int = 2560
  hidden: int = 10_240
  depth: int = 6
  heads: int = 40
  eps: float = 1e-5
  dropout: float = 0.1
  unroll: bool = False


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """Generation defaults that travel with a model."""

  cfg_scale: float = 3.0
  temperature: float = 1.0
  top_k: int = 900
  top_p: float = 0.96


@dataclasses.dataclass(frozen=True)
class VilaUConfig:
  """The whole model. A component that is None is absent (a directory may hold a tower only).

  Attributes:
    projector: "mlp2x_gelu" (the release), "mlp3x_gelu", "linear" or "identity".
    video_frames: frames of a generated or understood video.
    markers: "always" puts <im_start>/<im_end> around every understood image, as the paper says;
      "release" omits them at inference, as the released code does.
    system_prompt: opening of every conversation.
    visual_positions: extension. "next_cell" adds to each visual input a learned embedding of the
      grid cell and frame that is predicted next: what is about to be painted; "none" is the paper.
    code_scale: extension. Factor on the sum of code vectors where it enters projector and depth
      transformer.
    dtype: compute dtype; parameters are float32 in training.
    remat: what a layer keeps for the backward pass: "none" keeps all, "nothing_saveable" only its
      input, "save_attention" also the attention's output (but for the kernel on GPUs, whose output
      jax computes again); or another member of jax.checkpoint_policies.
  """

  name: str = "custom"
  tower: TowerConfig | None = TowerConfig()
  llm: LlamaConfig | None = LlamaConfig()
  depth: DepthConfig | None = DepthConfig()
  projector: str = "mlp2x_gelu"
  video_frames: int = 8
  markers: str = "always"
  system_prompt: str = SYSTEM_PROMPT
  visual_positions: str = "none"
  code_scale: float = 1.0
  sampling: SamplingConfig = SamplingConfig()
  dtype: str = "float32"
  remat: str = "none"

  def __post_init__(self):
    _one_of(self, "projector", ("mlp2x_gelu", "mlp3x_gelu", "linear", "identity"))
    _one_of(self, "markers", ("always", "release"))
    _one_of(self, "visual_positions", ("none", "next_cell"))
    _one_of(self, "dtype", ("float32", "bfloat16", "float16"))

  def to_dict(self) -> dict[str, Any]:
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, values: dict[str, Any]) -> "VilaUConfig":
    """Inverse of to_dict.

    Raises:
      ValueError: for an unknown key (with the nearest known one) or a value of another type.
    """
    return _build(cls, values, "")

  @classmethod
  def from_preset(cls, preset: str, **overrides: Any) -> "VilaUConfig":
    """A preset with nested overrides, for example `from_preset("tiny", llm={"depth": 3})`.

    Raises:
      ValueError: for an unknown preset or key.
    """
    from vilau_jax.presets import PRESETS

    if preset not in PRESETS:
      raise ValueError(
        f"unknown preset {preset!r}{_nearest(preset, PRESETS)}; known: {sorted(PRESETS)}"
      )
    return PRESETS[preset].with_overrides(**overrides)

  def with_overrides(self, **overrides: Any) -> "VilaUConfig":
    """A copy with nested overrides; see from_preset."""
    return self.from_dict(_merge(self.to_dict(), overrides))


def _nearest(word: str, known) -> str:
  match = difflib.get_close_matches(word, list(known), n=1)
  return f" (did you mean {match[0]!r}?)" if match else ""


def _merge(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
  merged = dict(base)
  for key, value in overrides.items():
    nested = isinstance(value, dict) and isinstance(base.get(key), dict)
    merged[key] = _merge(base[key], value) if nested else value
  return merged


def _build(cls, values: dict[str, Any], path: str):
  hints = typing.get_type_hints(cls)
  built = {}
  for key, value in values.items():
    where = f"{path}{key}"
    if key not in hints:
      raise ValueError(f"unknown config key {where!r:.200}{_nearest(key, hints)}")
    kinds = (
      typing.get_args(hints[key]) if isinstance(hints[key], types.UnionType) else (hints[key],)
    )
    nested = next((k for k in kinds if dataclasses.is_dataclass(k)), None)
    if nested is not None and isinstance(value, dict):
      built[key] = _build(nested, value, f"{where}.")
    elif typing.get_origin(kinds[0]) is tuple and isinstance(value, list | tuple):
      built[key] = tuple(value)
    else:
      if kinds[0] is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
      plain = tuple(k for k in kinds if isinstance(k, type))
      if not isinstance(value, plain) or (isinstance(value, bool) and bool not in plain):
        names = " or ".join(k.__name__ for k in plain)
        raise ValueError(f"config key {where!r:.200} must be {names}, got {value!r:.200}")
      built[key] = value
  return cls(**built)
