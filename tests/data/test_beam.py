"""The same pieces on Apache Beam's local runner; skipped where the extra `beam` is missing."""

import pathlib

import pytest
import sources

from vilau_jax.data import beam, imports

pytest.importorskip("apache_beam")


@pytest.mark.parametrize("name", ["folder", "mmc4", "llava", "emoji", "tfds"])
def test_beam_writes_the_same_bytes(tmp_path, name):
  imports.run(sources.plan(name, tmp_path), tmp_path / "here")
  runner = beam.on_beam(["--runner=DirectRunner", "--direct_num_workers=1"])
  counts = imports.run(sources.plan(name, tmp_path), tmp_path / "beam", executor=runner)
  assert counts["accepted"] == sum(sources.KINDS[name].values())
  files = {p.name: p.read_bytes() for p in (tmp_path / "here").iterdir()}
  assert files == {p.name: p.read_bytes() for p in pathlib.Path(tmp_path / "beam").iterdir()}
