"""Schedules on a V of stages: down the ranks and back, so that all ranks hold the same.

Each repeats a block, the times of microbatch 0, every six ticks. The longer a microbatch stays on a
rank, the more the rank holds, and the less it waits where pipeline fills and empties.
"""

from jaxpipe.schedules.families.fill import fill
from jaxpipe.schedules.families.turns import Blocks, in_blocks
from jaxpipe.schedules.place import place, vee
from jaxpipe.schedules.table import Op, Schedule


def zb_v(num_ranks: int, num_microbatches: int) -> Schedule:
    """No rank waits but for the first microbatch to arrive; no more is held than by 1F1B.

    At F = I = W = 1 the makespan is 6M + S - 1 in forwards of one stage, for M >= S. Every rank
    holds at most 2S microbatches of a stage, as much memory as rank 0 in 1F1B. Qi et al.,
    https://arxiv.org/abs/2401.10241.

    Args:
      num_ranks: S; rank r owns the stages r and 2S - 1 - r.
      num_microbatches: M.

    Raises:
      ScheduleError: a count below 1.

    >>> print(zb_v(2, 2))
    zb-v: 2 ranks, 4 stages, 2 microbatches, 13 ticks; bubble 7.7% at costs F=1 I=1 W=1
    rank 0 | 0F0 0F1 .   3F0 3I0 3F1 3I1 0I0 3W0 0I1 3W1 0W0 0W1 | held 4
    rank 1 | .   1F0 2F0 1F1 2F1 2I0 1I0 2I1 1I1 2W0 1W0 2W1 1W1 | held 4
    """
    s = num_ranks
    blocks = [(4 * r, 6 * s - 5 - 2 * r, 6 * s - 4 + 4 * r, 12 * s - 9 - 2 * r) for r in range(s)]
    return _on_a_vee("zb-v", s, blocks, num_microbatches, limit=2 * s)


def v_half(num_ranks: int, num_microbatches: int) -> Schedule:
    """Half the memory of 1F1B, and less than half of its bubble.

    Every rank holds at most 2 * floor((S + 2) / 2) microbatches of a stage, the memory of
    floor((S + 2) / 2) microbatches in 1F1B. Qi et al., https://arxiv.org/abs/2405.15362.

    Args:
      num_ranks: S; rank r owns the stages r and 2S - 1 - r.
      num_microbatches: M.

    Raises:
      ScheduleError: a count below 1.

    >>> print(v_half(2, 2))
    v-half: 2 ranks, 4 stages, 2 microbatches, 13 ticks; bubble 7.7% at costs F=1 I=1 W=1
    rank 0 | 0F0 0F1 .   3F0 3I0 3F1 3I1 0I0 3W0 0I1 3W1 0W0 0W1 | held 4
    rank 1 | .   1F0 2F0 1F1 2F1 2I0 1I0 2I1 1I1 2W0 1W0 2W1 1W1 | held 4
    """
    s = num_ranks
    shift = 0 if s % 2 else 3  # else two actions of a rank would have the same tick
    blocks = [
        (2 * r, 3 * s - 2 - r, 3 * s - 1 + 2 * r + shift, 6 * s - 2 - r + shift) for r in range(s)
    ]
    return _on_a_vee("v-half", s, blocks, num_microbatches, limit=2 * ((s + 2) // 2))


def v_min(num_ranks: int, num_microbatches: int) -> Schedule:
    """A third of the memory of 1F1B, the least on a V; the bubble is about two thirds of 1F1B's.

    Every rank holds at most 2 * floor((S + 4) / 3) microbatches of a stage, the memory of
    floor((S + 4) / 3) microbatches in 1F1B. Qi et al., https://arxiv.org/abs/2405.15362.

    Args:
      num_ranks: S; rank r owns the stages r and 2S - 1 - r.
      num_microbatches: M.

    Raises:
      ScheduleError: a count below 1.

    >>> print(v_min(2, 2))
    v-min: 2 ranks, 4 stages, 2 microbatches, 15 ticks; bubble 20.0% at costs F=1 I=1 W=1
    rank 0 | 0F0 0F1 .   3F0 3I0 3W0 .   0I0 0W0 3F1 3I1 3W1 .   0I1 0W1 | held 3
    rank 1 | .   1F0 2F0 .   .   2I0 1I0 1F1 2F1 2W0 1W0 2I1 1I1 2W1 1W1 | held 4
    """
    s = num_ranks
    shift = 0 if s % 3 else 2  # else two actions of a rank would have the same tick
    blocks = [(r, 2 * s - 1 - r, 2 * s + r + shift, 4 * s - 1 - r + shift) for r in range(s)]
    limit = 2 * ((s + 4) // 3)
    return _on_a_vee("v-min", s, blocks, num_microbatches, limit=limit, full_first=False)


def one_f_one_b_v(num_ranks: int, num_microbatches: int) -> Schedule:
    """Two thirds of the memory of 1F1B at about its speed, without a backward in two halves.

    Every rank holds at most 2 * floor(2S / 3) + 2 microbatches of a stage. Qi et al.,
    https://arxiv.org/abs/2405.15362.

    Args:
      num_ranks: S; rank r owns the stages r and 2S - 1 - r.
      num_microbatches: M.

    Raises:
      ScheduleError: a count below 1.

    >>> print(one_f_one_b_v(2, 2))
    1f1b-v: 2 ranks, 4 stages, 2 microbatches, 10 ticks; bubble 25.0% at costs F=1 B=2
    rank 0 | 0F0 0F1 .   3F0 3B0 3F1 3B1 0B0 .   0B1 | held 3
    rank 1 | .   1F0 2F0 1F1 2F1 2B0 1B0 2B1 1B1 .   | held 4
    """
    blocks, limit = _one_f_one_b_blocks(num_ranks), 2 * (2 * num_ranks // 3) + 2
    return _on_a_vee("1f1b-v", num_ranks, blocks, num_microbatches, limit=limit, op=Op.B)


def _on_a_vee(
    name: str,
    num_ranks: int,
    blocks: Blocks,
    num_microbatches: int,
    *,
    limit: int,
    op: Op = Op.I,
    full_first: bool = True,
) -> Schedule:
    """The blocks in turn for every microbatch, with W where there is room."""
    placement = vee(num_ranks)
    turns = in_blocks(blocks, num_microbatches, op=op)
    order = fill(turns, placement, limit=limit, full_first=full_first)
    return place(order, placement, num_microbatches, name=name)


def _one_f_one_b_blocks(num_ranks: int) -> Blocks:
    """Forwards without a stop; each B at the first two ticks of six that its rank has left."""
    forwards = [(rank, 2 * num_ranks - 1 - rank) for rank in range(num_ranks)]
    tick, ticks = 2 * num_ranks, []
    for stage in (*range(num_ranks), *reversed(range(num_ranks))):
        down, back = forwards[stage]
        # The two places for a B, counted from the forward down; its gap to the other is odd.
        places = {1: (2, 4), 3: (1, 4), 5: (1, 3)}[(back - down) % 6]
        taken = ticks[stage] if len(ticks) >= num_ranks else None
        while (tick - down) % 6 not in places or (taken is not None and (tick - taken) % 6 == 0):
            tick += 1
        ticks.append(tick)
        tick += 2
    return [(*forwards[r], ticks[r], ticks[2 * num_ranks - 1 - r]) for r in range(num_ranks)]
