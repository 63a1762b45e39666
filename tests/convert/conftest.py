"""A golden release as the importer writes it, made once."""

import pathlib

import pytest

from vilau_jax import convert

RELEASE = pathlib.Path(__file__).parents[1] / "golden" / "a" / "checkpoint"


@pytest.fixture(scope="session")
def release() -> pathlib.Path:
  return RELEASE


@pytest.fixture(scope="session")
def imported(tmp_path_factory) -> pathlib.Path:
  model = tmp_path_factory.mktemp("imported") / "model"
  convert.import_checkpoint("vila-u", RELEASE, model)
  return model
