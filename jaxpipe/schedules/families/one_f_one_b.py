"""1F1B: after a warm-up, each rank runs one forward, one backward, and so on."""

from jaxpipe.schedules.families.turns import in_rounds
from jaxpipe.schedules.place import loop, place
from jaxpipe.schedules.table import Op, Schedule


def one_f_one_b(num_ranks: int, num_microbatches: int, *, latency: int = 0) -> Schedule:
    """One forward, one backward: rank r of S holds at most S - r microbatches, whatever M is.

    Rank r first runs S - 1 - r forwards. Makespan and bubble are GPipe's: (1 + b)(M + S - 1) with a
    backward of b forwards, and (S - 1) / (M + S - 1). Fan et al. (DAPPLE),
    https://arxiv.org/abs/2007.01045; Narayanan et al., https://arxiv.org/abs/2104.04473.

    With a latency of one tick a hop, "eager" 1F1B, the warm-up is 2(S - 1 - r) forwards: rank r
    holds 2(S - r) - 1 microbatches, and a value has a whole tick to travel while both ranks work.
    Zhuang et al., https://arxiv.org/abs/2211.05322.

    Args:
      num_ranks: S; each rank owns one stage.
      num_microbatches: M; it may be smaller than S.
      latency: extra ticks that a hop takes; in general the warm-up is (1 + latency)(S - 1 - r).

    Raises:
      ScheduleError: a count below 1 or a negative latency.

    >>> print(one_f_one_b(2, 3))
    1f1b: 2 ranks, 2 stages, 3 microbatches, 8 ticks; bubble 25.0% at costs F=1 B=2
    rank 0 | F0 F1 .  B0 F2 B1 .  B2 | held 2
    rank 1 | .  F0 B0 F1 B1 F2 B2 .  | held 1
    """
    rounds = [range(num_microbatches)]
    order = in_rounds(num_ranks, 1, rounds, op=Op.B, lead=1 + latency)
    name = "1f1b-eager" if latency else "1f1b"
    return place(order, loop(num_ranks), num_microbatches, name=name, latency=latency)
