"""Rows between whole and cut over `data`: a part taken, parts gathered, sums scattered.

All of it inside `shard_map`, on every row at once. Each dtype travels in few large calls: rows are
laid side by side, as `[parts, elements of a part]`, until they make up `LARGE` bytes.
"""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jaxpipe.mesh import DATA
from jaxpipe.storage.layout import Layout
from jaxpipe.storage.rows import Rows

LARGE = 32 * 2**20  # bytes of whole rows that travel in one call; a larger row travels alone


def own_part(layout: Layout, rows: Rows) -> dict[str, jax.Array]:
    """This data rank's part of whole rows: no communication."""
    return {name: take_own(_matrix(layout, name, rows[name])) for name in layout.buffers}


def gather_parts(layout: Layout, rows: Rows) -> dict[str, jax.Array]:
    """Cut rows made whole on every data rank."""
    parts = {name: rows[name][: layout.buffers[name].part_size] for name in layout.buffers}
    gathered = together(list(parts.values()), layout.num_parts, all_gather)
    pairs = zip(layout.buffers.items(), gathered, strict=True)
    return {name: found.reshape(spec.shape) for (name, spec), found in pairs}


def scatter_sums(layout: Layout, rows: Rows) -> dict[str, jax.Array]:
    """The sum of whole rows over the data ranks, each with its own part."""
    matrices = [_matrix(layout, name, rows[name]) for name in layout.buffers]
    summed = together(matrices, layout.num_parts, reduce_scatter)
    return dict(zip(layout.buffers, summed, strict=True))


def put_beginning(rows: Rows, new: Rows) -> dict[str, jax.Array]:
    """Rows with another beginning of each part: frozen leaves lie behind the trained ones."""
    out = dict(rows)
    for name, row in new.items():
        if row.size == rows[name].size:
            out[name] = row.reshape(rows[name].shape)
        else:
            out[name] = lax.dynamic_update_slice(rows[name], row, (0,) * row.ndim)
    return out


def take_own(matrix: jax.Array) -> jax.Array:
    """This data rank's part `[n]` of `[parts, n]`."""
    return lax.dynamic_index_in_dim(matrix, lax.axis_index(DATA), 0, keepdims=False)


def all_gather(part: jax.Array) -> jax.Array:
    """`[n]` of each data rank to `[parts, n]`."""
    return lax.all_gather(part, DATA)


def reduce_scatter(matrix: jax.Array) -> jax.Array:
    """`[parts, n]` to the sum `[n]` of this data rank's part."""
    return lax.psum_scatter(matrix, DATA, scatter_dimension=0)


def together(
    arrays: Sequence[jax.Array], parts: int, move: Callable[[jax.Array], jax.Array]
) -> list[jax.Array]:
    """`move` of each of the arrays, which differ in their last dim, in few calls."""
    out: dict[int, jax.Array] = {}
    for indices in _bundles(arrays, parts):
        given = [arrays[i] for i in indices]
        moved = move(jnp.concatenate(given, axis=-1) if len(given) > 1 else given[0])
        end = 0
        for i, x in zip(indices, given, strict=True):
            out[i] = lax.slice_in_dim(moved, end, end + x.shape[-1], axis=-1)
            end += x.shape[-1]
    return [out[i] for i in range(len(arrays))]


def _bundles(arrays: Sequence[jax.Array], parts: int) -> Iterator[list[int]]:
    """Indices of arrays of one dtype that travel together."""
    by_dtype: dict[object, list[int]] = {}
    for i, x in enumerate(arrays):
        by_dtype.setdefault(x.dtype, []).append(i)
    for indices in by_dtype.values():
        bundle, total = [], 0
        for i in indices:
            size = arrays[i].shape[-1] * parts * arrays[i].dtype.itemsize
            if bundle and total + size > LARGE:
                yield bundle
                bundle, total = [], 0
            bundle.append(i)
            total += size
        if bundle:
            yield bundle


def _matrix(layout: Layout, name: str, row: jax.Array) -> jax.Array:
    """A whole row as `[parts, elements of a part]`, as much of it as the layout has."""
    return row.reshape(layout.num_parts, -1)[:, : layout.buffers[name].part_size]
