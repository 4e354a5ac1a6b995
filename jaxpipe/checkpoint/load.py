"""From a checkpoint onto any mesh: each device reads its own rows, a block at a time.

Rows are made in place on their devices, small ones on the host before: a process needs its own
share of the state and one block more.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore as ts
from jax import lax

from jaxpipe.checkpoint.blocks import Box, boxes
from jaxpipe.checkpoint.contents import Array, Contents, Member
from jaxpipe.checkpoint.manifest import Entry, Manifest
from jaxpipe.checkpoint.zarr import SMALL, spec
from jaxpipe.errors import CorruptCheckpointError
from jaxpipe.mesh import DATA, PIPE, TENSOR
from jaxpipe.storage import Placed, axes

BLOCK_BYTES = SMALL  # rows of so many are made on the host
_INT32 = 2**31

PyTree = Any


class Source(NamedTuple):
    """Where a member is to be read from.

    Attributes:
      name: of the array.
      entry: what the manifest says of it.
      at: the member's place along its first dim.
    """

    name: str
    entry: Entry
    at: int


class Reader:
    """Reads blocks of a checkpoint's arrays.

    Args:
      folder: with the arrays.
      manifest: of the checkpoint.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._manifest = folder, manifest
        self._stores: dict[str, Any] = {}
        # One block is read at a time: more threads would only keep more memory.
        few = {name: {"limit": 1} for name in ("file_io_concurrency", "data_copy_concurrency")}
        self._context = ts.Context(few)

    def read(self, source: Source, index: Sequence[slice]) -> np.ndarray:
        """A block of a member.

        Raises:
          CorruptCheckpointError: it is not as it was written.
        """
        name = source.name
        at = (slice(source.at, source.at + 1),) if source.entry.layered else ()
        try:
            if name not in self._stores:
                settings = ts.Spec(spec(self._folder, source.entry.stored(name)))
                self._stores[name] = ts.open(
                    settings, open=True, read=True, assume_metadata=True, context=self._context
                ).result()
            found = self._stores[name][(*at, *index)].read().result()
        except (ValueError, OSError) as error:
            raise CorruptCheckpointError(f"{self._folder / name} cannot be read: {error}") from None
        return found.reshape(found.shape[1:]) if source.entry.layered else found


def sources(manifest: Manifest) -> dict[str, Source]:
    """{key of a member: where it is}."""
    return {
        key: Source(name, entry, i)
        for name, entry in manifest.arrays.items()
        for i, key in enumerate(entry.keys)
    }


def load(contents: Contents, found: Mapping[str, Source], reader: Reader) -> PyTree:
    """A state on its devices.

    Args:
      contents: of a state like it: shapes, dtypes and shardings; where members are not `found`, its
        own values stay.
      found: {key of a member: where to read it}.
      reader: of the checkpoint.
    """
    of_node: dict[int, list[tuple[Array, Member]]] = {}
    for array in contents.arrays:
        for member in array.members:
            of_node.setdefault(member.node, []).append((array, member))
    nodes = [
        _loaded(node, of_node.get(i, []), found, reader) for i, node in enumerate(contents.nodes)
    ]
    return jax.tree.unflatten(contents.treedef, nodes)


def _loaded(
    node: Any, members: list[tuple[Array, Member]], found: Mapping[str, Source], reader: Reader
) -> Any:
    if not isinstance(node, Placed):
        [(_, member)] = members
        return _everywhere(node, found[member.key], reader) if member.key in found else node
    wanted = {
        member.leaf: found[member.key]
        for _, member in members
        if member.leaf is not None and member.key in found
    }
    buffers = {name: _buffer(node, name, wanted, reader) for name in node.buffers}
    free = [i for i, leaf in enumerate(node.layout.leaves) if leaf.rank is None]
    shared = [
        _everywhere(value, wanted[i], reader) if i in wanted else value
        for i, value in zip(free, node.shared, strict=True)
    ]
    return Placed(buffers, tuple(shared), node.layout)


def _everywhere(like: Any, source: Source, reader: Reader) -> Any:
    """An array that is no part of a row."""
    value = np.array(reader.read(source, [slice(0, n) for n in like.shape]), like.dtype)
    sharding = getattr(like, "sharding", None)
    if sharding is None:
        return value if isinstance(like, np.ndarray) else jnp.asarray(value)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _buffer(node: Placed, name: str, wanted: Mapping[int, Source], reader: Reader) -> jax.Array:
    """A buffer, each row made on the devices that hold it."""
    target, layout = node.buffers[name], node.layout
    places: dict[tuple[int, ...], list[Any]] = {}
    for device, index in target.sharding.addressable_devices_indices_map(target.shape).items():
        place = tuple(s.start or 0 for s in index[: len(axes(layout, name))])
        places.setdefault(place, []).append(device)
    here = {
        leaf
        for leaf, homes in enumerate(layout.homes)
        if any(home.buffer == name for home in homes.values())
    }
    before = None if here <= set(wanted) else target
    made = []
    for place, devices in places.items():
        blocks = _blocks(node, name, place, wanted, reader)
        made += _rows(target, devices, blocks, before)
    return jax.make_array_from_single_device_arrays(target.shape, target.sharding, made)


def _rows(
    target: Any, devices: Sequence[Any], blocks: Iterator[tuple[int, np.ndarray]], before: Any
) -> list[jax.Array]:
    """The same row on each of these devices: of zeros, or of what was there, and of blocks."""
    shape = target.sharding.shard_shape(target.shape)
    size = math.prod(shape)
    if size * target.dtype.itemsize <= BLOCK_BYTES:
        host = np.zeros(size, target.dtype)
        if before is not None:
            host[:] = np.asarray(_row_on(before, devices[0])).reshape(-1)
        for at, value in blocks:
            host[at : at + value.size] = value
        return [jax.device_put(host.reshape(shape), device) for device in devices]
    rows = [
        jnp.zeros(size, target.dtype, device=device)
        if before is None
        else jnp.array(_row_on(before, device).reshape(-1), copy=True)
        for device in devices
    ]
    for at, value in blocks:
        # Not all blocks at once: the host would be ahead of the devices.
        rows = jax.block_until_ready([_put(row, value, at) for row in rows])
    return [_shaped(row, shape) for row in rows]


def _row_on(buffer: jax.Array, device: Any) -> jax.Array:
    [row] = [shard.data for shard in buffer.addressable_shards if shard.device == device]
    return row


def _blocks(
    node: Placed, name: str, place: tuple[int, ...], wanted: Mapping[int, Source], reader: Reader
) -> Iterator[tuple[int, np.ndarray]]:
    """Where in a flat row to put what."""
    layout = node.layout
    at = dict(zip(axes(layout, name), place, strict=True))
    for leaf, source in wanted.items():
        most = math.prod(source.entry.chunk)  # a chunk is read as a whole
        home = layout.homes[leaf].get(at[PIPE])
        if home is None or home.buffer != name:
            continue
        cut = layout.cut_of(leaf)
        for extent in layout.extents(leaf, home, at.get(DATA, 0)):
            for box in boxes(cut.piece, extent.leaf, extent.size, most):
                index = _moved(box, cut.tensor_dim, cut.piece, at.get(TENSOR, 0))
                value = reader.read(source, index).reshape(-1)
                yield extent.row + box.first - extent.leaf, value


def _moved(box: Box, dim: int | None, piece: Sequence[int], tensor: int) -> list[slice]:
    """A block of a piece as one of the whole leaf."""
    index = list(box.place)
    if dim is not None:
        start = tensor * piece[dim]
        index[dim] = slice(index[dim].start + start, index[dim].stop + start)
    return index


def _put(row: jax.Array, value: np.ndarray, at: int) -> jax.Array:
    """The row with a block in it, in place."""
    block = jax.device_put(value, row.device).astype(row.dtype)
    if row.size < _INT32:
        return _update(row, block, np.int32(at))
    return _update_at(row, block, at)


def _updated(row: jax.Array, block: jax.Array, at: Any) -> jax.Array:
    return lax.dynamic_update_slice(row, block, (at,))


_update = jax.jit(_updated, donate_argnums=0)
_shaped = jax.jit(lax.reshape, donate_argnums=0, static_argnums=1)
# JAX counts in int32: a longer row takes its places as constants.
_update_at = jax.jit(_updated, donate_argnums=0, static_argnums=2)
