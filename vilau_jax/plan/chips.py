"""THE table of chips: what a device has, where the figure is from, and how XLA compiles for it."""

import dataclasses

GPU_SHARE = 0.92  # of a GPU's memory, which JAX takes in one piece; its own default is 0.75


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peak figures of one device.

  Attributes:
    name: as in a topology, "v5e".
    flops: dense bfloat16 products a second.
    hbm: bytes of device memory, as sold.
    bandwidth: bytes a second between device and its memory.
    link: bytes a second that leave a device towards its neighbours, all links together: the
      inter-chip interconnect of a TPU, NVLink of a GPU.
    axes: torus dimensions the links of a TPU are spread over; 0: a switch joins the GPUs of a host.
    ring: extent from which a torus dimension closes into a ring; a shorter one is a line.
    network: bytes a second that leave a device towards other hosts (GPU) or other slices (TPU).
    source: of the figures.
    target: text proto of the compile target (GPU only).
  """

  name: str
  flops: float
  hbm: int
  bandwidth: float
  link: float
  axes: int
  ring: int
  network: float
  source: str
  target: str = ""

  @property
  def is_gpu(self) -> bool:
    return bool(self.target)

  @property
  def room(self) -> int:
    """Bytes for a program: on a GPU what `vilau` lets JAX take; a TPU's compiler says it itself."""
    return int(self.hbm * GPU_SHARE) if self.is_gpu else self.hbm


def _gpu_target(name: str, major: int, feature: str, cores: int, shared: int, **other) -> str:
  """The description that XLA compiles CUDA programs for, without a device to ask."""
  facts = {
    "threads_per_block_limit": 1024, "threads_per_warp": 32, "shared_memory_per_block": 49152,
    "shared_memory_per_core": shared, "shared_memory_per_block_optin": shared - 1024,
    "threads_per_core_limit": 2048, "core_count": cores, "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 65535, "block_dim_limit_z": 65535, "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
  } | other  # fmt: skip
  lines = " ".join(f"{k}: {v}" for k, v in facts.items())
  extension = f" feature_extension: {feature}" if feature else ""
  return (
    f"gpu_device_info {{ {lines} cuda_compute_capability {{ major: {major}{extension} }} }} "
    'platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } runtime_version { major: 13 } '
    f'device_description_str: "{name}"'
  )


_H100 = _gpu_target(
  "NVIDIA H100 80GB HBM3", 9, "ACCELERATED_FEATURES", 132, 233472, fpus_per_core=128,
  memory_bandwidth=3352320000000, l2_cache_size=52428800, clock_rate_ghz=1.98,
  device_memory_size=84978434048,
)  # fmt: skip
_H200 = _gpu_target(
  "NVIDIA H200", 9, "ACCELERATED_FEATURES", 132, 233472, fpus_per_core=128,
  memory_bandwidth=4800000000000, l2_cache_size=62914560, clock_rate_ghz=1.98,
  device_memory_size=150754820096,
)  # fmt: skip
_A100 = _gpu_target(
  "NVIDIA A100-SXM4-80GB", 8, "", 108, 167936, fpus_per_core=64, memory_bandwidth=2039000000000,
  l2_cache_size=41943040, clock_rate_ghz=1.41, device_memory_size=84987740160,
)  # fmt: skip
_GIB = 2**30
_TPU = "Google Cloud TPU documentation, system architecture of "

# Links: TPU documentation counts both directions (v5e 400, v6e 800 GB/s a chip) or bits of one (v4
# 2400, v5p 4800 Gbit/s); data sheets of GPUs count both. Here it is one direction. Network: 8 NICs
# a host (400 Gbit/s each on an H100 host, 200 on an A100 host); for TPUs the data centre network of
# a slice divided by its chips (v5e 6.4 and v6e 25.6 Tbit/s for 256; v5p 50 Gbit/s a chip; for v4,
# of which nothing is published, as v5e).
CHIPS = {
  c.name: c
  for c in (
    Chip("v4", 275e12, 32 * _GIB, 1.228e12, 300e9, 3, 4, 3.125e9, _TPU + "v4"),
    Chip("v5e", 197e12, 16 * _GIB, 0.819e12, 200e9, 2, 16, 3.125e9, _TPU + "v5e"),
    Chip("v5p", 459e12, 95 * _GIB, 2.765e12, 600e9, 3, 4, 6.25e9, _TPU + "v5p"),
    Chip("v6e", 918e12, 32 * _GIB, 1.638e12, 400e9, 2, 16, 12.5e9, _TPU + "v6e"),
    Chip("h100", 989e12, 84978434048, 3.35e12, 450e9, 0, 0, 50e9,
         "NVIDIA H100 SXM data sheet (dense bfloat16), NVLink 4, DGX H100", _H100),
    Chip("h200", 989e12, 150754820096, 4.8e12, 450e9, 0, 0, 50e9,
         "NVIDIA H200 SXM data sheet (dense bfloat16), NVLink 4, HGX H200", _H200),
    Chip("a100", 312e12, 84987740160, 2.039e12, 300e9, 0, 0, 25e9,
         "NVIDIA A100 80GB SXM data sheet, NVLink 3, DGX A100", _A100),
  )
}  # fmt: skip
