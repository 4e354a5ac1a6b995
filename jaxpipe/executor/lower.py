"""Schedule -> program: lifetimes to slots, hops to links, actions to branch numbers."""

from collections.abc import Collection, Sequence

import numpy as np

from jaxpipe.errors import ScheduleError
from jaxpipe.executor.program import ARRIVAL, BRANCH_OPS, COLUMNS, FUSED, IDLE, NOWHERE, Program
from jaxpipe.executor.slots import Life, assign_slots
from jaxpipe.schedules import Action, Op, Schedule, verify
from jaxpipe.schedules.fusion import fused_ticks, fusible
from jaxpipe.schedules.meetings import Hop, Permute, hops, permutes, steady
from jaxpipe.schedules.simulate import held


def lower(
    schedule: Schedule,
    codes: Sequence[int],
    first_layers: Sequence[int],
    *,
    fuse: bool = False,
    always: bool = False,
) -> Program:
    """Lowers a schedule to integers.

    Args:
      schedule: verified here once more; it costs little.
      codes: for each stage the number of its code; stages of one code share branches.
      first_layers: for each stage the index of its first layer.
      fuse: whether the last stage may run F with the B that follows it, so that nothing is kept.
      always: whether every tick uses all links, so that no choice of them encloses the permutes.

    Raises:
      ScheduleError: from `verify`, and for what the loop cannot run.
    """
    verify(schedule)
    check_runnable(schedule)
    fused = fusible(schedule) if fuse else {}
    # The input of a fused F waits in the mail until its B runs.
    ticks = fused_ticks(schedule) if fuse else schedule.ticks()
    landed = hops(schedule, ticks)
    meetings = permutes(landed)
    if always:
        meetings = dict.fromkeys(range(schedule.num_ticks), steady(landed))
    mail, num_mail = _mail_slots(schedule, ticks, landed)
    rows, num_rows = _rows(schedule, ticks, Op.F, skip=set(fused))
    left, num_left = _rows(schedule, ticks, Op.I)
    label = {a: (FUSED if a in fused else str(a.op), codes[a.stage]) for a in ticks}
    label = {a: branch for a, branch in label.items() if a not in fused.values()}
    branches = tuple(sorted(set(label.values()), key=lambda b: (BRANCH_OPS.index(b[0]), b[1])))
    shape = (schedule.num_ticks, schedule.num_ranks)
    arrivals = [ARRIVAL.format(n) for n in range(max(map(len, meetings.values()), default=0))]
    table = {c: np.full(shape, NOWHERE, np.int32) for c in (*COLUMNS, *arrivals)}
    table["branch"][:] = IDLE
    for action, branch in label.items():
        cell = dict(
            branch=1 + branches.index(branch),
            microbatch=action.microbatch,
            layer=first_layers[action.stage],
            read=mail.get(fused.get(action, action), NOWHERE),
            row=rows.get((action.stage, action.microbatch), NOWHERE),
            left=left.get((action.stage, action.microbatch), NOWHERE),
        )
        for column, value in cell.items():
            table[column][ticks[action], schedule.placement[action.stage]] = value
    for hop in landed:
        column = _arrival(hop, meetings[hop.landed]) if hop.crosses else "keep"
        table[column][hop.landed, hop.target] = mail[hop.reader]
    by_tick = [meetings.get(tick, ()) for tick in range(schedule.num_ticks)]
    patterns = tuple(sorted(set(by_tick)))
    pattern = np.array([patterns.index(m) for m in by_tick], np.int32)
    return Program(
        schedule.name, branches, table, pattern, patterns, schedule.latency, num_mail, num_rows,
        num_left, held(schedule),
    )  # fmt: skip


def _arrival(hop: Hop, meeting: Sequence[Permute]) -> str:
    """The column for what arrives by the permute that takes this hop."""
    link = (hop.source, hop.target)
    takes = [permute.forwards == hop.forwards and link in permute.links for permute in meeting]
    return ARRIVAL.format(takes.index(True))


def check_runnable(schedule: Schedule) -> None:
    """Raises `ScheduleError` for a right schedule that the loop cannot run."""
    if schedule.latency > 1:
        raise ScheduleError(
            f"the schedule {schedule.name!r} has latency={schedule.latency}; the loop delays what"
            " crosses ranks by 0 or 1 ticks. Make the schedule with latency=0 or 1."
        )


def _mail_slots(
    schedule: Schedule, ticks: dict[Action, int], landed: Sequence[Hop]
) -> tuple[dict[Action, int], int]:
    """The mail slot from which each action reads, and how many slots the busiest rank needs."""
    slots: dict[Action, int] = {}
    depth = 0
    for rank in range(schedule.num_ranks):
        lives = [
            Life(2 * hop.landed + 1, 2 * ticks[hop.reader], hop.reader)
            for hop in landed
            if hop.target == rank
        ]
        found, needed = assign_slots(lives)
        slots |= found  # pyright: ignore[reportAssignmentType, reportCallIssue, reportArgumentType]
        depth = max(depth, needed)
    return slots, depth


def _rows(
    schedule: Schedule, ticks: dict[Action, int], start: Op, skip: Collection[Action] = ()
) -> tuple[dict[tuple[int, int], int], int]:
    """A row for each (stage, microbatch) from its F (or I) until its backward ends, with B or W.

    Also how many rows the busiest rank needs.
    """
    rows: dict[tuple[int, int], int] = {}
    depth = 0
    for rank in range(schedule.num_ranks):
        lives = [
            Life(2 * ticks[begin], 2 * tick, a[::2])
            for a, tick in ticks.items()
            if a.op in (Op.B, Op.W)
            and a not in skip
            and schedule.placement[a.stage] == rank
            and (begin := Action(a.stage, start, a.microbatch)) in ticks
        ]
        found, needed = assign_slots(lives)
        rows |= found  # pyright: ignore[reportAssignmentType, reportCallIssue, reportArgumentType]
        depth = max(depth, needed)
    return rows, depth
