"""The names by which configurations and `initialize` ask for a schedule."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

from jaxpipe.errors import ScheduleError, nearest
from jaxpipe.schedules.families.dualpipe_v import dualpipe_v
from jaxpipe.schedules.families.gpipe import gpipe
from jaxpipe.schedules.families.interleaved import interleaved
from jaxpipe.schedules.families.looped_bfs import looped_bfs
from jaxpipe.schedules.families.one_f_one_b import one_f_one_b
from jaxpipe.schedules.families.v_shaped import one_f_one_b_v, v_half, v_min, zb_v
from jaxpipe.schedules.families.zero_bubble import interleaved_zb, zb_h1, zb_h2
from jaxpipe.schedules.table import Schedule

NAMES: Mapping[str, Callable[[int, int], Schedule]] = MappingProxyType(
    {
        "gpipe": gpipe,
        "1f1b": one_f_one_b,
        "1f1b-eager": functools.partial(one_f_one_b, latency=1),
        "interleaved": interleaved,
        "looped-bfs": looped_bfs,
        "zb-h1": zb_h1,
        "zb-h2": zb_h2,
        "interleaved-zb": interleaved_zb,
        "zb-v": zb_v,
        "v-half": v_half,
        "v-min": v_min,
        "1f1b-v": one_f_one_b_v,
        "dualpipe-v": dualpipe_v,
    }
)
"""Name -> function of (num_ranks, num_microbatches); all schedules that train."""

AUTO = "auto"
"""Asks for the best table that `schedules.search` finds, where a name is wanted."""

# Families with as many stages on a rank as one likes; the others have what their default has.
_CHUNKED: Mapping[str, Callable[[int, int, int], Schedule]] = MappingProxyType(
    {"interleaved": interleaved, "looped-bfs": looped_bfs, "interleaved-zb": interleaved_zb}
)


def by_name(
    name: str, num_ranks: int, num_microbatches: int, *, num_chunks: int | None = None
) -> Schedule:
    """The schedule of a name in `NAMES`.

    Args:
      name: one of `NAMES`.
      num_ranks: how many ranks there are.
      num_microbatches: how many microbatches a batch is cut into.
      num_chunks: how many stages a rank owns; without it, what the family has by default: two
        where it may have any number.

    Raises:
      ScheduleError: an unknown name, a count below 1, or a num_chunks that the family cannot have.

    >>> by_name("1f1b", 4, 8).num_ticks
    22
    >>> by_name("interleaved", 4, 8, num_chunks=3).num_stages
    12
    """
    if name not in NAMES:
        raise ScheduleError(f"there is no schedule {name!r}; {nearest(name, (*NAMES, AUTO))}")
    if num_chunks is not None and name in _CHUNKED:
        return _CHUNKED[name](num_ranks, num_microbatches, num_chunks)
    schedule = NAMES[name](num_ranks, num_microbatches)
    if num_chunks not in (None, schedule.num_chunks):
        many = "1 stage" if schedule.num_chunks == 1 else f"{schedule.num_chunks} stages"
        raise ScheduleError(
            f"got num_chunks={num_chunks}; expected {schedule.num_chunks}: {name!r} has {many} on"
            f" each rank. Leave num_chunks out, or use one of {', '.join(_CHUNKED)}."
        )
    return schedule
