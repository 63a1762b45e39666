"""Seconds of communication: which links a group of devices has."""

import importlib.util

import pytest

from vilau_jax import sharding
from vilau_jax.plan import roofline, topology
from vilau_jax.plan.network import Collective

needs_tpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="needs libtpu, of the extra plan"
)
needs_gpu = pytest.mark.skipif(
  importlib.util.find_spec("jax_cuda13_plugin") is None, reason="needs the extra plan"
)


def rate(name, group, kind="all-gather"):
  """Bytes a second at which a gigabyte passes a device of the group."""
  found = Collective(kind, (tuple(group),), 1e9, 1)
  n, machine = len(group), topology.parse(name)
  return 1e9 * (n - 1) / n / roofline.seconds(machine, machine.devices, found)


@needs_tpu
def test_a_torus_has_the_links_of_the_dimensions_it_spans():
  devices = topology.parse("v5e:16x16").devices
  column = [i for i, d in enumerate(devices) if d.coords[0] == 0]
  assert rate("v5e:16x16", range(256)) == pytest.approx(200e9)  # both dimensions close
  assert rate("v5e:16x16", column) == pytest.approx(100e9)
  assert rate("v5e:16x16", column[:8]) == pytest.approx(50e9)  # half a ring is a line
  assert rate("v5e:8x8", range(64)) == pytest.approx(100e9)  # two lines
  assert rate("v5p:4x4x8", range(128)) == pytest.approx(600e9)


@needs_tpu
def test_slices_share_the_slow_network():
  pair = [0, 4]  # the first chips of two slices of four
  assert rate("2*v5e:2x2", pair) == pytest.approx(3.125e9)
  assert rate("2*v5e:2x2", range(8)) == pytest.approx(4 * 3.125e9)
  assert rate("4*v5e:2x2", range(8)) == pytest.approx(4 * 3.125e9)  # two of the four slices
  assert rate("2*v5e:16x16", range(512)) == pytest.approx(200e9)  # no faster than inside of one


@needs_gpu
def test_gpus_have_nvlink_inside_a_host_and_a_nic_each_outside():
  assert rate("h100:8x8", range(8)) == pytest.approx(450e9)
  assert rate("h100:8x8", range(64)) == pytest.approx(8 * 50e9)
  assert rate("h100:8x8", range(0, 64, 8)) == pytest.approx(50e9)


@needs_tpu
def test_an_all_reduce_passes_twice_and_an_all_to_all_sends_its_share():
  whole = rate("v5e:16x16", range(256))
  assert rate("v5e:16x16", range(256), "all-reduce") == pytest.approx(whole / 2)
  assert rate("v5e:16x16", range(256), "all-to-all") == pytest.approx(whole)


@needs_gpu
def test_the_slowest_pair_ends_a_permutation():
  machine = topology.parse("h100:8x8")
  ring = tuple((i, (i + 1) % 64) for i in range(64))
  found = Collective("collective-permute", ring, 1e9, 1)
  assert roofline.seconds(machine, machine.devices, found) == pytest.approx(1e9 / 50e9)


@needs_tpu
def test_groups_are_numbered_as_the_mesh_is():
  """Two of four positions of a mesh that goes round the chips are diagonal neighbours."""
  machine = topology.parse("v5e:2x4")
  mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2, devices=machine.devices)
  column = [mesh.devices[0, i, 0, 0] for i in range(4)]
  spans = [len(set(axis)) for axis in zip(*(d.coords for d in column))]
  found = Collective("all-gather", (tuple(range(0, 8, 2)),), 1e9, 1)
  lines = sum(extent > 1 for extent in spans)
  seconds = roofline.seconds(machine, list(mesh.devices.flat), found)
  assert seconds == pytest.approx(1e9 * 3 / 4 / (50e9 * lines))
