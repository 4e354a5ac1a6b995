"""A logical tree as placed arrays, and the way there and back."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpipe.errors import JaxpipeError
from jaxpipe.gather import row as gathered_row
from jaxpipe.gather import spans_processes
from jaxpipe.mesh import DATA, PIPE, TENSOR
from jaxpipe.spec import describe, is_traced
from jaxpipe.storage.layout import Cut, Layout

PyTree = Any


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
      buffers: {name: array `[ranks, ...]`, sharded over `pipe`}; arrays of leaves that are cut over
        `tensor`, and all where rows are cut over `data`, have a dim more for each, sharded too.
      shared: leaves of no layer, replicated.
      layout: where each leaf is (static).
    """

    buffers: dict[str, Any]
    shared: tuple[Any, ...]
    layout: Layout

    def __repr__(self) -> str:
        return f"Placed({len(self.layout.leaves)} leaves in {len(self.buffers)} buffers)"


def axes(layout: Layout, name: str) -> tuple[str, ...]:
    """The mesh axes that a buffer is cut over: its first dims, before those of a row."""
    cut = layout.buffers[name].cut
    return (PIPE, *((TENSOR,) if cut else ()), *((DATA,) if layout.is_cut else ()))


def specs(layout: Layout) -> Placed:
    """A `Placed` of partition specs: for `shard_map`, and under a mesh for shardings."""
    num_shared = sum(leaf.rank is None for leaf in layout.leaves)
    buffers = {name: PartitionSpec(*axes(layout, name)) for name in layout.buffers}
    return Placed(buffers, (PartitionSpec(),) * num_shared, layout)


def abstract_placed(layout: Layout, mesh: Mesh) -> Placed:
    """Shapes, dtypes and shardings, for restoring a checkpoint or compiling ahead."""
    buffers = {
        name: jax.ShapeDtypeStruct(
            (*_counts(layout, name), *layout.row_shape(name)),
            spec.dtype,
            sharding=NamedSharding(mesh, PartitionSpec(*axes(layout, name))),
        )
        for name, spec in layout.buffers.items()
    }
    everywhere = NamedSharding(mesh, PartitionSpec())
    shared = tuple(
        jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere)
        for leaf in layout.leaves
        if leaf.rank is None
    )
    return Placed(buffers, shared, layout)


def place(layout: Layout, mesh: Mesh, logical: PyTree) -> Placed:
    """Puts a logical tree onto the mesh; each device receives its own rows only.

    Raises:
      JaxpipeError: when the tree, a shape or a dtype differs from the layout's.
    """
    leaves = _matching_leaves(layout, logical)
    target = abstract_placed(layout, mesh)

    @functools.cache
    def whole_row(name: str, rank: int, tensor: int) -> np.ndarray:
        """`[parts, elements of a part]`."""
        spec = layout.buffers[name]
        out = np.zeros((spec.parts, spec.part_size), spec.dtype)
        for i, homes in enumerate(layout.homes):
            home = homes.get(rank)
            if home is not None and home.buffer == name:
                cut = layout.cut_of(i)
                flat = _piece(np.asarray(leaves[i]), cut, tensor).reshape(-1)
                part = np.zeros((spec.parts, cut.part_size), spec.dtype)
                part.reshape(-1)[: flat.size] = flat
                out[:, home.offset : home.offset + cut.part_size] = part
        return out

    def build(name: str, target: jax.ShapeDtypeStruct) -> jax.Array:
        counts, shape = _counts(layout, name), layout.row_shape(name)

        def rows_at(index: Any) -> np.ndarray:
            places = [range(*s.indices(n)) for s, n in zip(index, counts, strict=False)]
            rows = []
            for place in itertools.product(*places):
                where = dict(zip(axes(layout, name), place, strict=True))
                row = whole_row(name, where[PIPE], where.get(TENSOR, 0))
                rows.append(row[where[DATA]] if layout.is_cut else row)
            return np.stack(rows).reshape(*map(len, places), *shape)

        return jax.make_array_from_callback(target.shape, target.sharding, rows_at)

    buffers = {}
    for name, spec in target.buffers.items():
        buffers[name] = build(name, spec)
        whole_row.cache_clear()  # never more than one buffer of the model on the host
    free = [x for x, leaf in zip(leaves, layout.leaves, strict=True) if leaf.rank is None]
    shared = [jax.device_put(x, s.sharding) for x, s in zip(free, target.shared, strict=True)]
    return Placed(buffers, tuple(shared), layout)


def logical(placed: Placed) -> PyTree:
    """The logical tree of placed arrays: NumPy leaves on the host, tracers inside `jax.jit`.

    Where the arrays span processes, all of them call it together, and each gets everything.
    """
    layout, shared = placed.layout, iter(placed.shared)
    gathered = functools.cache(lambda name, rank: gathered_row(placed.buffers[name], rank))

    @functools.cache
    def whole_row(name: str, rank: int, tensor: int) -> Any:
        """`[parts, elements of a part]`."""
        spec, where = layout.buffers[name], {PIPE: rank, TENSOR: tensor}
        places = range(spec.parts) if layout.is_cut else [0]
        rows = []
        for part in places:
            place = tuple((where | {DATA: part})[axis] for axis in axes(layout, name))
            rows.append(_row(placed.buffers[name], name, place, gathered).reshape(-1))
        join = jnp.concatenate if is_traced(rows[0]) else np.concatenate
        return (join(rows) if len(rows) > 1 else rows[0]).reshape(spec.parts, -1)

    out = []
    for i, (leaf, homes) in enumerate(zip(layout.leaves, layout.homes, strict=True)):
        if leaf.rank is None:
            value = next(shared)
            out.append(value if is_traced(value) else np.asarray(value))
            continue
        home, cut = homes[leaf.rank], layout.cut_of(i)
        pieces = [
            whole_row(home.buffer, leaf.rank, t)[:, home.offset : home.offset + cut.part_size]
            .reshape(-1)[: cut.size]
            .reshape(cut.piece)
            for t in range(cut.num_tensor)
        ]
        join = jnp.concatenate if is_traced(pieces[0]) else np.concatenate
        out.append(join(pieces, cut.tensor_dim) if len(pieces) > 1 else pieces[0])
    return jax.tree.unflatten(layout.treedef, out)


def _row(
    buffer: Any, name: str, place: tuple[int, ...], gathered: Callable[[str, int], Any]
) -> Any:
    """A row of a buffer, of the rank and so on that `place` says."""
    if is_traced(buffer) or not isinstance(buffer, jax.Array):
        return buffer[place]
    if spans_processes(buffer):
        return gathered(name, place[0])[place[1:]]
    for shard in buffer.addressable_shards:
        starts = [s.indices(n)[:2] for s, n in zip(shard.index, buffer.shape, strict=True)]
        here = list(zip(place, starts, strict=False))
        if all(start <= at < stop for at, (start, stop) in here):
            return np.asarray(shard.data)[tuple(at - start for at, (start, _) in here)]
    raise JaxpipeError(f"{name}{list(place)} is on no device of this process.")


def _counts(layout: Layout, name: str) -> tuple[int, ...]:
    """The sizes of a buffer's first dims."""
    sizes = {PIPE: layout.num_ranks, TENSOR: layout.num_tensor, DATA: layout.num_parts}
    return tuple(sizes[axis] for axis in axes(layout, name))


def _piece(leaf: np.ndarray, cut: Cut, tensor: int) -> np.ndarray:
    """What a tensor rank has of a leaf."""
    if cut.tensor_dim is None:
        return leaf
    return np.split(leaf, cut.num_tensor, cut.tensor_dim)[tensor]


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
