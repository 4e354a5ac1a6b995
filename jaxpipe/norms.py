"""Norms of gradients inside `shard_map`: of all leaves, and of each layer's.

A row holds the leaves of one rank's layers, and the program is the same on all ranks. So rows are
cut wherever a layer begins or ends on any rank, the squares of each piece are summed, and a table
says whose they are on which rank.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxpipe.mesh import PIPE
from jaxpipe.storage import Layout, Rows, axes


def global_norm(layout: Layout, rows: Rows) -> jax.Array:
    """Of all leaves; padding and the copies of tied leaves are zero.

    Args:
      layout: of the rows, which may be gradients.
      rows: this device's.

    Returns:
      A float32 scalar, the same on all devices.
    """
    over = _all_axes(layout)
    total = jnp.zeros(())
    for name in layout.buffers:
        squares = jnp.sum(jnp.square(rows[name].astype(jnp.float32)))
        total += _counted(layout, name, squares)
    return jnp.sqrt(_sum_in_order(total, over))


def layer_norms(layout: Layout, rows: Rows) -> dict[str, jax.Array]:
    """Of each layer's leaves; a tied one counts with the layer that owns it.

    Args:
      layout: of the rows, gradients of parameters.
      rows: this device's.

    Returns:
      {layer name: float32 scalar}, in the order of layers, the same on all devices. The sum of
      their squares is the square of `global_norm`.
    """
    names = list(dict.fromkeys(leaf.layer for leaf in layout.leaves if leaf.layer is not None))
    over = _all_axes(layout)
    totals = jnp.zeros(len(names) + 1)  # the last one takes what is no layer's on this rank
    for name in layout.buffers:
        cuts, owners = _pieces(layout, name, names)
        row = jnp.square(rows[name].astype(jnp.float32))
        if len(cuts) == 2:  # one leaf at most on each rank: not reshaped, so read as it lies
            squares = jnp.sum(row)[None]
        else:
            parts = [row[..., start:end] for start, end in itertools.pairwise(cuts)]
            squares = jnp.stack([jnp.sum(part) for part in parts])
        mine = jnp.asarray(owners)[lax.axis_index(PIPE)]
        totals = totals.at[mine].add(_counted(layout, name, squares))
    norms = jnp.sqrt(_sum_in_order(totals, over))
    return {name: norms[i] for i, name in enumerate(names)}


class _Span(NamedTuple):
    """Elements `start` to `end` of a part of a row, on one rank, are a layer's, by its number."""

    rank: int
    start: int
    end: int
    layer: int


def _pieces(layout: Layout, name: str, layers: list[str]) -> tuple[list[int], np.ndarray]:
    """Where a buffer is cut, and for each rank and piece the number of its layer.

    Returns:
      Positions in a part of a row, and int32 `[ranks, pieces]`; `len(layers)` is no layer.
    """
    spans: list[_Span] = []
    for index, (leaf, homes) in enumerate(zip(layout.leaves, layout.homes, strict=True)):
        home = None if leaf.rank is None else homes[leaf.rank]
        if leaf.rank is not None and home and home.buffer == name and leaf.layer is not None:
            end = home.offset + layout.cut_of(index).part_size
            spans.append(_Span(leaf.rank, home.offset, end, layers.index(leaf.layer)))
    spans = _merged(spans)
    size = layout.buffers[name].part_size
    cuts = sorted({0, size, *(edge for span in spans for edge in (span.start, span.end))})
    owners = np.full((layout.num_ranks, len(cuts) - 1), len(layers), np.int32)
    for span in spans:
        owners[span.rank, cuts.index(span.start) : cuts.index(span.end)] = span.layer
    return cuts, owners


def _merged(spans: Sequence[_Span]) -> list[_Span]:
    """Neighbours of one layer as one."""
    merged: list[_Span] = []
    for span in sorted(spans):
        last = merged[-1] if merged else None
        if last and (last.rank, last.end, last.layer) == (span.rank, span.start, span.layer):
            merged[-1] = last._replace(end=span.end)
        else:
            merged.append(span)
    return merged


def _all_axes(layout: Layout) -> list[str]:
    """The mesh axes that any buffer is cut over."""
    return sorted(set().union(*(axes(layout, name) for name in layout.buffers)))


def _sum_in_order(values: jax.Array, over: Sequence[str]) -> jax.Array:
    """The sum over devices, to the bit the same however they are spread over processes.

    In which order `psum` adds is the affair of whoever carries it out: XLA within a process, Gloo
    or NCCL between them.
    """
    return jnp.sum(lax.all_gather(values, tuple(over)), axis=0) if over else values


def _counted(layout: Layout, name: str, values: jax.Array) -> jax.Array:
    """Sums of a buffer as they count: of what several devices hold alike, the first one's does."""
    for axis in set(_all_axes(layout)) - set(axes(layout, name)):
        values = jnp.where(lax.axis_index(axis) == 0, values, 0)
    return values
