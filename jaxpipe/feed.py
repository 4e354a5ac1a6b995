"""Batches on their way to the devices: each process gives its own rows of them."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpipe.errors import BatchError, MeshError
from jaxpipe.mesh import DATA, axis_size
from jaxpipe.spec import is_traced

PyTree = Any
Batch = Mapping[str, PyTree]


class Feed:
    """Lays batches out over `data`.

    In a process that is the only one of its mesh every array is the whole batch. Where there are
    several, a `jax.Array` that spans processes is the whole batch too, as is a
    `jax.ShapeDtypeStruct`; any other array is what this process has of it: `rows`.

    Attributes:
      spec: how a batch is cut over the mesh.
    """

    def __init__(self, mesh: Mesh) -> None:
        """For the batches of a mesh."""
        self._mesh, self._num_data = mesh, axis_size(mesh, DATA)
        self.spec = PartitionSpec(DATA) if DATA in mesh.axis_names else PartitionSpec()
        self._is_shared = len({device.process_index for device in mesh.devices.flat}) > 1

    def rows(self, size: int) -> slice:
        """The rows of a global batch that this process gives, also to others along `pipe`.

        Args:
          size: rows of the global batch.

        Raises:
          BatchError: `size` cannot be cut over `data`.
          MeshError: this process has no device of the mesh, or none of some copy in between.
        """
        if not self._is_shared:
            return slice(0, size)
        if size % self._num_data:
            raise BatchError(
                f"a batch of {size} cannot be cut over {self._num_data} data ranks; expected a"
                f" multiple of {self._num_data}."
            )
        own, part = self._own, size // self._num_data
        return slice(own.start * part, own.stop * part)

    def abstract(self, batch: Batch) -> dict[str, PyTree]:
        """Shapes and dtypes of the global batch."""
        return jax.tree.map(self._abstract, dict(batch))

    def put(self, batch: Batch) -> dict[str, PyTree]:
        """The global batch on the mesh. What is traced stays as it is."""
        sharding = NamedSharding(self._mesh, self.spec)
        if not self._is_shared:
            return jax.device_put(dict(batch), sharding)

        def put(leaf: Any) -> jax.Array:
            if not self._is_part(leaf):
                return jax.device_put(leaf, sharding)
            shape = self._abstract(leaf).shape
            return jax.make_array_from_process_local_data(sharding, np.asarray(leaf), shape)

        return jax.tree.map(put, dict(batch))

    @functools.cached_property
    def _own(self) -> range:
        """The places on `data` that this process has devices of."""
        grid, here = self._mesh.devices, jax.process_index()
        if DATA in self._mesh.axis_names:
            grid = np.moveaxis(grid, self._mesh.axis_names.index(DATA), 0)
        else:
            grid = grid[None]
        rows = grid.reshape(len(grid), -1)
        own = [i for i, row in enumerate(rows) if any(d.process_index == here for d in row)]
        if not own:
            raise MeshError(
                f"process {here} has no device of the mesh. Use a mesh of all {jax.device_count()}"
                " devices, or start fewer processes."
            )
        if own != list(range(own[0], own[-1] + 1)):
            raise MeshError(
                f"process {here} has devices of the data ranks {own}; expected neighbours. Give"
                " make_mesh(devices=...) in another order."
            )
        return range(own[0], own[-1] + 1)

    def _is_part(self, leaf: Any) -> bool:
        """Whether a leaf is this process's part of a batch, and not all of it."""
        if not self._is_shared or isinstance(leaf, jax.ShapeDtypeStruct) or is_traced(leaf):
            return False
        return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable

    def _abstract(self, leaf: Any) -> jax.ShapeDtypeStruct:
        shape = jnp.shape(leaf)
        if shape and self._is_part(leaf):
            own = len(self._own)
            if shape[0] % own:
                raise BatchError(
                    f"a process's part of a batch has {shape[0]} rows for {own} data ranks;"
                    f" expected a multiple of {own}. Engine.local_rows says which rows to give."
                )
            shape = (shape[0] // own * self._num_data, *shape[1:])
        return jax.ShapeDtypeStruct(shape, jnp.result_type(leaf))
