"""Leaves in the rows of one device: read, written, added to."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpipe.storage.sharing import Home

Rows = Mapping[str, jax.Array]  # one device's row of every buffer


def read(rows: Rows, home: Home, shape: tuple[int, ...]) -> jax.Array:
    """One leaf out of its row: of a whole row its shape, of a cut one `(part size,)`."""
    row, size = rows[home.buffer], int(np.prod(shape))
    if row.size == size:
        return row.reshape(shape)
    found = lax.slice(row, *_bounds(row, home, size))
    if found.size > size:  # zeros behind it fill up its last part
        found = lax.slice(found.reshape(-1), (0,), (size,))
    return found.reshape(shape)


def write(rows: dict[str, jax.Array], home: Home, value: jax.Array) -> None:
    """Puts one leaf into its row, in the caller's own dict."""
    row = rows[home.buffer]
    value = value.astype(row.dtype)
    if row.size == value.size:
        rows[home.buffer] = value.reshape(row.shape)
    else:
        start, _ = _bounds(row, home, value.size)
        rows[home.buffer] = lax.dynamic_update_slice(row, _fitted(row, value), start)


def accumulate(rows: dict[str, jax.Array], home: Home, value: jax.Array) -> None:
    """Adds to one leaf of a row, in the row's dtype."""
    row = rows[home.buffer]
    value = value.astype(row.dtype)
    if row.size == value.size:
        # The sum takes the row's shape: XLA adds in place where the accumulator is not reshaped.
        rows[home.buffer] = row + value.reshape(row.shape)
    else:
        start, end = _bounds(row, home, value.size)
        part = lax.slice(row, start, end)
        rows[home.buffer] = lax.dynamic_update_slice(row, part + _fitted(row, value), start)


def in_parts(value: jax.Array, parts: int) -> jax.Array:
    """An array as `[parts, size of a part]`, with zeros behind it where it takes some."""
    flat = value.reshape(-1)
    missing = -flat.size % parts
    if missing:
        flat = jnp.concatenate([flat, jnp.zeros(missing, flat.dtype)])
    return flat.reshape(parts, -1)


def _bounds(row: jax.Array, home: Home, size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Where a leaf begins and ends in a pack: flat, or `[parts, size of a part]`."""
    if row.ndim == 1:
        return (home.offset,), (home.offset + size,)
    return (0, home.offset), (row.shape[0], home.offset + -(-size // row.shape[0]))


def _fitted(row: jax.Array, value: jax.Array) -> jax.Array:
    """A leaf in the shape that it has in a pack."""
    return value.reshape(-1) if row.ndim == 1 else in_parts(value, row.shape[0])
