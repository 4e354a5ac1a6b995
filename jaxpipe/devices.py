"""Which device takes which place of a mesh: neighbours that talk most are put closest together."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.experimental import mesh_utils

Device = Any  # a `jax.Device`, or anything with its attributes


def arrange(devices: Sequence[Device], shape: tuple[int, int, int]) -> np.ndarray:
    """Devices as a grid `[pipe, data, tensor]` of this shape, of the first that will do.

    The devices of a process lie side by side, in their order in the machine. `tensor` talks within
    every layer, so its neighbours share a process wherever enough processes have room for a whole
    group; the rest is filled up across processes. `pipe`, which talks least, is outermost, and so
    it is what crosses from process to process first. On TPU, where links between chips form a
    grid, JAX's own arrangement is taken.

    Args:
      devices: in any order; at least as many as the shape needs.
      shape: sizes of the axes `pipe`, `data` and `tensor`.
    """
    devices = sorted(devices, key=_place)
    needed, tensor = math.prod(shape), shape[-1]
    if devices[0].platform == "tpu" and len(devices) == needed and _slices(devices) == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    groups, rest = [], []
    for process in dict.fromkeys(device.process_index for device in devices):
        own = [device for device in devices if device.process_index == process]
        whole = len(own) // tensor * tensor
        groups += [own[i : i + tensor] for i in range(0, whole, tensor)]
        rest += own[whole:]
    groups += [rest[i : i + tensor] for i in range(0, len(rest) - tensor + 1, tensor)]
    chosen = sorted(groups[: needed // tensor], key=lambda group: _place(group[0]))
    grid = np.empty((len(chosen), tensor), object)
    for row, group in zip(grid, chosen, strict=True):
        row[:] = group
    return grid.reshape(shape)


def _place(device: Device) -> tuple[int, ...]:
    """Where a device sits, from the outside in: fast network, process, machine.

    GPUs of one machine have one `slice_index`, also where each has a process of its own.
    """
    local = getattr(device, "local_hardware_id", None)
    return _slice(device), device.process_index, -1 if local is None else local, device.id


def _slice(device: Device) -> int:
    return getattr(device, "slice_index", None) or 0


def _slices(devices: Sequence[Device]) -> int:
    return len({_slice(device) for device in devices})


def describe_grid(grid: np.ndarray) -> str:
    """A grid `[pipe, data, tensor]` of devices as a table, and which neighbours share a process.

    A cell is `process:device`. Where devices are of several kinds, it says the kind too.
    """
    kinds = list(dict.fromkeys(device.device_kind for device in grid.flat))
    num_processes = len({device.process_index for device in grid.flat})
    sizes: dict[str, int] = dict(zip(("pipe", "data", "tensor"), grid.shape, strict=True))
    title = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    processes = "1 process" if num_processes == 1 else f"{num_processes} processes"
    lines = [f"mesh: {title}, {', '.join(kinds)}, {processes}"]

    def cell(device: Device) -> str:
        kind = f" {device.device_kind}" if len(kinds) > 1 else ""
        return f"{device.process_index}:{device.id}{kind}"

    tensor = lambda j: f" tensor {j}" if grid.shape[2] > 1 else ""
    names = [f"data {i}{tensor(j)}" for i, j in np.ndindex(grid.shape[1:])]
    rows = [["process:device", *names]]
    rows += [[f"pipe {i}", *map(cell, part.flat)] for i, part in enumerate(grid)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        parts = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines + _neighbours(grid, sizes))


def _neighbours(grid: np.ndarray, sizes: dict[str, int]) -> list[str]:
    """Which pairs of neighbours share a process, by axis, and what to do about `tensor`."""
    processes = np.vectorize(lambda device: device.process_index, otypes=[int])(grid)
    said = []
    for number, (axis, size) in enumerate(sizes.items()):
        if size > 1:
            alike = np.diff(processes, axis=number) == 0
            count = "all" if alike.all() else f"{alike.sum()} of {alike.size} pairs"
            said.append(f"{axis} {count}")
    lines = [f"neighbours that share a process: {', '.join(said)}"] if said else []
    if (np.diff(processes, axis=2) != 0).any():
        _, counts = np.unique(processes, return_counts=True)
        held = " or ".join(map(str, sorted(set(counts.tolist()))))
        lines.append(
            "tensor crosses processes: if these are machines, every layer waits for the link"
            f" between them. A tensor that divides the {held} devices of a process does not cross."
        )
    return lines
