"""Where every leaf of a logical tree lives: which rank, which buffer, which offset.

A placed tree is a dict of buffers `[ranks, ...]`, each sharded over `pipe`, so that a device holds
one row of each: its own rank's share and nothing else. Two sorts of buffer:

  shared  one leaf per rank, all of the same size: `float32_65536_0` may be a kernel of the first
          block of every rank, and the embedding on one rank and the head on another. Reading it is
          free.
  pack    what is left of each rank, end to end. Reading a leaf is a slice.

A shared buffer costs its bytes on every rank, used or not. So buffers are shared, most users first,
only as long as no rank's row grows beyond the largest share; the rest is packed. No arrangement
holds more than the largest rank's share (+ SLACK), also when all layers differ. Leaves of several
dtypes, and frozen ones beside trained ones, have packs of their own: then it is the largest share
of each such class, which is more where a class lives on few ranks.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

PyTree = Any
SLACK = 0.02  # of the largest share, which may be spent on sharing


class Home(NamedTuple):
    """A leaf's elements begin at `offset` in its rank's row of `buffer`."""

    buffer: str
    offset: int


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


class BufferSpec(NamedTuple):
    """The row that one rank holds of a buffer."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape) * self.dtype.itemsize


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
    def trainable(self) -> "Layout":
        """The layout of gradients: without frozen leaves, whose places in the tree hold None."""
        moving = [not leaf.frozen for leaf in self.leaves]
        if all(moving):
            return self
        tree = jax.tree.unflatten(self.treedef, [i if m else None for i, m in enumerate(moving)])
        kept, treedef = jax.tree.flatten(tree)
        homes = tuple(self.homes[i] for i in kept)
        used = {home.buffer for ranks in homes for home in ranks.values()}
        buffers = {name: spec for name, spec in self.buffers.items() if name in used}
        leaves = tuple(self.leaves[i] for i in kept)
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
    queues: dict[_Class, list[list[int]]] = {}  # leaves of one size, by rank
    for i in order:
        for rank in _ranks(leaves[i]):
            queues.setdefault(_class(leaves[i]), [[] for _ in range(num_ranks)])[rank].append(i)
    shared = _choose_shared(queues, num_ranks)
    buffers: dict[str, BufferSpec] = {}
    homes: list[dict[int, Home]] = [{} for _ in leaves]
    packed: dict[str, list[int]] = {}
    for kind, by_rank in queues.items():
        for j in range(max(map(len, by_rank))):
            users = {rank: queue[j] for rank, queue in enumerate(by_rank) if j < len(queue)}
            if (kind, j) in shared:
                name = f"{kind.prefix}{kind.dtype}_{kind.size}_{j}"
                shapes = {leaves[i].shape for i in users.values()}
                shape = shapes.pop() if len(shapes) == 1 else (kind.size,)
                buffers[name] = BufferSpec(shape, kind.dtype)
                for rank, i in users.items():
                    homes[i][rank] = Home(name, 0)
            else:
                name = f"{kind.prefix}{kind.dtype}_pack"
                ends = packed.setdefault(name, [0] * num_ranks)
                for rank, i in users.items():
                    homes[i][rank] = Home(name, ends[rank])
                    ends[rank] += kind.size
                buffers[name] = BufferSpec((max(ends),), kind.dtype)
    ordered = dict(sorted(buffers.items()))
    return Layout(num_ranks, treedef, tuple(leaves), tuple(homes), ordered, tuple(layers))


class _Class(NamedTuple):
    """Leaves that may share a buffer."""

    prefix: str
    dtype: np.dtype
    size: int

    @property
    def bytes(self) -> int:
        return self.size * self.dtype.itemsize


def _class(leaf: LeafSpec) -> _Class:
    return _Class("frozen_" if leaf.frozen else "", leaf.dtype, leaf.size)


def _ranks(leaf: LeafSpec) -> Iterable[int]:
    return () if leaf.rank is None else (leaf.rank, *leaf.copies)


def _choose_shared(
    queues: Mapping[_Class, list[list[int]]], num_ranks: int
) -> set[tuple[_Class, int]]:
    """Which (class, place) become shared buffers, in no more bytes than packs alone would take."""
    packs: dict[tuple[str, np.dtype], list[int]] = {}
    for kind, by_rank in queues.items():
        pack = packs.setdefault(kind[:2], [0] * num_ranks)
        for rank, queue in enumerate(by_rank):
            pack[rank] += len(queue) * kind.bytes
    limit = (1 + SLACK) * sum(map(max, packs.values()))
    candidates = [
        (kind, j, [rank for rank, queue in enumerate(by_rank) if j < len(queue)])
        for kind, by_rank in queues.items()
        for j in range(max(map(len, by_rank)))
    ]
    candidates.sort(key=lambda c: (-len(c[2]), -c[0].bytes, c[1]))
    shared, spent = set(), 0
    for kind, j, users in candidates:
        pack = packs[kind[:2]]
        without = [size - kind.bytes * (rank in users) for rank, size in enumerate(pack)]
        others = sum(max(p) for key, p in packs.items() if key != kind[:2])
        if spent + kind.bytes + others + max(without) <= limit:
            shared.add((kind, j))
            spent += kind.bytes
            packs[kind[:2]] = without
    return shared
