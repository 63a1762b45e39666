"""Checkpoints of PyTorch implementations in, and out again, bit for bit.

One table a family (llama, siglip, big_vision, rqvae, vilau), one strict check (plan), one reader
that holds a tensor at a time (sources), one writer (exporter).
"""

from vilau_jax.convert.exporter import export_checkpoint
from vilau_jax.convert.formats import FORMATS, is_release
from vilau_jax.convert.formats import read_config as read_architecture
from vilau_jax.convert.importer import import_checkpoint, load_checkpoint, verify
from vilau_jax.convert.report import Report

__all__ = [
  "FORMATS",
  "Report",
  "export_checkpoint",
  "import_checkpoint",
  "is_release",
  "load_checkpoint",
  "read_architecture",
  "verify",
]
