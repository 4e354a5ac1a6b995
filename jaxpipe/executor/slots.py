"""A slot number for every value that lives between ticks: linear scan over lifetimes.

M. Poletto and V. Sarkar, "Linear scan register allocation" (1999), with buffers for registers.
"""

from collections.abc import Hashable, Iterable
from typing import NamedTuple


class Life(NamedTuple):
    """A value of one rank, from the moment it is written to the last moment it is read.

    A tick t has two moments: 2t while its action runs, 2t + 1 when what was sent arrives.
    """

    start: int
    end: int
    what: Hashable


def assign_slots(lives: Iterable[Life]) -> tuple[dict[Hashable, int], int]:
    """Slots for one rank's values, and how many it takes: no more than live at any moment.

    >>> assign_slots([Life(0, 4, "a"), Life(1, 2, "b"), Life(3, 5, "c")])
    ({'a': 0, 'b': 1, 'c': 1}, 2)
    """
    slot: dict[Hashable, int] = {}
    busy_until: list[int] = []
    for start, end, what in sorted(lives, key=lambda life: life[:2]):
        free = (i for i, until in enumerate(busy_until) if until < start)
        slot[what] = i = next(free, len(busy_until))
        busy_until[i : i + 1] = [end]
    return slot, len(busy_until)
