"""GPipe: all forwards, then all backwards."""

from jaxpipe.schedules.place import loop, place
from jaxpipe.schedules.table import Action, Op, Schedule


def gpipe(num_ranks: int, num_microbatches: int) -> Schedule:
    """Every rank runs all forwards, then all backwards, and holds every microbatch.

    With a backward of b forwards, M microbatches and S ranks: makespan (1 + b)(M + S - 1), bubble
    (S - 1) / (M + S - 1). Huang et al., https://arxiv.org/abs/1811.06965.

    Raises:
      ScheduleError: a count below 1.

    >>> print(gpipe(2, 3))
    gpipe: 2 ranks, 2 stages, 3 microbatches, 8 ticks; bubble 25.0% at costs F=1 B=2
    rank 0 | F0 F1 F2 .  .  B0 B1 B2 | held 3
    rank 1 | .  F0 F1 F2 B0 B1 B2 .  | held 3
    """
    order = [
        [Action(rank, op, m) for op in (Op.F, Op.B) for m in range(num_microbatches)]
        for rank in range(num_ranks)
    ]
    return place(order, loop(num_ranks), num_microbatches, name="gpipe")
