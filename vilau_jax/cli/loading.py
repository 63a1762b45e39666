"""Flags that say how a command loads its model: in eight bits, and on how many devices."""

from typing import Any

from absl import flags

flags.disclaim_key_flags()  # they are those of the command's module, and stand in its --help


class Loading:
  """Defines --int8 and --tensor among a command's flags."""

  def __init__(self, values: flags.FlagValues):
    self._int8 = flags.DEFINE_bool(
      "int8", False, "weights in eight bits, for small devices", flag_values=values
    )
    self._tensor = flags.DEFINE_integer(
      "tensor", 1, "devices that share the model", lower_bound=1, flag_values=values
    )

  @property
  def quantize(self) -> str | None:
    """See api.load."""
    return "int8" if self._int8.value else None

  @property
  def tensor(self) -> int:
    """Devices that share the model."""
    return self._tensor.value

  def arguments(self) -> dict[str, Any]:
    """Of api.load: the mesh is the first --tensor devices of this process.

    Raises:
      ValueError: if there are not so many.
    """
    mesh = None
    if self.tensor > 1:
      import jax  # flags first: jax takes seconds

      from vilau_jax import sharding

      mesh = sharding.make_mesh(
        data=1, tensor=self.tensor, devices=jax.local_devices()[: self.tensor]
      )
    return {"quantize": self.quantize, "mesh": mesh}
