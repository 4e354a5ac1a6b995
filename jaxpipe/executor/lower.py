"""Schedule -> program: lifetimes to slots, hops to links, actions to branch numbers."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxpipe.executor.program import COLUMNS, IDLE, NOWHERE, Link, Program
from jaxpipe.executor.slots import Life, assign_slots
from jaxpipe.schedules import Action, Op, Schedule, needs, verify


class _Hop(NamedTuple):
    """A value on its way: who made it, who reads it, when it lands."""

    maker: Action
    reader: Action
    sent: int  # tick
    landed: int  # tick at whose end it is in the mail
    source: int  # rank
    target: int  # rank


def lower(schedule: Schedule, codes: Sequence[int], first_layers: Sequence[int]) -> Program:
    """Lowers a schedule to integers.

    Args:
      schedule: verified here once more; it costs little.
      codes: for each stage the number of its code; stages of one code share branches.
      first_layers: for each stage the index of its first layer.

    Raises:
      ScheduleError: from `verify`.
    """
    verify(schedule)
    ticks = schedule.ticks()
    used = {(action.op, codes[action.stage]) for action in ticks}
    branches = tuple(sorted(used, key=lambda branch: (list(Op).index(branch[0]), branch[1])))
    shape = (schedule.num_ticks, schedule.num_ranks)
    table = {c: np.full(shape, IDLE if c == "branch" else NOWHERE, np.int32) for c in COLUMNS}
    hops = list(_hops(schedule, ticks))
    mail, num_mail = _mail_slots(schedule, ticks, hops)
    rows, held = _stash_rows(schedule, ticks)
    for action, tick in ticks.items():
        rank = schedule.placement[action.stage]
        cell = dict(
            branch=1 + branches.index((action.op, codes[action.stage])),
            microbatch=action.microbatch,
            layer=first_layers[action.stage],
            read=mail.get(action, NOWHERE),
            row=rows.get(action[::2], NOWHERE),
        )
        for column, value in cell.items():
            table[column][tick, rank] = value
    meetings = _meetings(shape[0], hops)
    for hop in hops:
        if hop.source == hop.target:
            table["keep"][hop.landed, hop.target] = mail[hop.reader]
            continue
        first, *_ = meetings[hop.landed]
        column = "first" if (hop.source, hop.target) in first else "second"
        table[column][hop.landed, hop.target] = mail[hop.reader]
    patterns = tuple(sorted(set(meetings)))
    pattern = np.array([patterns.index(m) for m in meetings], np.int32)
    depth = max(held, default=0)
    return Program(
        schedule.name, branches, table, pattern, patterns, schedule.latency, num_mail, depth, held
    )


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


def _stash_rows(
    schedule: Schedule, ticks: dict[Action, int]
) -> tuple[dict[tuple[int, int], int], tuple[int, ...]]:
    """The stash row of each (stage, microbatch), and how many rows each rank uses."""
    rows, held = {}, []
    for rank in range(schedule.num_ranks):
        lives = []
        for action, tick in ticks.items():
            if action.op is Op.F or schedule.placement[action.stage] != rank:
                continue
            start = ticks.get(Action(action.stage, Op.F, action.microbatch), tick)
            if action.op in (Op.B, Op.I):
                lives.append(Life(2 * start, 2 * tick, (action.stage, action.microbatch)))
        found, needed = assign_slots(lives)
        rows |= found
        held.append(needed)
    return rows, tuple(held)


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
