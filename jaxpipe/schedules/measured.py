"""What ops cost, from timelines of steps that really ran."""

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxpipe.errors import ScheduleError
from jaxpipe.schedules.fusion import fused_ticks, fusible
from jaxpipe.schedules.meetings import hops
from jaxpipe.schedules.simulate import Costs, Timeline
from jaxpipe.schedules.table import Action, Op, Schedule


def measured_costs(schedule: Schedule, timelines: Sequence[Timeline]) -> Costs:
    """Costs with which `simulate`, in lockstep, should tell what was measured; in the same unit.

    An op of a stage costs the median of its runs. A tick costs what passes on a rank between two
    actions of neighbouring ticks that no meeting parts; a hop, what passes at a meeting from the
    end of the last rank's action to the first that starts after it, less a tick.

    Ops that the schedule does not have are filled in, for `search`: a full backward takes as long
    as both of its halves, and each half as long as the other. Where forwards of the last stage run
    with their backwards, all of their time is B's, and half of it is what I and W are given; for
    costs of every op, measure a schedule with I and W. Where the schedule has latency, meetings
    are beside the work: what a hop takes is not seen, and is 0.

    Args:
      schedule: what ran, in a loop in which all ranks wait for all at a meeting.
      timelines: of one or more of its steps, such as `engine.timeline` gives.

    Raises:
      ScheduleError: no timelines, or those of another schedule.

    >>> from jaxpipe.schedules.families.gpipe import gpipe
    >>> from jaxpipe.schedules.simulate import Lockstep, simulate
    >>> table, costs = gpipe(2, 4), Costs(F=[1, 2], B=[3, 4], hop=0.5, tick=0.25)
    >>> measured_costs(table, [simulate(table, costs, Lockstep("all"))])
    Costs(F=[1.0, 2.0], B=[3.0, 4.0], I=[1.5, 2.0], W=[1.5, 2.0], hop=0.5, optimizer=0.0, tick=0.25)
    """
    _check(schedule, timelines)
    taken: dict[tuple[Op, int], list[float]] = {}
    pauses = [_pauses(schedule, timeline) for timeline in timelines]
    for timeline in timelines:
        for action, start in timeline.starts.items():
            spans = taken.setdefault((action.op, action.stage), [])
            spans.append(timeline.ends[action] - start)
    found = {key: statistics.median(spans) for key, spans in taken.items()}
    each = [_filled(found, stage) for stage in range(schedule.num_stages)]
    ops: Any = {op: [costs[op] for costs in each] for op in Op}
    tick = _median(pause for between, _ in pauses for pause in between)
    hop = _median(pause for _, met in pauses for pause in met) - tick
    return Costs(**ops, hop=max(0.0, hop), tick=tick)


def _filled(found: Mapping[tuple[Op, int], float], stage: int) -> dict[Op, float]:
    """The costs of a stage's ops, with what its schedule does not have."""
    cost = lambda op, otherwise: found.get((op, stage), otherwise)
    half = cost(Op.B, 0.0) / 2
    forward, first, second = cost(Op.F, 0.0), cost(Op.I, half), cost(Op.W, half)
    return {Op.F: forward, Op.B: cost(Op.B, first + second), Op.I: first, Op.W: second}


def _pauses(schedule: Schedule, timeline: Timeline) -> tuple[list[float], list[float]]:
    """What passes between actions of neighbouring ticks: on a rank, and where all ranks meet."""
    ticks = _ticks(schedule, timeline)
    meetings = {hop.landed for hop in hops(schedule, ticks) if hop.crosses}
    work: list[dict[int, Action]] = [{} for _ in range(schedule.num_ticks)]
    for action, tick in ticks.items():
        if timeline.ends[action] > timeline.starts[action]:
            work[tick][schedule.placement[action.stage]] = action
    clocks = [0.0] * schedule.num_ranks
    between: list[float] = []
    met: list[float] = []
    for tick, (now, then) in enumerate(itertools.pairwise(work)):
        for rank, action in now.items():
            clocks[rank] = timeline.ends[action]
        starts = {rank: timeline.starts[action] for rank, action in then.items()}
        if tick not in meetings:
            between += [starts[rank] - clocks[rank] for rank in now.keys() & starts.keys()]
        elif starts and not schedule.latency:  # with latency, ranks meet while they work
            met.append(min(starts.values()) - max(clocks))
    return between, met


def _ticks(schedule: Schedule, timeline: Timeline) -> dict[Action, int]:
    """When actions ran: forwards that took no time of their own ran with their backwards."""
    forwards = fusible(schedule).values()
    if any(timeline.ends[action] > timeline.starts[action] for action in forwards):
        return schedule.ticks()
    return fused_ticks(schedule)


def _check(schedule: Schedule, timelines: Sequence[Timeline]) -> None:
    """Timelines there are, and of this schedule.

    Raises:
      ScheduleError: else.
    """
    if not timelines:
        raise ScheduleError("got no timelines; expected those of one step or more.")
    expected = schedule.ticks().keys()
    for timeline in timelines:
        if odd := sorted(map(str, timeline.starts.keys() ^ expected)):
            raise ScheduleError(
                f"got a timeline that is not of the schedule {schedule.name!r}: {odd[0]} is only in"
                " one of them. Give the schedule that ran, such as engine.schedule."
            )


def _median(values: Iterable[float]) -> float:
    """Of no values: 0."""
    return max(0.0, statistics.median([*values] or [0.0]))
