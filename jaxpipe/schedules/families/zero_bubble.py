"""Zero bubble on a loop of ranks: the backward in two halves, of which W can wait."""

from jaxpipe.schedules.families.fill import fill
from jaxpipe.schedules.families.turns import in_rounds
from jaxpipe.schedules.place import loop, place
from jaxpipe.schedules.table import Op, Schedule


def zb_h1(num_ranks: int, num_microbatches: int) -> Schedule:
    """1F1B where only the input gradient hurries; weight gradients fill the gaps.

    At F = I = W = 1 the makespan is 3M + S - 1 for M >= S: a third of the bubble of 1F1B. Every
    rank holds at most S microbatches, as the first one does in 1F1B. Qi et al.,
    https://arxiv.org/abs/2401.10241.

    Args:
      num_ranks: S; each rank owns one stage.
      num_microbatches: M.

    Raises:
      ScheduleError: a count below 1.

    >>> print(zb_h1(2, 3))
    zb-h1: 2 ranks, 2 stages, 3 microbatches, 10 ticks; bubble 10.0% at costs F=1 I=1 W=1
    rank 0 | F0 F1 .  I0 W0 F2 I1 W1 I2 W2 | held 2
    rank 1 | .  F0 I0 F1 W0 I1 F2 I2 W1 W2 | held 2
    """
    turns = in_rounds(num_ranks, 1, [range(num_microbatches)], op=Op.I, lead=1)
    order = fill(turns, loop(num_ranks), limit=num_ranks)
    return place(order, loop(num_ranks), num_microbatches, name="zb-h1")


def zb_h2(num_ranks: int, num_microbatches: int) -> Schedule:
    """As many forwards to warm up as fill the wait for the first gradient.

    For M >= 2S - 1 no rank waits between its first action and its last: at F = I = W = 1 each is
    at work for 3M ticks in a row. Ranks start one after the other, so that the makespan is
    that of ZB-H1, 3M + S - 1. Every rank holds at most 2S - 1 microbatches. Qi et al.,
    https://arxiv.org/abs/2401.10241.

    Args:
      num_ranks: S; each rank owns one stage.
      num_microbatches: M.

    Raises:
      ScheduleError: a count below 1.

    >>> print(zb_h2(2, 3))
    zb-h2: 2 ranks, 2 stages, 3 microbatches, 10 ticks; bubble 10.0% at costs F=1 I=1 W=1
    rank 0 | F0 F1 F2 I0 W0 I1 W1 I2 W2 .  | held 3
    rank 1 | .  F0 I0 F1 I1 F2 I2 W0 W1 W2 | held 3
    """
    turns = in_rounds(num_ranks, 1, [range(num_microbatches)], op=Op.I, lead=2)
    order = fill(turns, loop(num_ranks), limit=2 * num_ranks - 1, full_first=False)
    return place(order, loop(num_ranks), num_microbatches, name="zb-h2")


def interleaved_zb(num_ranks: int, num_microbatches: int, num_chunks: int = 2) -> Schedule:
    """ZB-H1 with v stages on each rank: 1/v of its bubble.

    At F = I = W = 1, makespan 3vM + S - 1 in forwards of one stage if M is a multiple of S; other
    M > S take at most (v - 1)S more, most of them nothing. Every rank holds at most vS microbatches
    of a stage, as much memory as ZB-H1. Qi et al., https://arxiv.org/abs/2401.10241.

    Args:
      num_ranks: S; rank r owns the stages r, r + S, r + 2S ...
      num_microbatches: M.
      num_chunks: v, how many stages a rank owns.

    Raises:
      ScheduleError: a count below 1.

    >>> print(interleaved_zb(2, 2))
    interleaved-zb: 2 ranks, 4 stages, 2 microbatches, 13 ticks; bubble 7.7% at costs F=1 I=1 W=1
    rank 0 | 0F0 0F1 2F0 2F1 .   2I0 2W0 2I1 0I0 0I1 2W1 0W0 0W1 | held 4
    rank 1 | .   1F0 1F1 3F0 3I0 3F1 3I1 1I0 1I1 3W0 3W1 1W0 1W1 | held 4
    """
    placement = loop(num_ranks, num_chunks)
    rounds = [
        range(start, min(start + num_ranks, num_microbatches))
        for start in range(0, num_microbatches, num_ranks)
    ]
    turns = in_rounds(num_ranks, num_chunks, rounds, op=Op.I, lead=1)
    order = fill(turns, placement, limit=num_chunks * num_ranks)
    return place(order, placement, num_microbatches, name="interleaved-zb")
