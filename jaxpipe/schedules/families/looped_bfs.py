"""Looped BFS: several stages on each rank, in a loop, breadth first."""

from jaxpipe.schedules.place import loop, place
from jaxpipe.schedules.table import Action, Op, Schedule


def looped_bfs(num_ranks: int, num_microbatches: int, num_chunks: int = 2) -> Schedule:
    """Every rank runs all microbatches through one of its stages before it turns to the next.

    Makespan as interleaved, (1 + b)(vM + S - 1) in forwards of one stage for M >= S; but every
    rank holds all vM. Each stage's parameters are used in one stretch of time. Lamy-Poirier,
    https://arxiv.org/abs/2211.05953.

    Args:
      num_ranks: S; rank r owns the stages r, r + S, r + 2S ...
      num_microbatches: M.
      num_chunks: v, how many stages a rank owns.

    Raises:
      ScheduleError: a count below 1.

    >>> print(looped_bfs(2, 2))
    looped-bfs: 2 ranks, 4 stages, 2 microbatches, 10 ticks; bubble 20.0% at costs F=1 B=2
    rank 0 | 0F0 0F1 2F0 2F1 .   .   2B0 2B1 0B0 0B1 | held 4
    rank 1 | .   1F0 1F1 3F0 3F1 3B0 3B1 1B0 1B1 .   | held 4
    """
    placement = loop(num_ranks, num_chunks)
    order = []
    for rank in range(num_ranks):
        stages = range(rank, num_chunks * num_ranks, num_ranks)
        microbatches = range(num_microbatches)
        forwards = [Action(stage, Op.F, m) for stage in stages for m in microbatches]
        backwards = [Action(stage, Op.B, m) for stage in reversed(stages) for m in microbatches]
        order.append(forwards + backwards)
    return place(order, placement, num_microbatches, name="looped-bfs")
