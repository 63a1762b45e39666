"""Paths that may be in a bucket: what etils and gcsfs leave to their callers."""

import os

import fsspec.config
from etils import epath

# gcsfs remembers a folder's listing, and so misses what another host has written there since.
for _name in ("gcs", "gs"):
  fsspec.config.conf.setdefault(_name, {}).setdefault("use_listings_cache", False)


def is_remote(path: str | os.PathLike) -> bool:
  """Whether `path` is in an object store: gs://, s3://, .."""
  return "://" in os.fspath(path)


def absolute(path: str | os.PathLike) -> epath.Path:
  """The same place wherever the process goes. (etils would make ./gs:/.. of a bucket's path.)"""
  path = epath.Path(path)
  return path if is_remote(path) else path.absolute()
