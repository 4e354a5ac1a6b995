"""The judge of schedules: every gradient is computed once, in order, where its stage lives."""

from typing import NamedTuple, NoReturn

from jaxpipe.errors import ScheduleError
from jaxpipe.schedules import draw
from jaxpipe.schedules.place import check_shape
from jaxpipe.schedules.table import Action, Op, Schedule, needs


class _Cell(NamedTuple):
    rank: int
    tick: int


def verify(schedule: Schedule) -> None:
    """Raises unless the schedule computes the right thing and never waits in vain.

    Every stage runs every microbatch as F and B, or as F, I and W; or the whole schedule is
    forward-only and runs F alone. Each action runs once, on the rank that owns its stage, after
    all that it needs has arrived there. Stages that follow each other live on one rank or on
    neighbours on the ring of ranks.

    Raises:
      ScheduleError: with the cell, what is wrong, what to do, and the drawing with the cell marked.

    >>> from jaxpipe.schedules.table import parse
    >>> verify(parse('''
    ... schedule: hasty
    ... placement: 0 1
    ... num_microbatches: 1
    ... latency: 0
    ... rank 0: 0F0 0B0 .
    ... rank 1: .   1F0 1B0
    ... '''))
    Traceback (most recent call last):
      ...
    jaxpipe.errors.ScheduleError: rank 0, tick 1: 0B0 needs 1B0 (rank 1, tick 2), ready at tick 3.
    Move 0B0 to a later tick or 1B0 to an earlier one.
    <BLANKLINE>
    hasty: 2 ranks, 2 stages, 1 microbatch, 3 ticks
    rank 0 | 0F0>0B0<.   | <-- here
    rank 1 | .   1F0 1B0 |
    """
    check_shape(schedule.placement, schedule.num_ranks, schedule.num_microbatches, schedule.latency)
    _check_rows(schedule)
    cells = _check_cells(schedule)
    _check_complete(schedule, cells)
    # By tick, so that the message is about the first that goes wrong, not about what follows.
    for action in sorted(cells, key=lambda action: cells[action].tick):
        _check_needs(schedule, cells, action)


def _check_rows(schedule: Schedule) -> None:
    """All rows have the same number of ticks."""
    for rank, row in enumerate(schedule.rows):
        if len(row) != schedule.num_ticks:
            raise ScheduleError(
                f"rank {rank} has {len(row)} ticks; expected {schedule.num_ticks}, as in the"
                f" longest row.\nFill the row up with None.\n\n{draw.text(schedule)}"
            )


def _check_cells(schedule: Schedule) -> dict[Action, _Cell]:
    """Each action exists, stands once, and on the rank that owns its stage."""
    cells: dict[Action, _Cell] = {}
    for rank, row in enumerate(schedule.rows):
        for tick, action in enumerate(row):
            if action is None:
                continue
            cell = _Cell(rank, tick)
            _check_action(schedule, action, cell)
            if action in cells:
                problem = f"{action} ran at tick {cells[action].tick} already; expected it once."
                _refuse(schedule, cell, problem, "Take one of the two away.")
            cells[action] = cell
    return cells


def _check_action(schedule: Schedule, action: Action, cell: _Cell) -> None:
    """The action exists, and the rank of its cell owns its stage."""
    try:
        needs(action, schedule.num_stages)
    except ScheduleError as error:
        _refuse(schedule, cell, str(error), "Correct the action, or the placement.")
    if not 0 <= action.microbatch < schedule.num_microbatches:
        problem = (
            f"{action}: there is no microbatch {action.microbatch}; expected microbatches 0 to"
            f" {schedule.num_microbatches - 1}."
        )
        _refuse(schedule, cell, problem, "Correct the action, or num_microbatches.")
    if (owner := schedule.placement[action.stage]) != cell.rank:
        problem = f"{action} is on rank {cell.rank}, but stage {action.stage} is on rank {owner}."
        _refuse(schedule, cell, problem, f"Move it to rank {owner}, or change the placement.")


def _check_complete(schedule: Schedule, cells: dict[Action, _Cell]) -> None:
    """Every stage runs every microbatch as F B or as F I W, or all of them as F alone."""
    forward_only = all(action.op == Op.F for action in cells)
    allowed = ("F",) if forward_only else ("FB", "FIW")
    for stage, rank in enumerate(schedule.placement):
        for m in range(schedule.num_microbatches):
            got = "".join(op for op in Op if Action(stage, op, m) in cells)
            if got in allowed:
                continue
            problem = (
                f"stage {stage} runs microbatch {m} as {got or 'nothing'}; expected"
                f" {' or '.join(allowed)}."
            )
            closest = min(allowed, key=lambda ops: len(set(ops).symmetric_difference(got)))
            add = [f"add {stage}{op}{m}" for op in closest if op not in got]
            drop = [f"take {stage}{op}{m} away" for op in got if op not in closest]
            remedy = f"On rank {rank}, {' and '.join(add + drop)}."
            if not got:
                raise ScheduleError(f"{problem}\n{remedy}\n\n{draw.text(schedule)}")
            _refuse(schedule, cells[Action(stage, Op(got[-1]), m)], problem, remedy)


def _check_needs(schedule: Schedule, cells: dict[Action, _Cell], action: Action) -> None:
    """What the action needs has run before, and has arrived on its rank."""
    here = cells[action]
    for group in needs(action, schedule.num_stages):
        need, there = next((need, cells[need]) for need in group if need in cells)
        usable = there.tick + 1 + (schedule.latency if there.rank != here.rank else 0)
        if here.tick < usable:
            _refuse(
                schedule,
                here,
                f"{action} needs {need} (rank {there.rank}, tick {there.tick}), ready at tick"
                f" {usable}.",
                f"Move {action} to a later tick or {need} to an earlier one.",
            )


def _refuse(schedule: Schedule, cell: _Cell, problem: str, remedy: str) -> NoReturn:
    """Raises with the cell, what is wrong, what to do, and the drawing."""
    raise ScheduleError(
        f"rank {cell.rank}, tick {cell.tick}: {problem}\n{remedy}\n\n"
        f"{draw.text(schedule, mark=cell)}"
    )
