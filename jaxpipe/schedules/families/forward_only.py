"""Forward only: what evaluation and prediction run."""

from collections.abc import Sequence

from jaxpipe.schedules.place import check_shape, loop, place
from jaxpipe.schedules.table import Action, Op, Schedule


def forward_only(
    num_ranks: int, num_microbatches: int, *, placement: Sequence[int] | None = None
) -> Schedule:
    """Forwards alone, wherever the stages live; nothing is held for a backward.

    At each tick, each rank takes the microbatch that has come furthest of those that wait for it:
    no rank is idle while it could work, and few microbatches are under way at once.

    Args:
      num_ranks: how many ranks there are.
      num_microbatches: how many microbatches a batch is cut into.
      placement: stage -> rank; without it, one stage for each rank.

    Raises:
      ScheduleError: a count below 1, or a placement that does not fit the ranks.

    >>> from jaxpipe.schedules.place import vee
    >>> print(forward_only(2, 2, placement=vee(2)))
    forward: 2 ranks, 4 stages, 2 microbatches, 6 ticks; bubble 33.3% at costs F=1
    rank 0 | 0F0 0F1 .   3F0 .   3F1 |
    rank 1 | .   1F0 2F0 1F1 2F1 .   |
    """
    placement = loop(num_ranks) if placement is None else tuple(placement)
    check_shape(placement, num_ranks, num_microbatches, latency=0)
    order: list[list[Action]] = [[] for _ in range(num_ranks)]
    next_stage = [0] * num_microbatches
    while min(next_stage) < len(placement):
        chosen: dict[int, int] = {}  # rank -> microbatch
        for m, stage in enumerate(next_stage):
            if stage == len(placement):
                continue
            rank = placement[stage]
            if rank not in chosen or stage > next_stage[chosen[rank]]:
                chosen[rank] = m
        for rank, m in chosen.items():
            order[rank].append(Action(next_stage[m], Op.F, m))
            next_stage[m] += 1
    return place(order, placement, num_microbatches, name="forward")
