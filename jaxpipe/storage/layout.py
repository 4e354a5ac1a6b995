"""Where every leaf of a logical tree lives: which rank, which buffer, which offset.

A placed tree is a dict of buffers `[ranks, ...]`, each sharded over `pipe`, so that a device holds
one row of each: its own rank's share and nothing else. How ranks whose layers differ share buffers
is in `sharing.py`. Frozen leaves lie behind the trained ones, so that gradients, which only these
have, need a beginning of the row.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxpipe.storage.sharing import BufferSpec, Home, Piece, share

PyTree = Any


@dataclasses.dataclass(frozen=True)
class LeafSpec:
    """One leaf of the logical tree.

    Attributes:
      path: where it stands in the tree, for messages.
      shape: as the user sees it.
      dtype: as it is stored.
      rank: the rank it belongs to; None for a leaf of no layer (a step count, say), which every
        rank holds.
      copies: further ranks that need its value in a step (tied layers).
      frozen: whether it gets no gradient.
      layer: the layer that it belongs to, if any.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    rank: int | None
    copies: tuple[int, ...] = ()
    frozen: bool = False
    layer: str | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of one copy."""
        return self.size * self.dtype.itemsize


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """A logical tree's leaves and their homes. Compared by identity: it is static under `jax.jit`.

    Attributes:
      num_ranks: size of the `pipe` axis.
      treedef: the logical tree.
      leaves: its leaves in order.
      homes: for each leaf {rank: Home}, empty for leaves of no rank.
      buffers: {name: row}.
      layers: names of layers in the order in which they chose their homes.
    """

    num_ranks: int
    treedef: Any
    leaves: tuple[LeafSpec, ...]
    homes: tuple[Mapping[int, Home], ...]
    buffers: Mapping[str, BufferSpec]
    layers: tuple[str, ...] = ()

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of where every leaf lives: arrays of equal shapes may hold other layers."""
        places = [
            (leaf.path, leaf.shape, str(leaf.dtype), sorted(homes.items()))
            for leaf, homes in zip(self.leaves, self.homes, strict=True)
        ]
        return hashlib.sha256(repr((self.num_ranks, places)).encode()).hexdigest()

    @functools.cached_property
    def trainable(self) -> "Layout":
        """The layout of gradients: without frozen leaves, whose places in the tree hold None."""
        moving = [not leaf.frozen for leaf in self.leaves]
        if all(moving):
            return self
        tree = jax.tree.unflatten(self.treedef, [i if m else None for i, m in enumerate(moving)])
        kept, treedef = jax.tree.flatten(tree)
        homes = tuple(self.homes[i] for i in kept)
        leaves = tuple(self.leaves[i] for i in kept)
        ends: dict[str, int] = {}
        for leaf, ranks in zip(leaves, homes, strict=True):
            for name, offset in ranks.values():
                ends[name] = max(ends.get(name, 0), offset + leaf.size)
        buffers = {name: _beginning(self.buffers[name], end) for name, end in sorted(ends.items())}
        return Layout(self.num_ranks, treedef, leaves, homes, buffers, self.layers)

    @property
    def bytes_per_rank(self) -> int:
        """Bytes of parameters on each device."""
        return sum(buffer.bytes for buffer in self.buffers.values())

    @property
    def share(self) -> list[int]:
        """Bytes that each rank really needs."""
        need = [0] * self.num_ranks
        for leaf, homes in zip(self.leaves, self.homes, strict=True):
            for rank in homes:
                need[rank] += leaf.bytes
        return need


def build_layout(
    treedef: Any,
    leaves: Sequence[LeafSpec],
    num_ranks: int,
    layers: Sequence[str] = (),
) -> Layout:
    """Gives every leaf a home.

    Args:
      treedef: the logical tree.
      leaves: its leaves, in order.
      num_ranks: size of the `pipe` axis.
      layers: names of layers in the order in which their leaves choose buffers. Layers that
        correspond on different ranks should come at the same place of their ranks' sequences, so
        that their leaves meet in the same buffers.
    """
    place = {name: i for i, name in enumerate(layers)}
    order = sorted(range(len(leaves)), key=lambda i: place.get(leaves[i].layer or "", -1))
    ranks_of = lambda leaf: () if leaf.rank is None else (leaf.rank, *leaf.copies)
    mine = [[i for i in order if rank in ranks_of(leaves[i])] for rank in range(num_ranks)]
    pieces = [[Piece(leaves[i].shape, leaves[i].dtype, leaves[i].frozen) for i in m] for m in mine]
    by_rank, buffers = share(pieces)
    homes: list[dict[int, Home]] = [{} for _ in leaves]
    for rank, (indices, found) in enumerate(zip(mine, by_rank, strict=True)):
        for i, home in zip(indices, found, strict=True):
            homes[i][rank] = home
    return Layout(num_ranks, treedef, tuple(leaves), tuple(homes), buffers, tuple(layers))


def _beginning(spec: BufferSpec, size: int) -> BufferSpec:
    """As much of a buffer as `size` elements need."""
    return spec if size == math.prod(spec.shape) else BufferSpec((size,), spec.dtype)
