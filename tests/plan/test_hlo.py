"""Reading optimised programs: real ones, compiled here for fake devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vilau_jax import sharding
from vilau_jax.plan import hlo, network, traffic

SIZES = dict(data=2, fsdp=2, tensor=2)


def compiled(fn, *args):
  return hlo.parse(jax.jit(fn).lower(*args).compile().as_text())


def test_loops_count_as_often_as_they_run():
  w, x = jnp.zeros((5, 16, 16)), jnp.zeros((8, 16))
  once = 2 * 8 * 16 * 16

  def layers(w, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

  assert hlo.total_flops(compiled(layers, w, x)) == 5 * once

  def nested(w, x):
    return jax.lax.fori_loop(0, 3, lambda _, x: layers(w, x), x)

  assert hlo.total_flops(compiled(nested, w, x)) == 15 * once


def test_the_longer_branch_counts():
  x, w = jnp.zeros((8, 16)), jnp.zeros((16, 16))

  def fn(x, w, on):
    return jax.lax.cond(on, lambda: jnp.tanh(jnp.tanh(x @ w) @ w), lambda: x)

  assert hlo.total_flops(compiled(fn, x, w, True)) == 2 * 2 * 8 * 16 * 16


def test_convolutions_count_what_is_inside_the_border():
  """3x3 over 4x4 with a border of one: 10 of 12 taps an axis meet a pixel."""
  x, k = jnp.zeros((2, 4, 4, 8)), jnp.zeros((3, 3, 8, 16))

  def conv(x, k):
    return jax.lax.conv_general_dilated(
      x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  assert hlo.total_flops(compiled(conv, x, k)) == 2 * 2 * 10 * 10 * 8 * 16
  gradient = compiled(jax.grad(lambda k, x: conv(x, k).sum()), k, x)
  assert hlo.total_flops(gradient) == 2 * 2 * 10 * 10 * 8 * 16


def placed(mesh, array, *spec):
  return jax.ShapeDtypeStruct(
    array.shape, array.dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec))
  )


@pytest.mark.parametrize("axis", ["data", "fsdp", "tensor"])
def test_collectives_know_their_mesh_axis(axis):
  mesh = sharding.make_mesh(**SIZES)
  x = placed(mesh, jnp.zeros((8, 64)), axis)
  with jax.set_mesh(mesh):
    found = network.collectives(
      compiled(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()) * 2, x), 8
    )
    rows = network.by_axis(found, dict(mesh.shape))
    assert rows == [{"kind": "all-gather", "axis": axis, "bytes": 8 * 64 * 4, "count": 1}]
    total = network.by_axis(
      network.collectives(compiled(lambda x: x.sum(), x), 8), dict(mesh.shape)
    )
    assert [(r["kind"], r["axis"], r["bytes"]) for r in total] == [("all-reduce", axis, 4)]


def test_collectives_over_two_axes_and_inside_loops():
  mesh = sharding.make_mesh(**SIZES)
  x = placed(mesh, jnp.zeros((8, 64)), ("data", "fsdp"))
  w = placed(mesh, jnp.zeros((3, 64, 64)), None, "fsdp")

  def layer(x, w):  # gathered here: left alone, the partitioner may move x instead
    return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, PartitionSpec())), None

  def fn(x, w):
    return jax.lax.scan(layer, x, w)[0].sum()

  with jax.set_mesh(mesh):
    rows = network.by_axis(network.collectives(compiled(fn, x, w), 8), dict(mesh.shape))
  found = {(r["kind"], r["axis"]): (r["bytes"], r["count"]) for r in rows}
  assert found["all-gather", "fsdp"] == (3 * 64 * 64 * 4, 3)
  assert found["all-reduce", "data,fsdp"] == (4, 1)


@pytest.mark.parametrize(
  "text, want",
  [
    ("replica_groups={{0,1},{2,3}}", ((0, 1), (2, 3))),
    ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
    ("replica_groups=[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
    ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}", ((0, 2), (1, 3))),
    (
      "replica_groups=mesh['axis_0'=2,'axis_1'=2], device_ids=([2,2]T(1,0)) {'axis_0'}",
      ((0, 1), (2, 3)),
    ),
    ("source_target_pairs={{0,1},{1,0}}", ((0, 1), (1, 0))),
    ("replica_groups={}", ((0, 1, 2, 3),)),
  ],
)
def test_every_way_to_write_groups(text, want):
  line = f"  %x = f32[4]{{0}} all-reduce(%y), channel_id=1, {text}, use_global_device_ids=true"
  assert network._groups(hlo._instruction(line.strip()), 4) == want


def test_a_slice_of_a_stack_is_read_and_not_the_stack():
  w, x = jnp.zeros((50, 64, 64)), jnp.zeros((8, 64))

  def layers(w, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

  moved = traffic.total_bytes(compiled(layers, w, x))
  stack = 50 * 64 * 64 * 4
  assert stack <= moved < 4 * stack  # a slice may be copied before it is read


def test_what_is_no_program_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    hlo.parse("HloModule nothing")


def test_what_passes_between_slices_is_counted():
  line = (
    "  %send = (f32[4,8]{1,0}, u32[]{:S(2)}, token[]) send(%x, %after-all), channel_id=3, "
    'is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2}x{0:3}",'
    '_xla_megascale_transfer_type="ALL_REDUCE"}'
  )
  program = hlo.parse(
    "HloModule m\n\nENTRY %main (x: f32[4,8]) -> token[] {\n  %x = f32[4,8]{1,0} parameter(0)\n"
    f"  %after-all = token[] after-all()\n{line}\n  ROOT %done = token[] send-done(%send)\n}}\n"
  )
  rows = network.by_axis(network.collectives(program, 8), dict(data=2, fsdp=4))
  assert rows == [{"kind": "all-reduce", "axis": "data", "bytes": 128.0, "count": 1}]
