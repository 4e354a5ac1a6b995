"""Tied leaves: the owner's value goes out before the loop, gradients come home after it.

At rest the owner's rank holds the only copy that counts; the homes on other ranks are room for the
step. So a gradient, an optimizer state or a norm sees each parameter once.
"""

import jax
from jax import lax

from jaxpipe.mesh import PIPE
from jaxpipe.storage.layout import Layout, LeafSpec
from jaxpipe.storage.rows import Rows, read, write


def _copied(layout: Layout) -> list[tuple[int, LeafSpec]]:
    return [(i, leaf) for i, leaf in enumerate(layout.leaves) if leaf.copies]


def send_copies(layout: Layout, rows: Rows) -> dict[str, jax.Array]:
    """Inside `shard_map`: every rank of a tie gets the owner's value. No ties, no cost."""
    rank, rows = lax.axis_index(PIPE), dict(rows)
    for i, leaf in _copied(layout):
        value = read(rows, layout.homes[i][_owner(leaf)], layout.shape_of(i))
        for copy in leaf.copies:
            home = layout.homes[i][copy]
            arrived = lax.ppermute(value, PIPE, [(_owner(leaf), copy)])
            mine = read(rows, home, layout.shape_of(i))
            write(rows, home, lax.select(rank == copy, arrived, mine))
    return rows


def collect_gradients(layout: Layout, rows: Rows) -> dict[str, jax.Array]:
    """Inside `shard_map`: the owner's gradient becomes the sum over the tie, the copies' zero."""
    rank, rows = lax.axis_index(PIPE), dict(rows)
    for i, leaf in _copied(layout):
        for copy in leaf.copies:
            home = layout.homes[i][copy]
            there = read(rows, home, layout.shape_of(i))
            arrived = lax.ppermute(there, PIPE, [(copy, _owner(leaf))])
            write(rows, home, lax.select(rank == copy, jax.numpy.zeros_like(there), there))
            at_home = layout.homes[i][_owner(leaf)]
            mine = read(rows, at_home, layout.shape_of(i))
            write(rows, at_home, lax.select(rank == _owner(leaf), mine + arrived, mine))
    return rows


def _owner(leaf: LeafSpec) -> int:
    if leaf.rank is None:
        raise TypeError(f"{leaf.path} belongs to no rank and cannot be tied")
    return leaf.rank
