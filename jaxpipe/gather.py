"""Arrays that span processes, made whole in each of them. All processes call these together."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpipe.mesh import PIPE

PyTree = Any


def spans_processes(array: Any) -> bool:
    """Whether parts of an array are out of this process's reach."""
    return isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    )


def whole(tree: PyTree) -> PyTree:
    """The same arrays; those that span processes one after the other made whole on every device."""

    def gathered(array: Any) -> Any:
        if not spans_processes(array):
            return array
        return _copier(array.sharding.mesh)(array)

    return jax.tree.map(gathered, tree)


def row(buffer: jax.Array, rank: int) -> np.ndarray:
    """A rank's row of a buffer `[ranks, ...]` that is sharded over `pipe`, bit for bit.

    No device gets more than that row: a rank's share is what fits.
    """
    sharding = buffer.sharding
    if not isinstance(sharding, NamedSharding):
        raise TypeError(f"got a buffer with {sharding}, expected a NamedSharding.")
    return np.asarray(_row_reader(sharding.mesh, sharding.spec)(buffer, np.int32(rank)))


@functools.cache
def _copier(mesh: Mesh) -> Any:
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))


@functools.cache
def _row_reader(mesh: Mesh, spec: PartitionSpec) -> Any:
    def read(buffer: jax.Array, rank: jax.Array) -> jax.Array:
        own = buffer[0]
        # As integers: a sum of one value and zeros keeps every bit, also of NaN and -0.
        bits = own if own.dtype == bool else lax.bitcast_convert_type(own, _integer(own.dtype))
        is_here = lax.axis_index(PIPE) == rank
        total = lax.psum(jnp.where(is_here, bits, 0), PIPE)
        return (
            total.astype(bool) if own.dtype == bool else lax.bitcast_convert_type(total, own.dtype)
        )

    inside = jax.shard_map(
        read,
        mesh=mesh,
        in_specs=(spec, PartitionSpec()),
        out_specs=PartitionSpec(*spec[1:]),
        check_vma=False,
    )
    return jax.jit(inside, out_shardings=NamedSharding(mesh, PartitionSpec()))


def _integer(dtype: Any) -> Any:
    return jnp.dtype(f"uint{8 * jnp.dtype(dtype).itemsize}")
