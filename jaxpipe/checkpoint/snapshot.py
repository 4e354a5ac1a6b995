"""The arrays that this process is to write, on the host: a state as it is at one moment.

Of every piece of every leaf one process is the writer: one of those whose devices hold it, chosen
so that all write about the same number of bytes. A process copies what it writes and nothing else.
Rows that are cut over `data` are gathered on the devices first, so much at a time, since a part of
a flat leaf is no block of it.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from jaxpipe.checkpoint.contents import Array, Contents, LogicalTree
from jaxpipe.errors import CheckpointError
from jaxpipe.mesh import PIPE, TENSOR
from jaxpipe.storage import Layout, Placed, axes
from jaxpipe.storage.parts import LARGE, all_gather


class Block(NamedTuple):
    """A block of an array that one process writes.

    Attributes:
      place: where it lies in the array as it is written.
      value: its elements, or what becomes them by `numpy.asarray`.
    """

    place: tuple[slice, ...]
    value: Any


class _Piece(NamedTuple):
    """What one tensor rank has of a leaf of a placed tree, and where it comes from."""

    array: Array
    member: int
    leaf: int
    rank: int
    tensor: int

    @property
    def place(self) -> tuple[int, int]:
        """The devices that hold it: their rank, and their place on `tensor`."""
        return self.rank, self.tensor


def snapshot(contents: Contents) -> dict[str, list[Block]]:
    """This process's blocks, by the names of their arrays. All processes call it together.

    The state may be donated or deleted as soon as this returns.
    """
    blocks: dict[str, list[Block]] = {array.name: [] for array in contents.arrays}
    for number, node in enumerate(contents.nodes):
        if isinstance(node, Placed):
            for piece, value in _values(node, _own_pieces(contents, number, node)):
                blocks[piece.array.name].append(Block(_index(node.layout, piece), value))
        elif isinstance(node, LogicalTree) and jax.process_index() == 0:
            for array, block in _logical_blocks(contents, number, node):
                blocks[array.name].append(block)
    for array in contents.arrays:
        member, node = array.members[0], contents.nodes[array.members[0].node]
        if isinstance(node, LogicalTree):
            continue
        free = not isinstance(node, Placed) or node.layout.leaves[member.leaf or 0].rank is None
        if free and jax.process_index() == 0:
            value = node if member.leaf is None else _shared(node, member.leaf)
            blocks[array.name].append(Block((), _on_host(value, array.name)))
    return blocks


def _logical_blocks(
    contents: Contents, number: int, node: LogicalTree
) -> Iterator[tuple[Array, Block]]:
    leaves = jax.tree.leaves(dict(node.layers))
    for array in contents.arrays:
        for i, member in enumerate(array.members):
            if member.node == number and member.leaf is not None:
                place = (slice(i, i + 1), *(slice(0, size) for size in array.shape))
                yield array, Block(place, leaves[member.leaf])


def _shared(node: Placed, leaf: int) -> Any:
    """A leaf of no layer."""
    free = [i for i, spec in enumerate(node.layout.leaves) if spec.rank is None]
    return node.shared[free.index(leaf)]


def _on_host(value: Any, name: str) -> np.ndarray:
    whole = not isinstance(value, jax.Array) or (
        value.is_fully_addressable or value.is_fully_replicated
    )
    if not whole:
        raise CheckpointError(
            f"{name} spans processes and is no placed tree; expected a replicated array."
        )
    return np.array(value)


def _own_pieces(contents: Contents, number: int, node: Placed) -> list[_Piece]:
    """The pieces of a placed tree that this process writes."""
    if not node.buffers:
        return []
    layout, holders = node.layout, _holders(node)
    pieces = []
    for array in contents.arrays:
        for i, member in enumerate(array.members):
            if member.node != number or member.leaf is None:
                continue
            rank = layout.leaves[member.leaf].rank
            if rank is not None:
                count = layout.cut_of(member.leaf).num_tensor
                pieces += [_Piece(array, i, member.leaf, rank, t) for t in range(count)]
    bytes_of = lambda p: layout.cut_of(p.leaf).size * p.array.dtype.itemsize
    load: dict[int, int] = {}
    own = []
    for piece in sorted(pieces, key=bytes_of, reverse=True):
        writer = min(holders[piece.place], key=lambda process: (load.get(process, 0), process))
        load[writer] = load.get(writer, 0) + bytes_of(piece)
        if writer == jax.process_index():
            own.append(piece)
    return own


def _holders(node: Placed) -> dict[tuple[int, int], list[int]]:
    """{(rank, place on `tensor`): processes that hold its rows}."""
    found: dict[tuple[int, int], set[int]] = {}
    mesh = _mesh(node)
    for place, device in np.ndenumerate(mesh.devices):
        at = dict(zip(mesh.axis_names, place, strict=True))
        key = at[PIPE], at.get(TENSOR, 0)
        found.setdefault(key, set()).add(device.process_index)
    return {key: sorted(processes) for key, processes in found.items()}


def _mesh(node: Placed) -> Mesh:
    return next(iter(node.buffers.values())).sharding.mesh


def _values(node: Placed, own: list[_Piece]) -> Iterator[tuple[_Piece, np.ndarray]]:
    """Each piece's elements, in its shape."""
    layout = node.layout
    values = {}
    for piece in own:
        values[piece] = np.empty(layout.cut_of(piece.leaf).size, piece.array.dtype)
    for name in layout.buffers:
        here = [p for p in own if layout.homes[p.leaf][p.rank].buffer == name]
        for start, rows in _rows(node, name, [p.place for p in here]):
            for piece in here:
                _copy(layout, piece, rows[piece.place], start, values[piece])
    for piece, flat in values.items():
        yield piece, flat.reshape(layout.cut_of(piece.leaf).piece)


def _index(layout: Layout, piece: _Piece) -> tuple[slice, ...]:
    """Where a piece lies in the array as it is written."""
    cut = layout.cut_of(piece.leaf)
    index = [slice(0, size) for size in cut.shape]
    if cut.tensor_dim is not None:
        size = cut.piece[cut.tensor_dim]
        index[cut.tensor_dim] = slice(piece.tensor * size, (piece.tensor + 1) * size)
    return (slice(piece.member, piece.member + 1), *index) if piece.array.layered else (*index,)


def _copy(layout: Layout, piece: _Piece, row: np.ndarray, start: int, out: np.ndarray) -> None:
    """Copies what `row` has of a piece: `[parts, n]`, of each part the elements from `start` on."""
    home = layout.homes[piece.leaf][piece.rank]
    for part in range(layout.num_parts):
        for extent in layout.cut.extents(piece.leaf, home, part):
            first = max(extent.row, start)
            last = min(extent.row + extent.size, start + row.shape[1])
            if first < last:
                at = extent.leaf + first - extent.row
                out[at : at + last - first] = row[part, first - start : last - start]


def _rows(
    node: Placed, name: str, places: list[tuple[int, int]]
) -> Iterator[tuple[int, Mapping[tuple[int, int], np.ndarray]]]:
    """A buffer's rows on the host, `[parts, n]` by place, and the first element of each part."""
    layout, buffer = node.layout, node.buffers[name]
    spec = layout.buffers[name]
    if not layout.is_cut:
        found = _local_rows(buffer, axes(layout, name), set(places))
        yield 0, {place: row.reshape(spec.parts, -1) for place, row in found.items()}
        return
    step = max(1, LARGE // (layout.num_parts * spec.dtype.itemsize))
    gather = _gatherer(buffer.sharding.mesh, axes(layout, name), min(step, spec.part_size))
    for first in range(0, spec.part_size, step):
        # The last takes in some of the one before.
        start = min(first, max(0, spec.part_size - step))
        found = _local_rows(gather(buffer, start), axes(layout, name)[:-1], set(places))
        yield start, found


def _local_rows(
    buffer: jax.Array, names: tuple[str, ...], places: set[tuple[int, int]]
) -> dict[tuple[int, int], np.ndarray]:
    """Rows of an array whose first dims are `names`, one of each place."""
    here: dict[tuple[int, int], jax.Array] = {}
    for shard in buffer.addressable_shards:
        at = dict(zip(names, (s.start or 0 for s in shard.index), strict=False))
        here.setdefault((at[PIPE], at.get(TENSOR, 0)), shard.data)
    return {place: np.asarray(here[place])[(0,) * len(names)] for place in places}


@functools.cache
def _gatherer(mesh: Mesh, names: tuple[str, ...], size: int) -> Any:
    """`[.., part]` of each data rank to `[.., parts, size]`, from an element on, on all of them."""

    def gather(rows: jax.Array, start: jax.Array) -> jax.Array:
        part = lax.dynamic_slice_in_dim(rows.reshape(-1), start, size)
        return all_gather(part).reshape(*(1 for _ in names[:-1]), -1, size)

    inside = jax.shard_map(
        gather, mesh=mesh, in_specs=(PartitionSpec(*names), PartitionSpec()),
        out_specs=PartitionSpec(*names[:-1]), check_vma=False,
    )  # fmt: skip
    return jax.jit(lambda rows, start: inside(rows, jnp.int32(start)))
