"""The names by which configurations and `initialize` ask for a schedule."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

from jaxpipe.errors import ScheduleError, nearest
from jaxpipe.schedules.gpipe import gpipe
from jaxpipe.schedules.one_f_one_b import one_f_one_b
from jaxpipe.schedules.table import Schedule

NAMES: Mapping[str, Callable[[int, int], Schedule]] = MappingProxyType(
    {
        "gpipe": gpipe,
        "1f1b": one_f_one_b,
        "1f1b-eager": functools.partial(one_f_one_b, latency=1),
    }
)
"""Name -> function of (num_ranks, num_microbatches); all schedules that train."""


def by_name(name: str, num_ranks: int, num_microbatches: int) -> Schedule:
    """The schedule of a name in `NAMES`.

    Raises:
      ScheduleError: an unknown name, or a count below 1.

    >>> by_name("1f1b", 4, 8).num_ticks
    22
    """
    if name not in NAMES:
        raise ScheduleError(f"there is no schedule {name!r}; {nearest(name, NAMES)}")
    return NAMES[name](num_ranks, num_microbatches)
