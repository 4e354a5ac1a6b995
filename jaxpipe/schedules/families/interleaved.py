"""Interleaved 1F1B: several stages on each rank, in a loop, and rounds of microbatches."""

from jaxpipe.errors import ScheduleError
from jaxpipe.schedules.families.turns import in_rounds
from jaxpipe.schedules.place import loop, place
from jaxpipe.schedules.table import Op, Schedule


def interleaved(
    num_ranks: int, num_microbatches: int, num_chunks: int = 2, group_size: int | None = None
) -> Schedule:
    """1F1B with v stages on a rank: the pipeline fills v times as fast, and passes more on.

    Makespan (1 + b)(vM + S - 1) in forwards of one stage, a backward taking b of them, for any
    M >= S: 1/v of the bubble of 1F1B. Rank r holds at most (v - 1)g + 2(S - r) - 1 microbatches of
    a stage, g being the largest round. Narayanan et al., https://arxiv.org/abs/2104.04473.

    Args:
      num_ranks: S; rank r owns the stages r, r + S, r + 2S ...
      num_microbatches: M. What is left over after whole rounds is spread over the rounds.
      num_chunks: v, how many stages a rank owns.
      group_size: microbatches in a round, at least; without it num_ranks. More of them hold
        more and meet the next chunk later; fewer than num_ranks would wait for themselves.

    Raises:
      ScheduleError: a count below 1, or a group_size below num_ranks and num_microbatches.

    >>> print(interleaved(2, 2))
    interleaved: 2 ranks, 4 stages, 2 microbatches, 10 ticks; bubble 20.0% at costs F=1 B=2
    rank 0 | 0F0 0F1 2F0 2F1 .   2B0 .   2B1 0B0 0B1 | held 4
    rank 1 | .   1F0 1F1 3F0 3B0 3F1 3B1 1B0 1B1 .   | held 3
    """
    size = num_ranks if group_size is None else group_size
    if group_size is not None and group_size < min(num_ranks, num_microbatches):
        raise ScheduleError(
            f"got group_size={group_size}; expected at least num_ranks={num_ranks}, or leave it"
            " out: a smaller round would wait for itself."
        )
    placement = loop(num_ranks, num_chunks)
    count = max(1, num_microbatches // size)
    cuts = [num_microbatches * i // count for i in range(count + 1)]
    rounds = [range(cuts[i], cuts[i + 1]) for i in range(count)]
    order = in_rounds(num_ranks, num_chunks, rounds, op=Op.B, lead=2)
    return place(order, placement, num_microbatches, name="interleaved")
