"""Where every leaf of a logical tree lives: which rank, which buffer, which offset.

A placed tree is a dict of buffers `[ranks, ...]`, each sharded over `pipe`, so that a device holds
one row of each: its own rank's share and nothing else. How ranks whose layers differ share buffers
is in `sharing.py`. Frozen leaves lie behind the trained ones, so that gradients, which only these
have, need a beginning of the row.

A leaf may be cut further: along one dim over `tensor`, as its layer says, and what a tensor rank
has of it into parts, one for each data rank (ZeRO, arXiv:1910.02054). Rows are then whole, all
parts of them on every data rank, or cut, one part on each.
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
      tensor_dim: the dim that is cut over `tensor`, if any.
    """

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    rank: int | None
    copies: tuple[int, ...] = ()
    frozen: bool = False
    layer: str | None = None
    tensor_dim: int | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of one copy."""
        return self.size * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Cut:
    """How the devices of one rank share a leaf.

    Attributes:
      shape: of the leaf.
      tensor_dim: the dim that is cut over `tensor`, or None.
      num_tensor: into how many pieces.
      num_parts: how many parts the flat piece is cut into, over `data`; the last is filled up with
        zeros.
    """

    shape: tuple[int, ...]
    tensor_dim: int | None = None
    num_tensor: int = 1
    num_parts: int = 1

    @property
    def piece(self) -> tuple[int, ...]:
        """The shape of what a tensor rank has."""
        if self.tensor_dim is None:
            return self.shape
        shape = list(self.shape)
        shape[self.tensor_dim] //= self.num_tensor
        return tuple(shape)

    @property
    def size(self) -> int:
        """Elements of the piece."""
        return math.prod(self.piece)

    @property
    def part_size(self) -> int:
        """Elements of what a data rank has of the piece."""
        return -(-self.size // self.num_parts)

    @property
    def is_whole(self) -> bool:
        """Whether one device has all of it."""
        return self.num_parts == 1 and self.num_tensor == 1

    @property
    def is_even(self) -> bool:
        """Whether no part is filled up."""
        return self.size % self.num_parts == 0


class Extent(NamedTuple):
    """Consecutive elements of a leaf, in a row.

    Attributes:
      leaf: the first one's place among the leaf's.
      row: its place in the row.
      size: how many there are.
    """

    leaf: int
    row: int
    size: int


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
      num_tensor: size of the `tensor` axis.
      num_parts: how many parts rows may be cut into: the size of the `data` axis, or 1.
      is_cut: whether each data rank holds one part of a row.
    """

    num_ranks: int
    treedef: Any
    leaves: tuple[LeafSpec, ...]
    homes: tuple[Mapping[int, Home], ...]
    buffers: Mapping[str, BufferSpec]
    layers: tuple[str, ...] = ()
    num_tensor: int = 1
    num_parts: int = 1
    is_cut: bool = False

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of where every leaf lives: arrays of equal shapes may hold other layers."""
        places = [
            (leaf.path, leaf.shape, str(leaf.dtype), leaf.tensor_dim, sorted(homes.items()))
            for leaf, homes in zip(self.leaves, self.homes, strict=True)
        ]
        sizes = self.num_ranks, self.num_tensor, self.num_parts, self.is_cut
        return hashlib.sha256(repr((sizes, places)).encode()).hexdigest()

    @functools.cached_property
    def cut(self) -> "Layout":
        """The same with rows that are cut over `data`, where they can be."""
        if self.is_cut or self.num_parts == 1:
            return self
        return dataclasses.replace(self, is_cut=True)

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
        for i, ranks in zip(kept, homes, strict=True):
            for name, offset in ranks.values():
                ends[name] = max(ends.get(name, 0), offset + self.cut_of(i).part_size)
        buffers = {name: self.buffers[name].beginning(end) for name, end in sorted(ends.items())}
        return dataclasses.replace(
            self, treedef=treedef, leaves=leaves, homes=homes, buffers=buffers
        )

    def cut_of(self, index: int) -> Cut:
        """How the devices of a rank share a leaf, when rows are cut."""
        leaf = self.leaves[index]
        pieces = 1 if leaf.tensor_dim is None else self.num_tensor
        return Cut(leaf.shape, leaf.tensor_dim, pieces, self.num_parts)

    def held_cut(self, index: int) -> Cut:
        """How the devices of a rank share a leaf, as rows are."""
        cut = self.cut_of(index)
        return cut if self.is_cut else dataclasses.replace(cut, num_parts=1)

    def shape_of(self, index: int) -> tuple[int, ...]:
        """The shape in which a leaf is read from a row: a tensor rank's piece, or a flat part."""
        cut = self.cut_of(index)
        return (cut.part_size,) if self.is_cut else cut.piece

    def extents(self, index: int, home: Home, part: int = 0) -> list[Extent]:
        """Where the elements of a leaf, of what a tensor rank has of it, lie in a flat row.

        Args:
          index: of the leaf.
          home: of the leaf, on the rank of the row.
          part: which part of the row, where rows are cut.
        """
        cut, row = self.cut_of(index), self.buffers[home.buffer].part_size
        found = []
        for p in [part] if self.is_cut else range(self.num_parts):
            first = p * cut.part_size
            size = min(cut.size - first, cut.part_size)
            if size > 0:
                found.append(Extent(first, home.offset + (0 if self.is_cut else p * row), size))
        return found

    def row_shape(self, name: str) -> tuple[int, ...]:
        """The shape of a buffer's row on one device."""
        spec = self.buffers[name]
        return (spec.part_size,) if self.is_cut else spec.shape

    @property
    def bytes_per_rank(self) -> int:
        """Bytes of parameters on each device."""
        parts = self.num_parts if self.is_cut else 1
        return sum(buffer.bytes for buffer in self.buffers.values()) // parts

    @property
    def share(self) -> list[int]:
        """Bytes that each rank really needs, on each device of the `tensor` axis."""
        need = [0] * self.num_ranks
        for i, homes in enumerate(self.homes):
            for rank in homes:
                need[rank] += self.cut_of(i).size * self.leaves[i].dtype.itemsize
        return need


def build_layout(
    treedef: Any,
    leaves: Sequence[LeafSpec],
    num_ranks: int,
    layers: Sequence[str] = (),
    *,
    num_tensor: int = 1,
    num_parts: int = 1,
) -> Layout:
    """Gives every leaf a home.

    Args:
      treedef: the logical tree.
      leaves: its leaves, in order.
      num_ranks: size of the `pipe` axis.
      layers: names of layers in the order in which their leaves choose buffers. Layers that
        correspond on different ranks should come at the same place of their ranks' sequences, so
        that their leaves meet in the same buffers.
      num_tensor: size of the `tensor` axis.
      num_parts: how many parts rows may be cut into.
    """
    bare = Layout(num_ranks, treedef, tuple(leaves), (), {}, tuple(layers), num_tensor, num_parts)
    place = {name: i for i, name in enumerate(layers)}
    order = sorted(range(len(leaves)), key=lambda i: place.get(leaves[i].layer or "", -1))
    ranks_of = lambda leaf: () if leaf.rank is None else (leaf.rank, *leaf.copies)
    mine = [[i for i in order if rank in ranks_of(leaves[i])] for rank in range(num_ranks)]
    piece = lambda i: Piece(
        bare.cut_of(i).piece, leaves[i].dtype, leaves[i].frozen, bare.cut_of(i).num_tensor > 1
    )
    by_rank, buffers = share([list(map(piece, indices)) for indices in mine], num_parts)
    homes: list[dict[int, Home]] = [{} for _ in leaves]
    for rank, (indices, found) in enumerate(zip(mine, by_rank, strict=True)):
        for i, home in zip(indices, found, strict=True):
            homes[i][rank] = home
    return dataclasses.replace(bare, homes=tuple(homes), buffers=buffers)
