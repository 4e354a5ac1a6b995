"""Schedule -> program: lifetimes to slots, hops to links, actions to branch numbers."""

import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxpipe.errors import ScheduleError
from jaxpipe.executor.program import BRANCH_OPS, COLUMNS, FUSED, IDLE, NOWHERE, Link, Program
from jaxpipe.executor.slots import Life, assign_slots
from jaxpipe.schedules import Action, Op, Schedule, needs, verify
from jaxpipe.schedules.simulate import held


class _Hop(NamedTuple):
    """A value on its way: who made it, who reads it, when it lands."""

    maker: Action
    reader: Action
    sent: int  # tick
    landed: int  # tick at whose end it is in the mail
    source: int  # rank
    target: int  # rank


def lower(
    schedule: Schedule, codes: Sequence[int], first_layers: Sequence[int], *, fuse: bool = False
) -> Program:
    """Lowers a schedule to integers.

    Args:
      schedule: verified here once more; it costs little.
      codes: for each stage the number of its code; stages of one code share branches.
      first_layers: for each stage the index of its first layer.
      fuse: whether the last stage may run F with the B that follows it, so that nothing is kept.

    Raises:
      ScheduleError: from `verify`, and for what the loop cannot run.
    """
    verify(schedule)
    check_runnable(schedule)
    fused = _fusible(schedule) if fuse else {}
    # A fused F runs when its B does; its input waits in the mail until then.
    ticks = schedule.ticks() | {f: schedule.ticks()[b] for b, f in fused.items()}
    hops = list(_hops(schedule, ticks))
    mail, num_mail = _mail_slots(schedule, ticks, hops)
    rows, num_rows = _rows(schedule, ticks, Op.F, skip=set(fused))
    left, num_left = _rows(schedule, ticks, Op.I)
    label = {a: (FUSED if a in fused else str(a.op), codes[a.stage]) for a in ticks}
    label = {a: branch for a, branch in label.items() if a not in fused.values()}
    branches = tuple(sorted(set(label.values()), key=lambda b: (BRANCH_OPS.index(b[0]), b[1])))
    shape = (schedule.num_ticks, schedule.num_ranks)
    table = {c: np.full(shape, IDLE if c == "branch" else NOWHERE, np.int32) for c in COLUMNS}
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
    meetings = _meetings(schedule.num_ticks, hops)
    for hop in hops:
        column = "keep"
        if hop.source != hop.target:
            in_first = (hop.source, hop.target) in meetings[hop.landed][0]
            column = "first" if in_first else "second"
        table[column][hop.landed, hop.target] = mail[hop.reader]
    patterns = tuple(sorted(set(meetings)))
    pattern = np.array([patterns.index(m) for m in meetings], np.int32)
    return Program(
        schedule.name, branches, table, pattern, patterns, schedule.latency, num_mail, num_rows,
        num_left, held(schedule),
    )  # fmt: skip


def check_runnable(schedule: Schedule) -> None:
    """Raises `ScheduleError` for a right schedule that the loop cannot run."""
    if schedule.latency > 1:
        raise ScheduleError(
            f"the schedule {schedule.name!r} has latency={schedule.latency}; the loop delays what"
            " crosses ranks by 0 or 1 ticks. Make the schedule with latency=0 or 1."
        )


def _fusible(schedule: Schedule) -> dict[Action, Action]:
    """{B: F} of the last stage, where every B directly follows its F; else nothing.

    All or none: a program with both sorts would have one branch more to compile.
    """
    last = schedule.num_stages - 1
    row = [a for a in schedule.rows[schedule.placement[last]] if a is not None]
    pairs = {b: f for f, b in itertools.pairwise(row) if (b.stage, b.op) == (last, Op.B)}
    follows = all(f == Action(last, Op.F, b.microbatch) for b, f in pairs.items())
    return pairs if follows and len(pairs) == schedule.num_microbatches else {}


def _hops(schedule: Schedule, ticks: dict[Action, int]) -> Iterator[_Hop]:
    """Every value that goes from one stage to the next, forwards or backwards."""
    for reader in ticks:
        for group in needs(reader, schedule.num_stages):
            maker = next(a for a in group if a in ticks)
            if maker.stage == reader.stage:
                continue  # passes through the stash
            source, target = (schedule.placement[a.stage] for a in (maker, reader))
            sent = ticks[maker]
            landed = sent + (schedule.latency if source != target else 0)
            yield _Hop(maker, reader, sent, landed, source, target)


def _mail_slots(
    schedule: Schedule, ticks: dict[Action, int], hops: Sequence[_Hop]
) -> tuple[dict[Action, int], int]:
    """The mail slot from which each action reads, and how many slots the busiest rank needs."""
    slots: dict[Action, int] = {}
    depth = 0
    for rank in range(schedule.num_ranks):
        lives = [
            Life(2 * hop.landed + 1, 2 * ticks[hop.reader], hop.reader)
            for hop in hops
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


def _meetings(num_ticks: int, hops: Sequence[_Hop]) -> list[tuple[tuple[Link, ...], ...]]:
    """For each tick its links as permutes: one where no rank hears twice, else one each way."""
    links: list[set[Link]] = [set() for _ in range(num_ticks)]
    for hop in hops:
        if hop.source != hop.target:
            links[hop.landed].add((hop.source, hop.target))
    meetings = []
    for used in links:
        senders = {b: sorted(a for a, to in used if to == b) for _, b in used}
        second = {(a, b) for b, sources in senders.items() for a in sources[1:]}
        permutes = (tuple(sorted(used - second)), tuple(sorted(second)))
        meetings.append(tuple(permute for permute in permutes if permute))
    return meetings
