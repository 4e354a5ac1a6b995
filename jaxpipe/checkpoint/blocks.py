"""Consecutive elements of an array as blocks of it, none of them large."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Box(NamedTuple):
    """A block of an array whose elements are consecutive.

    Attributes:
      place: where it lies.
      first: the place of its first element among all elements of the array.
      size: number of elements.
    """

    place: tuple[slice, ...]
    first: int
    size: int


def boxes(shape: Sequence[int], first: int, size: int, most: int) -> Iterator[Box]:
    """Elements `first` to `first + size` of an array, in order, as blocks of at most `most`.

    >>> for box in boxes((4, 3), 2, 8, 6):
    ...     print(box.place, box.first, box.size)
    (slice(0, 1, None), slice(2, 3, None)) 2 1
    (slice(1, 3, None), slice(0, 3, None)) 3 6
    (slice(3, 4, None), slice(0, 1, None)) 9 1
    """
    end = first + size
    while first < end:
        if not shape:
            yield Box((), first, 1)
            return
        # The outermost dim whose whole slices fit, begin here, and are wanted to the end.
        sizes = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
        fit = [first % size == 0 and size <= min(most, end - first) for size in sizes]
        dim = fit.index(True)
        *before, start = [first // sizes[d] % shape[d] for d in range(dim + 1)]
        count = min(shape[dim] - start, most // sizes[dim], (end - first) // sizes[dim])
        place = [slice(i, i + 1) for i in before]
        place += [slice(start, start + count), *(slice(0, n) for n in shape[dim + 1 :])]
        yield Box(tuple(place), first, count * sizes[dim])
        first += count * sizes[dim]
