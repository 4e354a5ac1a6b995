"""DualPipeV: forwards and backwards of different microbatches side by side, on a V of stages."""

from collections import deque

from jaxpipe.schedules.place import place, vee
from jaxpipe.schedules.table import Action, Op, Schedule


def dualpipe_v(num_ranks: int, num_microbatches: int) -> Schedule:
    """In the long middle, a forward stands beside a backward that does not need it.

    That pays where the two overlap, such as one's communication with the other's arithmetic. Else
    it takes as long as ZB-V: at F = I = W = 1 and B = 2, 6M + S - 1 forwards of one stage for
    M >= 2S. Every rank holds at most 2S + 1 microbatches of a stage. DeepSeek-AI,
    https://github.com/deepseek-ai/DualPipe.

    Args:
      num_ranks: S; rank r owns the stages r and 2S - 1 - r.
      num_microbatches: M. With fewer than 2S, those that are missing are left out.

    Raises:
      ScheduleError: a count below 1.

    >>> print(dualpipe_v(2, 4))
    dualpipe-v: 2 ranks, 4 stages, 4 microbatches, 19 ticks; bubble 4.0% at costs F=1 B=2 I=1 W=1
    rank 0 | 0F0 0F1 0F2 3F0 3I0 3W0 3F1 0F3 3B1 3F2 0B0 3B2 3F3 0B1 3B3 0I2 0W2 0I3 0W3 | held 5
    rank 1 | .   1F0 2F0 1F1 2F1 1F2 2B0 2F2 1B0 1F3 2B1 2F3 1B1 2B2 1B2 2I3 1I3 2W3 1W3 | held 5
    """
    count = max(num_microbatches, 2 * num_ranks)
    order = []
    for rank in range(num_ranks):
        actions = _order(rank, num_ranks, count)
        order.append([action for action in actions if action.microbatch < num_microbatches])
    return place(order, vee(num_ranks), num_microbatches, name="dualpipe-v")


def _order(rank: int, num_ranks: int, num_microbatches: int) -> list[Action]:
    """What a rank does; `F0` is its next forward on the way down, `F1` on the way back."""
    here, ahead = rank + 1, num_ranks - 1 - rank
    steps = [
        "F0 " * 2 * ahead,
        "F0 F1 " * here,
        "I1 W F1 " * ahead,
        "F0 B1 F1 B0 " * (num_microbatches - 2 * num_ranks + here),
        "B1 F1 B0 " * ahead,
        " ".join(f"{'B' if i < here else 'I'}{(i + 1) % 2} " for i in range(2 * here)),
        "W I0 " * ahead,
        "W " * here,
    ]
    stages = {"0": rank, "1": 2 * num_ranks - 1 - rank}
    done: dict[tuple[str, bool], int] = {}  # chunk, is it a forward -> how many have run
    actions: list[Action] = []
    weights: deque[Action] = deque()
    for step in " ".join(steps).split():
        if step == "W":
            actions.append(weights.popleft())
            continue
        op, chunk = Op(step[0]), step[1]
        m = done.setdefault((chunk, op == Op.F), 0)
        done[chunk, op == Op.F] += 1
        actions.append(Action(stages[chunk], op, m))
        if op == Op.I:
            weights.append(Action(stages[chunk], Op.W, m))
    return actions
