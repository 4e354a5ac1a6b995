"""How long a schedule takes, and what it holds, when its actions have costs.

A rank starts its next action once it is free and all that the action needs has arrived: ticks give
the order, costs give the time. Ranks do not wait for each other in any other way.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TypeAlias

from jaxpipe.errors import ScheduleError
from jaxpipe.schedules.place import earliest
from jaxpipe.schedules.table import Action, Op, Schedule

Cost: TypeAlias = float | Sequence[float]
"""One cost for all stages, or one for each."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """What each op takes, in any unit of time; for unequal stages a sequence, one cost each.

    >>> Costs(F=[1, 1, 1, 3]).of(Action(3, Op.F, 0))
    3.0

    Attributes:
      F: a forward.
      B: a full backward.
      I: the input gradient alone.
      W: the weight gradient alone.
      hop: what a value takes from one rank to another; the ranks go on meanwhile.
    """

    F: Cost = 1.0
    B: Cost = 2.0
    I: Cost = 1.0
    W: Cost = 1.0
    hop: float = 0.0

    def of(self, action: Action) -> float:
        """What an action takes."""
        cost = getattr(self, action.op)
        return float(cost if isinstance(cost, Real) else cost[action.stage])


@dataclasses.dataclass(frozen=True)
class Timeline:
    """A schedule that has run, in the unit of time of its costs.

    Attributes:
      starts: when each action starts; the first at 0.
      ends: when each action ends.
      makespan: when the last action ends.
      bubble_fraction: the idle share of num_ranks * makespan.
      held: per rank, the most microbatches at once between F and the end of their backward; a
        rank with several stages counts each of them.
    """

    starts: Mapping[Action, float]
    ends: Mapping[Action, float]
    makespan: float
    bubble_fraction: float
    held: tuple[int, ...]

    def __str__(self) -> str:
        held = " ".join(map(str, self.held))
        return (
            f"makespan {self.makespan:g}; bubble {self.bubble_fraction:.1%}; held by rank: {held}"
        )


def simulate(schedule: Schedule, costs: Costs | None = None) -> Timeline:
    """Runs a schedule on paper.

    The latency of a schedule is for the executor; here a hop takes `costs.hop`.

    Args:
      schedule: a schedule that passes `verify`.
      costs: what each op takes; without it `Costs()`, a backward of two forwards.

    Raises:
      ScheduleError: the schedule deadlocks, or the costs do not fit its stages.

    >>> from jaxpipe.schedules.one_f_one_b import one_f_one_b
    >>> print(simulate(one_f_one_b(4, 8), Costs(F=1, B=1)))
    makespan 22; bubble 27.3%; held by rank: 4 3 2 1
    """
    costs = costs or Costs()
    _check(costs, schedule.num_stages)
    order = [[action for action in row if action] for row in schedule.rows]
    starts = earliest(order, schedule.placement, duration=costs.of, hop=costs.hop)
    ends = {action: start + costs.of(action) for action, start in starts.items()}
    makespan = max(ends.values(), default=0)
    work = sum(costs.of(action) for action in starts)
    capacity = schedule.num_ranks * makespan
    return Timeline(
        starts=starts,
        ends=ends,
        makespan=makespan,
        bubble_fraction=max(0.0, 1 - work / capacity) if capacity else 0.0,
        held=held(schedule),
    )


def held(schedule: Schedule) -> tuple[int, ...]:
    """Per rank, the most microbatches at once between F and the end of their backward.

    Counted on the table's ticks, as the executor counts slots: from the tick of F through the
    tick of B, or of W. A schedule that is only forward holds nothing.
    """
    if not any(action and action.op != Op.F for row in schedule.rows for action in row):
        return (0,) * schedule.num_ranks
    return tuple(_peak([action.op for action in row if action]) for row in schedule.rows)


def _peak(ops: Sequence[Op]) -> int:
    """The most microbatches that a rank holds while it runs these ops."""
    now = most = 0
    for op in ops:
        now += op == Op.F
        most = max(most, now)
        now -= op in (Op.B, Op.W)
    return most


def _check(costs: Costs, num_stages: int) -> None:
    """Costs are not negative, and there is one for every stage."""
    for field in dataclasses.fields(costs):
        cost = getattr(costs, field.name)
        each = [cost] * num_stages if isinstance(cost, Real) else list(cost)
        if len(each) != num_stages:
            raise ScheduleError(
                f"costs.{field.name} has {len(each)} costs; expected one number, or one for each"
                f" of {num_stages} stages."
            )
        if not all(float(one) >= 0 for one in each):
            raise ScheduleError(f"costs.{field.name} is {cost}; expected 0 or more.")
