"""Several lists of arrays in one set of buffers, which can hold any one of them.

Each rank's share of a model is such a list, and so is what each stage keeps of a microbatch. The
program is the same on all ranks, and so must the buffers be. There are two sorts:

  shared  one array of each list, all of the same size: `float32_65536_0` may be a kernel of the
          first block of every rank, and the embedding on one rank and the head on another. Reading
          it is free, and what is done to it is compiled once for all.
  pack    what is left of each list, end to end. Reading an array is a slice.

A shared buffer costs its bytes for every list, used or not. So buffers are shared, most users
first, only as long as the whole does not grow beyond the largest list; the rest is packed. With one
dtype no arrangement takes more than the largest list (+ SLACK), also when all lists differ. Arrays
of several dtypes have a pack each: then it is the sum of the largest share of each dtype, which is
more where a dtype belongs to few lists. The same goes for arrays that are cut over `tensor`, and
those that are whole there.

Rows may be cut into equal parts, one for each data rank: every array is then cut by itself, as if
it were flat, with zeros behind it where its size is no multiple. So a part of a row holds the same
part of every array, in the same places for all data ranks.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

SLACK = 0.02  # of the largest list, which may be spent on sharing


class Home(NamedTuple):
    """An array's elements begin at `offset` in `buffer`, or in each part of it."""

    buffer: str
    offset: int


class BufferSpec(NamedTuple):
    """A buffer, for one list.

    Attributes:
      shape: of a whole row; of a pack in several parts `(parts, size of a part)`.
      dtype: of its elements.
      cut: whether its arrays are cut over `tensor`.
      parts: how many parts its rows may be cut into.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    cut: bool = False
    parts: int = 1

    @property
    def bytes(self) -> int:
        """Bytes of a whole row."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def part_size(self) -> int:
        """Elements of one part."""
        return math.prod(self.shape) // self.parts

    def beginning(self, size: int) -> "BufferSpec":
        """As much of every part as `size` elements of it."""
        if size == self.part_size:
            return self
        return self._replace(shape=_pack_shape(size, self.parts))


def _pack_shape(part_size: int, parts: int) -> tuple[int, ...]:
    return (part_size,) if parts == 1 else (parts, part_size)


class Piece(NamedTuple):
    """An array of a list.

    Attributes:
      shape: its shape, of what one device of the `tensor` axis has.
      dtype: its dtype.
      late: whether it lies behind all that are not late, and shares with late ones only: a buffer
        without the late ones is then a beginning of the buffer with them.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    late: bool = False
    cut: bool = False  # over `tensor`: shares with such only


class _Kind(NamedTuple):
    """Pieces that may share a buffer."""

    late: bool
    cut: bool
    dtype: np.dtype
    size: int

    @property
    def bytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def pack(self) -> str:
        """The name of the pack that it may be in."""
        return f"{'tensor_' * self.cut}{self.dtype}_pack"


def share(
    lists: Sequence[Sequence[Piece]], parts: int = 1
) -> tuple[list[list[Home]], dict[str, BufferSpec]]:
    """A home for each piece of each list, and the buffers that they make up.

    Pieces of one kind meet in the order of their lists: what corresponds should come at the same
    place. Rows can be cut into `parts`.

    >>> f32 = np.dtype("float32")
    >>> homes, buffers = share([[Piece((2, 2), f32), Piece((3,), f32)], [Piece((2, 2), f32)]])
    >>> homes[1]
    [Home(buffer='float32_4_0', offset=0)]
    >>> {name: buffer.shape for name, buffer in buffers.items()}
    {'float32_3_0': (3,), 'float32_4_0': (2, 2)}
    """
    queues: dict[_Kind, list[list[int]]] = {}  # places in the lists
    for n, pieces in enumerate(lists):
        for i, piece in enumerate(pieces):
            kind = _Kind(piece.late, piece.cut, piece.dtype, math.prod(piece.shape))
            queues.setdefault(kind, [[] for _ in lists])[n].append(i)
    shared = _choose_shared(queues, len(lists), parts)
    buffers: dict[str, BufferSpec] = {}
    homes: list[dict[int, Home]] = [{} for _ in lists]
    ends: dict[str, list[int]] = {}
    for kind in sorted(queues, key=lambda kind: kind.late):
        for j in range(max(map(len, queues[kind]))):
            users = {n: queue[j] for n, queue in enumerate(queues[kind]) if j < len(queue)}
            if (kind, j) in shared:
                name = f"{'late_' * kind.late}{'tensor_' * kind.cut}{kind.dtype}_{kind.size}_{j}"
                shapes = {lists[n][i].shape for n, i in users.items()}
                shape = shapes.pop() if len(shapes) == 1 else (kind.size,)
                buffers[name] = BufferSpec(shape, kind.dtype, kind.cut, parts)
                for n, i in users.items():
                    homes[n][i] = Home(name, 0)
                continue
            end = ends.setdefault(kind.pack, [0] * len(lists))
            for n, i in users.items():
                homes[n][i] = Home(kind.pack, end[n])
                end[n] += -(-kind.size // parts)
            whole = _pack_shape(max(end), parts)
            buffers[kind.pack] = BufferSpec(whole, kind.dtype, kind.cut, parts)
    ordered = [[home[i] for i in range(len(home))] for home in homes]
    return ordered, dict(sorted(buffers.items()))


def _choose_shared(
    queues: Mapping[_Kind, Sequence[Sequence[int]]], num_lists: int, parts: int
) -> set[tuple[Hashable, int]]:
    """Which (kind, place) become shared buffers, in no more bytes than packs alone would take."""
    packs: dict[str, list[int]] = {}  # bytes by list
    for kind, by_list in queues.items():
        pack = packs.setdefault(kind.pack, [0] * num_lists)
        for n, queue in enumerate(by_list):
            pack[n] += len(queue) * kind.bytes
    limit = (1 + SLACK) * sum(map(max, packs.values()))
    candidates = [
        (kind, j, [n for n, queue in enumerate(by_list) if j < len(queue)])
        for kind, by_list in queues.items()
        if kind.size % parts == 0
        for j in range(max(map(len, by_list)))
    ]
    candidates.sort(key=lambda c: (-len(c[2]), -c[0].bytes, c[1]))
    shared, spent = set(), 0
    for kind, j, users in candidates:
        pack = packs[kind.pack]
        without = [size - kind.bytes * (n in users) for n, size in enumerate(pack)]
        others = sum(max(p) for name, p in packs.items() if name != kind.pack)
        if spent + kind.bytes + others + max(without) <= limit:
            shared.add((kind, j))
            spent += kind.bytes
            packs[kind.pack] = without
    return shared
