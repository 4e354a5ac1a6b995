"""What a picture shows: a bar for each action, in any unit of time, and what is held meanwhile."""

from collections.abc import Iterable
from typing import NamedTuple

from jaxpipe.schedules.simulate import Timeline
from jaxpipe.schedules.table import Action, Op, Schedule


class Bar(NamedTuple):
    """An action on a rank, from `start` to `end`."""

    rank: int
    start: float
    end: float
    action: Action


def bars_of_ticks(schedule: Schedule) -> tuple[Bar, ...]:
    """A bar of one tick for each action of the table, be it right or wrong.

    >>> from jaxpipe.schedules.families.gpipe import gpipe
    >>> print(*bars_of_ticks(gpipe(1, 1)), sep="\\n")
    Bar(rank=0, start=0, end=1, action=Action(stage=0, op=<Op.F: 'F'>, microbatch=0))
    Bar(rank=0, start=1, end=2, action=Action(stage=0, op=<Op.B: 'B'>, microbatch=0))
    """
    return tuple(
        Bar(rank, tick, tick + 1, action)
        for rank, row in enumerate(schedule.rows)
        for tick, action in enumerate(row)
        if action
    )


def bars_of_times(schedule: Schedule, timeline: Timeline) -> tuple[Bar, ...]:
    """A bar for each action from its start to its end, simulated or measured."""
    return tuple(
        Bar(rank, timeline.starts[action], timeline.ends[action], action)
        for rank, row in enumerate(schedule.rows)
        for action in row
        if action
    )


def held_steps(bars: Iterable[Bar]) -> list[tuple[float, int]]:
    """How many microbatches a rank holds: (from when, how many), step by step.

    From the start of a forward to the end of its backward: of B, or of W. Each stage of the rank
    counts. Nothing is held if there are only forwards.

    Args:
      bars: the bars of one rank.

    >>> from jaxpipe.schedules.families.one_f_one_b import one_f_one_b
    >>> held_steps(bar for bar in bars_of_ticks(one_f_one_b(2, 2)) if bar.rank == 0)
    [(0, 1), (1, 2), (4, 1), (6, 0)]
    """
    changes: dict[float, int] = {}
    backward = False
    for bar in bars:
        op = bar.action.op
        backward |= op != Op.F
        if op != Op.I:
            at = bar.start if op == Op.F else bar.end
            changes[at] = changes.get(at, 0) + (1 if op == Op.F else -1)
    steps: list[tuple[float, int]] = []
    count = 0
    for at in sorted(changes) if backward else ():
        count += changes[at]
        if changes[at]:
            steps.append((at, count))
    return steps
