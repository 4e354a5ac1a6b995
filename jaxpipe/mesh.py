"""The device mesh and its axis names."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxpipe.devices import arrange, describe_grid
from jaxpipe.errors import MeshError

PIPE, DATA, TENSOR = "pipe", "data", "tensor"
_T = TypeVar("_T")


def make_mesh(
    pipe: int = 1, data: int = 1, tensor: int = 1, *, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh of `pipe x data x tensor` devices, which `describe_mesh` shows.

    Neighbours on `tensor` share a process wherever they can; `pipe` crosses from process to process
    first, then `data`.

    Args:
      pipe: number of pipeline ranks.
      data: number of data-parallel copies of each rank.
      tensor: number of devices that share each layer; layers that do not know the axis run
        replicated over it.
      devices: which devices, in the mesh's order (`tensor` innermost, `pipe` outermost); by default
        as many of all as are needed, ordered as said above.

    Raises:
      MeshError: when a size is below one, or there are fewer devices than the mesh needs.
    """
    sizes = {PIPE: pipe, DATA: data, TENSOR: tensor}
    for axis, size in sizes.items():
        if size < 1:
            raise MeshError(f"mesh axis {axis!r} has size {size}; expected at least 1.")
    ordered = devices is not None
    devices = list(jax.devices() if devices is None else devices)
    needed = pipe * data * tensor
    if needed > len(devices):
        raise MeshError(
            f"pipe={pipe} x data={data} x tensor={tensor} needs {needed} devices; there are"
            f" {len(devices)} ({devices[0].platform}). Use a smaller mesh, or simulate devices on"
            f" CPU: jax.config.update('jax_num_cpu_devices', {needed}) before JAX starts."
        )
    shape = (pipe, data, tensor)
    grid = np.array(devices[:needed]).reshape(shape) if ordered else arrange(devices, shape)
    # Explicit axes are JAX's default; inside the pipeline every axis is manual anyway.
    return Mesh(grid, (PIPE, DATA, TENSOR), axis_types=(AxisType.Auto,) * 3)


def describe_mesh(mesh: Mesh) -> str:
    """The mesh as a table: which process and device has which place, and who shares a process."""
    axes = [axis for axis in (PIPE, DATA, TENSOR) if axis in mesh.axis_names]
    grid = mesh.devices.transpose([mesh.axis_names.index(axis) for axis in axes])
    return describe_grid(grid.reshape([axis_size(mesh, axis) for axis in (PIPE, DATA, TENSOR)]))


def check_mesh(mesh: Mesh) -> None:
    """Raises `MeshError` unless the mesh has a `pipe` axis and no unknown one."""
    if PIPE not in mesh.axis_names:
        raise MeshError(
            f"the mesh has axes {mesh.axis_names}; expected one named {PIPE!r}. Make it with"
            " jaxpipe.make_mesh(pipe=..., data=...)."
        )
    unknown = set(mesh.axis_names) - {PIPE, DATA, TENSOR}
    if unknown:
        raise MeshError(
            f"the mesh has axes {mesh.axis_names}; {sorted(unknown)} mean nothing here. Known:"
            f" {PIPE!r}, {DATA!r}, {TENSOR!r}."
        )


def first_pipeline(mesh: Mesh) -> list[Any]:
    """The device of each rank, where all other axes are at 0."""
    devices = mesh.devices
    for axis in reversed(range(devices.ndim)):
        if mesh.axis_names[axis] != PIPE:
            devices = devices.take(0, axis)
    return list(devices)


def axis_size(mesh: Mesh, axis: str) -> int:
    """The size of a mesh axis; 1 if the mesh lacks it."""
    return mesh.shape.get(axis, 1)


def traced_on(mesh: Mesh, fn: Callable[[], _T]) -> _T:
    """`fn()` where the mesh's axes have names, as inside `shard_map`: to trace, not to compute.

    Where nothing is shared over `tensor` no layer asks for them, and `fn` is called as it is.
    """
    if axis_size(mesh, TENSOR) == 1:
        return fn()
    found: list[_T] = []

    def run() -> jax.Array:
        found.append(fn())
        return jnp.zeros(())

    everywhere = PartitionSpec()
    mapped = jax.shard_map(run, mesh=mesh, in_specs=(), out_specs=everywhere, check_vma=False)
    jax.eval_shape(mapped)
    return found[0]
