"""Devices that are only described: a mesh of them can be traced for, not run on."""

import dataclasses

from jax.sharding import Mesh

from jaxpipe.mesh import make_mesh
from jaxpipe.planner.chips import Chip


@dataclasses.dataclass(frozen=True)
class DescribedDevice:
    """As much of a `jax.Device` as a mesh needs.

    Attributes:
      id: its number.
      process_index: its process; one for each machine.
      local_hardware_id: its number in the machine.
      platform: "gpu" or "tpu".
      device_kind: as JAX calls it.
      slice_index: which fast network it is on.
    """

    id: int
    process_index: int
    local_hardware_id: int
    platform: str
    device_kind: str
    slice_index: int = 0


def described_mesh(chip: Chip, pipe: int, data: int, tensor: int) -> Mesh:
    """A mesh of chips, as `make_mesh` arranges so many of them in as few machines as there can be.

    The last axis lies within a machine, and the first crosses machines first.
    """
    size = chip.per_machine
    devices = [
        DescribedDevice(i, i // size, i % size, chip.platform, chip.kind)
        for i in range(pipe * data * tensor)
    ]
    return make_mesh(pipe=pipe, data=data, tensor=tensor, devices=devices)
