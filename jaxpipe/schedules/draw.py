"""Schedules as text: a row for each rank, a cell for each tick, a dot for a bubble."""

from jaxpipe.errors import ScheduleError
from jaxpipe.schedules.cost_text import describe_costs
from jaxpipe.schedules.simulate import Costs, Lockstep, Timeline, simulate
from jaxpipe.schedules.table import Schedule

# A drawing with a mark shows this many ticks on each side of it, so that it fits on a screen.
_AROUND = 8


def text(
    schedule: Schedule,
    mark: tuple[int, int] | None = None,
    costs: Costs | None = None,
    lockstep: Lockstep | None = None,
) -> str:
    """Draws a schedule, be it right or wrong.

    Above: its counts, and the share of time that ranks are idle. At the end of a row: the most
    microbatches that the rank holds. Where every rank has the one stage of its own number, cells
    leave it out.

    Args:
      schedule: what to draw.
      mark: a cell, (rank, tick), to point at. Then only the ticks around it are drawn.
      costs: what each op takes; without them a backward takes as long as two forwards.
      lockstep: the loop that runs the schedule; without it ranks are free.

    >>> from jaxpipe.schedules.families.gpipe import gpipe
    >>> print(text(gpipe(2, 2)))
    gpipe: 2 ranks, 2 stages, 2 microbatches, 6 ticks; bubble 33.3% at costs F=1 B=2
    rank 0 | F0 F1 .  .  B0 B1 | held 2
    rank 1 | .  F0 F1 B0 B1 .  | held 2
    >>> print(text(gpipe(2, 2), mark=(1, 2)))
    gpipe: 2 ranks, 2 stages, 2 microbatches, 6 ticks
    rank 0 | 0F0 0F1 .   .   0B0 0B1 |
    rank 1 | .   1F0>1F1<1B0 1B1 .   | <-- here
    """
    header, notes = describe(schedule), [""] * schedule.num_ranks
    first, last = 0, schedule.num_ticks - 1
    if mark is None:
        timeline = _run(schedule, costs, lockstep)
        header += f"; {_bubble(timeline, costs, lockstep)}"
        notes = [f"held {held}" if held else "" for held in timeline.held] if timeline else notes
    else:
        notes[mark[0]] = "<-- here"
        first, last = max(first, mark[1] - _AROUND), min(last, mark[1] + _AROUND)
        if (first, last) != (0, schedule.num_ticks - 1):
            header += f"; here ticks {first} to {last}"
    rows = [row[first : last + 1] for row in _cells(schedule, with_stage=mark is not None)]
    width = max((len(cell) for row in rows for cell in row), default=0)
    digits = len(str(len(rows) - 1))
    lines = [header]
    for rank, (cells, note) in enumerate(zip(rows, notes, strict=True)):
        drawn = f" {' '.join(cell.ljust(width) for cell in cells)} "
        if mark is not None and mark[0] == rank:
            at = mark[1] - first
            drawn = _point(drawn, start=1 + at * (width + 1), length=len(cells[at]))
        lines.append(f"rank {rank:>{digits}} |{drawn}| {note}".rstrip())
    return "\n".join(lines)


def describe(schedule: Schedule) -> str:
    """The schedule's name and counts."""
    counts = [
        _count(schedule.num_ranks, "rank"),
        _count(schedule.num_stages, "stage"),
        _count(schedule.num_microbatches, "microbatch"),
        _count(schedule.num_ticks, "tick"),
    ]
    if schedule.latency:
        counts.append(f"latency {schedule.latency}")
    return f"{schedule.name}: {', '.join(counts)}"


def summarise(
    schedule: Schedule, costs: Costs | None = None, lockstep: Lockstep | None = None
) -> str:
    """What a run of the schedule shows: makespan and bubble.

    >>> from jaxpipe.schedules.families.gpipe import gpipe
    >>> summarise(gpipe(2, 2))
    'makespan 9; bubble 33.3% at costs F=1 B=2'
    """
    timeline = _run(schedule, costs, lockstep)
    bubble = _bubble(timeline, costs, lockstep)
    return f"makespan {timeline.makespan:g}; {bubble}" if timeline else bubble


def _count(number: int, noun: str) -> str:
    """One rank, two ranks, two microbatches."""
    plural = "es" if noun.endswith("ch") else "s"
    return f"{number} {noun}{plural if number != 1 else ''}"


def _run(schedule: Schedule, costs: Costs | None, lockstep: Lockstep | None) -> Timeline | None:
    """A run on paper, or `None` if the schedule does not run."""
    try:
        return simulate(schedule, costs, lockstep)
    except ScheduleError:
        return None


def _bubble(timeline: Timeline | None, costs: Costs | None, lockstep: Lockstep | None) -> str:
    """The share of time that ranks are idle, and at what costs."""
    if timeline is None:
        return "does not run: see verify()"
    used = {action.op for action in timeline.starts}
    prices = describe_costs(costs or Costs(), used)
    where = f" in lockstep ({lockstep.barrier})" if lockstep else ""
    return f"bubble {timeline.bubble_fraction:.1%} at costs {prices}{where}"


def _cells(schedule: Schedule, with_stage: bool) -> list[list[str]]:
    """The text of every cell; rows that end early are filled up with blanks."""
    clear = schedule.placement == tuple(range(schedule.num_ranks)) and all(
        action is None or action.stage == rank
        for rank, row in enumerate(schedule.rows)
        for action in row
    )
    short = clear and not with_stage
    rows = []
    for row in schedule.rows:
        cells = [
            "." if action is None else f"{action.op}{action.microbatch}" if short else str(action)
            for action in row
        ]
        rows.append(cells + [""] * (schedule.num_ticks - len(row)))
    return rows


def _point(drawn: str, start: int, length: int) -> str:
    """Puts a cell of a drawn row between `>` and `<`, in the spaces around it."""
    cell = drawn[start : start + length]
    return f"{drawn[: start - 1]}>{cell}<{drawn[start + length + 1 :]}"
