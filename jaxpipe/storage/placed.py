"""A logical tree as placed arrays, and the way there and back."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpipe.errors import JaxpipeError
from jaxpipe.gather import row as gathered_row
from jaxpipe.gather import spans_processes
from jaxpipe.mesh import PIPE
from jaxpipe.spec import describe, is_traced
from jaxpipe.storage.layout import Layout
from jaxpipe.storage.sharing import Home

PyTree = Any
Rows = Mapping[str, jax.Array]  # one rank's row of every buffer


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["buffers", "shared"],
    meta_fields=["layout"],
)
@dataclasses.dataclass(frozen=True)
class Placed:
    """Arrays on the mesh that hold a logical tree.

    Elementwise functions of the arrays, and sums over them, mean what they mean on the logical
    tree: padding is zero in gradients, and a tied leaf counts once.

    Attributes:
      buffers: {name: array `[ranks, ...]`, sharded over `pipe`}.
      shared: leaves of no layer, replicated.
      layout: where each leaf is (static).
    """

    buffers: dict[str, Any]
    shared: tuple[Any, ...]
    layout: Layout

    def __repr__(self) -> str:
        return f"Placed({len(self.layout.leaves)} leaves in {len(self.buffers)} buffers)"


def read(rows: Rows, home: Home, shape: tuple[int, ...]) -> jax.Array:
    """One leaf out of its rank's row."""
    row = rows[home.buffer]
    size = int(np.prod(shape))
    if row.size == size:
        return row.reshape(shape)
    return lax.slice(row, (home.offset,), (home.offset + size,)).reshape(shape)


def write(rows: dict[str, jax.Array], home: Home, value: jax.Array) -> None:
    """Puts one leaf into its rank's row, in the caller's own dict."""
    row = rows[home.buffer]
    value = value.astype(row.dtype)
    if row.size == value.size:
        rows[home.buffer] = value.reshape(row.shape)
    else:
        rows[home.buffer] = lax.dynamic_update_slice(row, value.reshape(-1), (home.offset,))


def accumulate(rows: dict[str, jax.Array], home: Home, value: jax.Array) -> None:
    """Adds to one leaf of a rank's row, in the row's dtype."""
    row = rows[home.buffer]
    value = value.astype(row.dtype)
    if row.size == value.size:
        # The sum takes the row's shape: XLA adds in place where the accumulator is not reshaped.
        rows[home.buffer] = row + value.reshape(row.shape)
    else:
        part = lax.slice(row, (home.offset,), (home.offset + value.size,))
        rows[home.buffer] = lax.dynamic_update_slice(row, part + value.reshape(-1), (home.offset,))


def specs(layout: Layout) -> Placed:
    """A `Placed` of partition specs: for `shard_map`, and under a mesh for shardings."""
    num_shared = sum(leaf.rank is None for leaf in layout.leaves)
    return Placed(
        dict.fromkeys(layout.buffers, PartitionSpec(PIPE)), (PartitionSpec(),) * num_shared, layout
    )


def abstract_placed(layout: Layout, mesh: Mesh) -> Placed:
    """Shapes, dtypes and shardings, for restoring a checkpoint or compiling ahead."""
    ranked, everywhere = (NamedSharding(mesh, s) for s in (PartitionSpec(PIPE), PartitionSpec()))
    buffers = {
        name: jax.ShapeDtypeStruct((layout.num_ranks, *b.shape), b.dtype, sharding=ranked)
        for name, b in layout.buffers.items()
    }
    shared = tuple(
        jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere)
        for leaf in layout.leaves
        if leaf.rank is None
    )
    return Placed(buffers, shared, layout)


def place(layout: Layout, mesh: Mesh, logical: PyTree) -> Placed:
    """Puts a logical tree onto the mesh; each device receives its own rank's row only.

    Raises:
      JaxpipeError: when the tree, a shape or a dtype differs from the layout's.
    """
    leaves = _matching_leaves(layout, logical)
    target = abstract_placed(layout, mesh)

    @functools.cache
    def row(name: str, rank: int) -> np.ndarray:
        spec = layout.buffers[name]
        out = np.zeros(int(np.prod(spec.shape)), spec.dtype)
        for leaf, homes in zip(leaves, layout.homes, strict=True):
            home = homes.get(rank)
            if home is not None and home.buffer == name:
                flat = np.asarray(leaf).reshape(-1)
                out[home.offset : home.offset + flat.size] = flat
        return out.reshape(1, *spec.shape)

    def build(name: str, spec: jax.ShapeDtypeStruct) -> jax.Array:
        def rows_at(index: Any) -> np.ndarray:
            ranks = range(*index[0].indices(layout.num_ranks))
            return np.concatenate([row(name, rank) for rank in ranks])

        return jax.make_array_from_callback(spec.shape, spec.sharding, rows_at)

    buffers = {}
    for name, spec in target.buffers.items():
        buffers[name] = build(name, spec)
        row.cache_clear()  # never more than one buffer of the model on the host
    free = [x for x, leaf in zip(leaves, layout.leaves, strict=True) if leaf.rank is None]
    shared = [jax.device_put(x, s.sharding) for x, s in zip(free, target.shared, strict=True)]
    return Placed(buffers, tuple(shared), layout)


def logical(placed: Placed) -> PyTree:
    """The logical tree of placed arrays: NumPy leaves on the host, tracers inside `jax.jit`.

    Where the arrays span processes, all of them call it together, and each gets everything.
    """
    layout, shared = placed.layout, iter(placed.shared)

    @functools.cache
    def row(name: str, rank: int) -> Any:
        buffer = placed.buffers[name]
        if is_traced(buffer) or not isinstance(buffer, jax.Array):
            return buffer[rank].reshape(-1)
        if spans_processes(buffer):
            return gathered_row(buffer, rank).reshape(-1)
        for shard in buffer.addressable_shards:
            ranks = range(*shard.index[0].indices(layout.num_ranks))
            if rank in ranks:
                return np.asarray(shard.data)[rank - ranks.start].reshape(-1)
        raise JaxpipeError(f"rank {rank} of {name} is on no device of this process.")

    out = []
    for leaf, homes in zip(layout.leaves, layout.homes, strict=True):
        if leaf.rank is None:
            value = next(shared)
            out.append(value if is_traced(value) else np.asarray(value))
            continue
        home = homes[leaf.rank]
        out.append(
            row(home.buffer, leaf.rank)[home.offset : home.offset + leaf.size].reshape(leaf.shape)
        )
    return jax.tree.unflatten(layout.treedef, out)


def _matching_leaves(layout: Layout, tree: PyTree) -> list[Any]:
    leaves, treedef = jax.tree.flatten(tree)
    if treedef != layout.treedef:
        have = {jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)}
        want = {leaf.path for leaf in layout.leaves}
        raise JaxpipeError(
            f"the tree does not fit the model: missing {sorted(want - have) or 'nothing'}, extra"
            f" {sorted(have - want) or 'nothing'}. Give a tree as model.init makes it: one entry"
            " for each layer that owns parameters, by its name."
        )
    for leaf, spec in zip(leaves, layout.leaves, strict=True):
        if jnp.shape(leaf) != spec.shape or jnp.result_type(leaf) != spec.dtype:
            got = describe(jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)))
            want = describe(jax.ShapeDtypeStruct(spec.shape, spec.dtype))
            raise JaxpipeError(
                f"{spec.path} is {got}; the model has {want}. Reshape or cast the leaf, or change"
                " the layer."
            )
    return leaves
