"""Consecutive elements of an array as blocks of it, none of them large."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Box(NamedTuple):
    """A block of an array whose elements are consecutive.

    Attributes:
      index: where it lies.
      first: the place of its first element among all elements of the array.
      size: number of elements.
    """

    index: tuple[slice, ...]
    first: int
    size: int


def boxes(shape: Sequence[int], first: int, size: int, most: int) -> Iterator[Box]:
    """Elements `first` to `first + size` of an array, in order, as blocks of at most `most`.

    >>> for box in boxes((4, 3), 2, 8, 6):
    ...     print(box.index, box.first, box.size)
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
        for dim in range(len(shape)):
            below = math.prod(shape[dim + 1 :])
            if first % below == 0 and below <= min(most, end - first):
                break
        place = [first // math.prod(shape[d + 1 :]) % shape[d] for d in range(dim + 1)]
        count = min(shape[dim] - place[-1], most // below, (end - first) // below)
        index = [slice(i, i + 1) for i in place[:-1]]
        index += [slice(place[-1], place[-1] + count), *(slice(0, n) for n in shape[dim + 1 :])]
        yield Box(tuple(index), first, count * below)
        first += count * below
