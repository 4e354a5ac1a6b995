"""`jaxpipe draw NAME|FILE`."""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import rich.box
import rich.console
import rich.table
import tyro

from jaxpipe.cli.out import taken
from jaxpipe.errors import ConfigError, ScheduleError
from jaxpipe.schedules import (
    AUTO,
    MOST_CHUNKS,
    NAMES,
    Costs,
    Lockstep,
    Schedule,
    by_name,
    describe_costs,
    draw,
    load,
    parse_costs,
    per_stage,
    pictures,
    save,
    search,
    simulate,
    verify,
)

_WRONG = 1


@dataclass(frozen=True)
class Draw:
    """Draw schedules: a row for each rank, a cell for each tick, a dot for a bubble.

    An example: jaxpipe draw 1f1b --ranks 4 --microbatches 8

    A picture: jaxpipe draw 1f1b gpipe --time --costs F=1,B=2,hop=0.1 --out two.html

    A table: jaxpipe draw --compare gpipe 1f1b auto --costs F=1,I=1.2,W=0.8 --memory 5
    """

    names: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="NAME|FILE",
            help=f"Each one of {', '.join(NAMES)}; auto, for the best that a search finds; or a"
            " file, as CSV or in the text form.",
        ),
    ]
    ranks: int | None = None
    """Places in the pipeline; 4 if left out. Not for files, which say it themselves."""
    microbatches: int | None = None
    """Parts of a batch; 8 if left out. Not for files."""
    chunks: int | None = None
    """Stages on each rank, if the schedule leaves that open; for auto at most, and 2 if left out.
    Not for files."""
    memory: float | None = None
    """For auto: how many microbatches a rank may hold, with all of its layers; as many as there are
    ranks if left out."""
    costs: Annotated[str, tyro.conf.arg(metavar="F=1,B=2,...")] = ""
    """What F, B, I, W, hop, optimizer and tick take, in any unit; F=1:1:3 for unequal stages.
    Beside other schedules a number is for all layers of a rank, which its stages share."""
    lockstep: Literal["free", "links", "all"] = "free"
    """Who waits for whom where values pass from rank to rank: nobody, the ranks that a used link
    joins, or all ranks."""
    time: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Draw times at these costs rather than ticks; needs --out."""
    out: Path | None = None
    """Where to write, and by its ending what: .svg, .html, .json (a trace for Perfetto) or .txt; or
    the table itself, which `draw` reads again: .csv, .schedule."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write --out also where a file is."""
    compare: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print a table of makespan, bubble, what ranks hold, and ticks, rather than drawings."""

    def run(self) -> int:
        """Draws, and returns the exit code."""
        return _draw(self)


_TABLES = (".csv", ".schedule")


class _Case(NamedTuple):
    """A schedule and how it runs on paper."""

    schedule: Schedule
    costs: Costs
    lockstep: Lockstep | None


def _draw(command: Draw) -> int:
    _check(command)
    costs = parse_costs(command.costs)
    lockstep = None if command.lockstep == "free" else Lockstep(command.lockstep)
    cases = []
    for name in command.names:
        schedule = _schedule(command, name, costs, lockstep)
        try:
            verify(schedule)
        except ScheduleError as error:
            print(f"jaxpipe: {name} is wrong: {error}", file=sys.stderr)
            return _WRONG
        own = costs
        if command.compare or len(command.names) > 1 or name == AUTO:
            # Of all layers of a rank: else schedules with more stages would be slower.
            own = per_stage(costs, schedule.num_stages, schedule.num_ranks)
        cases.append(_Case(schedule, own, lockstep))
        simulate(*cases[-1])  # refuses costs that do not fit the stages
    if command.compare:
        _print_comparison(cases, costs)
    elif command.out is not None:
        _write(command.out, cases, on_times=command.time)
    else:
        print(_text(cases))
    return 0


def _check(command: Draw) -> None:
    """Options that contradict each other."""
    suffix = command.out.suffix.lower() if command.out else ""
    endings = (*pictures.FORMATS, ".txt", *_TABLES)
    counts = (command.ranks, command.microbatches, command.chunks)
    problem = ""
    if not command.names:
        problem = f"expected a NAME or a FILE; names are {', '.join(NAMES)}"
    elif all(map(_is_file, command.names)) and any(count is not None for count in counts):
        problem = "files say how many ranks, microbatches and chunks they have; leave that out"
    elif command.memory is not None and AUTO not in command.names:
        problem = "--memory is for auto; other schedules hold what they hold"
    elif command.compare and command.out:
        problem = "--compare prints a table and writes no --out; leave one of them out"
    elif command.out and suffix not in endings:
        problem = f"got --out {command.out}; expected a name that ends in {', '.join(endings)}"
    elif command.time and suffix not in pictures.FORMATS:
        problem = (
            f"--time needs an --out that ends in {', '.join(pictures.FORMATS)}; text has only ticks"
        )
    elif suffix in _TABLES and len(command.names) > 1:
        problem = f"a {suffix} file holds one schedule; got {len(command.names)}"
    elif command.out:
        problem = taken(command.out, command.overwrite) or ""
    if problem:
        raise ConfigError(f"draw: {problem}.")


def _is_file(name: str) -> bool:
    """Whatever has an ending, or is there."""
    return name not in (*NAMES, AUTO) and bool(Path(name).suffix or Path(name).is_file())


def _schedule(command: Draw, name: str, costs: Costs, lockstep: Lockstep | None) -> Schedule:
    """The schedule of a name, or in a file, or the best for these costs."""
    if _is_file(name):
        return load(name)
    ranks = 4 if command.ranks is None else command.ranks
    microbatches = 8 if command.microbatches is None else command.microbatches
    if name == AUTO:
        chunks = MOST_CHUNKS if command.chunks is None else command.chunks
        memory = ranks if command.memory is None else command.memory
        found = search(
            ranks, microbatches, costs, memory_limit=memory, num_chunks=chunks, lockstep=lockstep
        )
        is_family = found.origin in NAMES
        name = f"auto: {found.origin}" if is_family else found.schedule.name
        return dataclasses.replace(found.schedule, name=name)
    return by_name(name, ranks, microbatches, num_chunks=command.chunks)


def _text(cases: Sequence[_Case]) -> str:
    drawings = [
        draw.text(schedule, costs=costs, lockstep=lockstep) for schedule, costs, lockstep in cases
    ]
    return "\n\n".join(drawings)


def _write(path: Path, cases: Sequence[_Case], on_times: bool) -> None:
    suffix = path.suffix.lower()
    if suffix in _TABLES:
        return save(cases[0].schedule, path)
    chart = pictures.chart_of_times if on_times else pictures.chart_of_ticks
    if suffix in pictures.FORMATS:
        text = pictures.FORMATS[suffix]([chart(*case) for case in cases])
    else:
        text = f"{_text(cases)}\n"
    path.write_text(text, encoding="utf-8")


def _print_comparison(cases: Sequence[_Case], costs: Costs) -> None:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("schedule", no_wrap=True)
    for column in ("ranks", "stages", "microbatches", "ticks", "makespan", "bubble"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("held by rank", no_wrap=True)
    for case in cases:
        schedule, timeline = case.schedule, simulate(*case)
        shape = (schedule.num_ranks, schedule.num_stages, schedule.num_microbatches)
        share = schedule.num_ranks / schedule.num_stages
        table.add_row(
            schedule.name,
            *map(str, (*shape, schedule.num_ticks)),
            f"{timeline.makespan:g}",
            f"{timeline.bubble_fraction:.1%}",
            " ".join(f"{held * share:g}" for held in timeline.held),
        )
    # As wide as it is: a table in a file or a pipe is not to be cut at 80 columns.
    rich.console.Console(width=1000, highlight=False).print(table)
    print(f"costs {describe_costs(costs)} of all layers of a rank, which its stages share")
    print("held: microbatches whose activations, of all layers of a rank, it keeps at most")
