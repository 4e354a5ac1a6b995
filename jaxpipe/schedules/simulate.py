"""How long a schedule takes, and what it holds, when its actions have costs.

Two machines run it on paper. Free ranks: a rank starts its next action once it is free and all that
the action needs has arrived; ticks give the order, costs give the time, and ranks do not wait for
each other in any other way. The formulas in papers mean this one. A loop: every rank goes from tick
to tick, and those that meet at a tick wait for each other there, as one SPMD program does.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from numbers import Real
from typing import Any, Literal, TypeAlias

from jaxpipe.errors import ScheduleError
from jaxpipe.schedules.fusion import fused_ticks
from jaxpipe.schedules.meetings import hops
from jaxpipe.schedules.place import check_shape, earliest
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
      hop: what a value takes from one rank to another. Free ranks go on meanwhile; in a loop it
        is what a meeting takes.
      optimizer: what the update takes for a stage; a rank pays for its stages once, at the end.
      tick: what each tick of a loop takes besides its action, bubbles too. Free ranks have none.
    """

    F: Cost = 1.0
    B: Cost = 2.0
    I: Cost = 1.0
    W: Cost = 1.0
    hop: float = 0.0
    optimizer: Cost = 0.0
    tick: float = 0.0

    def of(self, action: Action) -> float:
        """What an action takes."""
        return at_stage(getattr(self, action.op), action.stage)

    def scaled(self, factor: float) -> "Costs":
        """The same in another unit.

        >>> Costs(F=[0.5, 2.0], hop=0.25).scaled(2)
        Costs(F=[1.0, 4.0], B=4.0, I=2.0, W=2.0, hop=0.5, optimizer=0.0, tick=0.0)
        """
        costs: dict[str, Any] = {}
        for name, cost in vars(self).items():
            single = isinstance(cost, Real)
            costs[name] = cost * factor if single else [one * factor for one in cost]
        return Costs(**costs)

    def updates(self, placement: Sequence[int], num_ranks: int) -> list[float]:
        """What the optimizer takes, rank by rank."""
        each = [(rank, at_stage(self.optimizer, stage)) for stage, rank in enumerate(placement)]
        return [sum(cost for at, cost in each if at == rank) for rank in range(num_ranks)]


def at_stage(cost: Cost, stage: int) -> float:
    """The one cost of all stages, or the stage's own."""
    return float(cost if isinstance(cost, Real) else cost[stage])  # pyright: ignore


@dataclasses.dataclass(frozen=True)
class Lockstep:
    """One program that all ranks run tick by tick; they wait for each other where they meet.

    There is a core for every rank: what it costs to share cores is not in it.

    Attributes:
      barrier: who waits at a meeting. "links": two ranks that a link used there joins wait for each
        other, and the others go on. "all": all ranks wait for all, as XLA does on CPU.
      overlap: whether a meeting runs beside the work of the tick at whose end its values land. A
        schedule needs latency for that; without latency, a meeting always follows the work.
      fuse: whether a forward of the last stage runs with its backward, at the backward's tick,
        where the table lets each backward follow its forward; engines do so without `remat`.
      steady: whether a schedule with latency uses all its links at every tick, as engines do on
        accelerators: there a choice of links could not run beside work.
    """

    barrier: Literal["links", "all"] = "links"
    overlap: bool = True
    fuse: bool = False
    steady: bool = False


@dataclasses.dataclass(frozen=True)
class Timeline:
    """A schedule that has run, in the unit of time of its costs.

    Attributes:
      starts: when each action starts.
      ends: when each action ends.
      makespan: when the last rank is done, with its optimizer.
      bubble_fraction: the share of num_ranks * makespan in which no action or optimizer runs.
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


def simulate(
    schedule: Schedule, costs: Costs | None = None, lockstep: Lockstep | None = None
) -> Timeline:
    """Runs a schedule on paper.

    Args:
      schedule: a schedule that passes `verify`.
      costs: what each op takes; without it `Costs()`, a backward of two forwards.
      lockstep: the loop that runs it. Without it ranks are free, the latency of the schedule does
        not count, and a hop always takes `costs.hop`.

    Raises:
      ScheduleError: the schedule deadlocks, the costs do not fit its stages, or there is no such
        barrier.

    >>> from jaxpipe.schedules.families.one_f_one_b import one_f_one_b
    >>> print(simulate(one_f_one_b(4, 8), Costs(F=1, B=1)))
    makespan 22; bubble 27.3%; held by rank: 4 3 2 1

    In its steady state some rank runs B at every tick, and each tick ends with a meeting: where all
    ranks wait for all, every tick is as long as a B.

    >>> print(simulate(one_f_one_b(4, 8), Costs(F=1, B=2), Lockstep("all")))
    makespan 40; bubble 40.0%; held by rank: 4 3 2 1
    """
    costs = costs or Costs()
    check_costs(costs, schedule.num_stages)
    if lockstep is None:
        starts = earliest(schedule.order, schedule.placement, duration=costs.of, hop=costs.hop)
        clocks = [
            max((starts[action] + costs.of(action) for action in actions), default=0)
            for actions in schedule.order
        ]
    else:
        starts, clocks = _run(schedule, costs, lockstep)
    ends = {action: start + costs.of(action) for action, start in starts.items()}
    updates = costs.updates(schedule.placement, schedule.num_ranks)
    makespan = max((at + update for at, update in zip(clocks, updates, strict=True)), default=0)
    work = sum(costs.of(action) for action in starts) + sum(updates)
    capacity = schedule.num_ranks * makespan
    return Timeline(
        starts=starts,
        ends=ends,
        makespan=makespan,
        bubble_fraction=max(0.0, 1 - work / capacity) if capacity else 0.0,
        held=held(schedule),
    )


def _run(
    schedule: Schedule, costs: Costs, lockstep: Lockstep
) -> tuple[dict[Action, float], list[float]]:
    """When each action starts in a loop, and when each rank leaves it."""
    check_shape(schedule.placement, schedule.num_ranks, schedule.num_microbatches, schedule.latency)
    ticks = fused_ticks(schedule) if lockstep.fuse else schedule.ticks()
    work = _work(schedule, ticks)
    meetings = _partners(schedule, lockstep, ticks)
    clocks = [0.0] * schedule.num_ranks
    starts: dict[Action, float] = {}
    for tick in range(schedule.num_ticks):
        partners = meetings.get(tick, {})
        # With latency, what meets was made before this tick, whose work need not be waited for.
        met = _meet(clocks, partners, costs.hop) if schedule.latency else clocks
        begun = clocks if lockstep.overlap else met
        clocks = [at + costs.tick for at in begun]
        for action in work[tick]:
            rank = schedule.placement[action.stage]
            starts[action] = clocks[rank]
            clocks[rank] += costs.of(action)
        if schedule.latency:
            clocks = [max(pair) for pair in zip(clocks, met, strict=True)]
        else:
            clocks = _meet(clocks, partners, costs.hop)
    return starts, clocks


def _work(schedule: Schedule, ticks: Mapping[Action, int]) -> list[list[Action]]:
    """What runs at each tick; of a rank's own, in its order."""
    work: list[list[Action]] = [[] for _ in range(schedule.num_ticks)]
    for actions in schedule.order:
        for action in actions:
            work[ticks[action]].append(action)
    return work


def _meet(
    clocks: Sequence[float], partners: Mapping[int, Collection[int]], hop: float
) -> list[float]:
    """When each rank leaves a meeting; those that take part in none go on as they are."""
    return [
        max(clocks[other] for other in partners[rank]) + hop if rank in partners else at
        for rank, at in enumerate(clocks)
    ]


def _partners(
    schedule: Schedule, lockstep: Lockstep, ticks: Mapping[Action, int]
) -> dict[int, dict[int, set[int]]]:
    """For each tick with a meeting, {rank: whom it waits for, itself among them}."""
    if lockstep.barrier not in ("links", "all"):
        raise ScheduleError(f"got barrier={lockstep.barrier!r}; expected 'links' or 'all'.")
    everyone = set(range(schedule.num_ranks))
    meetings: dict[int, dict[int, set[int]]] = {}
    landed = [hop for hop in hops(schedule, ticks) if hop.crosses]
    if lockstep.steady and schedule.latency:
        every = range(schedule.num_ticks)
        landed = [hop._replace(landed=tick) for hop in landed for tick in every]
    for hop in landed:
        at = meetings.setdefault(hop.landed, {})
        if lockstep.barrier == "all":
            at |= dict.fromkeys(everyone, everyone)
            continue
        for rank in (hop.source, hop.target):
            at.setdefault(rank, set()).update((hop.source, hop.target))
    return meetings


def held(schedule: Schedule) -> tuple[int, ...]:
    """Per rank, the most microbatches at once between F and the end of their backward.

    Counted on the table's ticks, as the executor counts slots: from the tick of F through the
    tick of B, or of W. A schedule that is only forward holds nothing.
    """
    if not any(action and action.op != Op.F for row in schedule.rows for action in row):
        return (0,) * schedule.num_ranks
    return tuple(_peak([action.op for action in actions]) for actions in schedule.order)


def _peak(ops: Sequence[Op]) -> int:
    """The most microbatches that a rank holds while it runs these ops."""
    now = most = 0
    for op in ops:
        now += op == Op.F
        most = max(most, now)
        now -= op in (Op.B, Op.W)
    return most


def check_costs(costs: Costs, num_stages: int) -> None:
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
