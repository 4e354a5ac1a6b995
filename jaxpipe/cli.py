"""The command line: `jaxpipe train CONFIG` and `jaxpipe draw NAME`.

Exit codes: 0, all went well; 1, a schedule in a file is wrong, and the message draws where; 2,
something that was asked for cannot be done, and the message says what; 3, training diverged; 130,
interrupted.
"""

import contextlib
import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import rich.box
import rich.console
import rich.table
import tyro

from jaxpipe import __version__
from jaxpipe.config import Config, Resume, read, validate
from jaxpipe.errors import ConfigError, JaxpipeError, ScheduleError
from jaxpipe.schedules import Costs, Lockstep, Op, Schedule, draw, pictures, simulate, verify
from jaxpipe.schedules.cost_text import describe_costs, parse_costs
from jaxpipe.schedules.families.names import NAMES, by_name
from jaxpipe.schedules.files import load, save
from jaxpipe.simulate_devices import simulate_devices

_WRONG, _USAGE, _DIVERGED, _INTERRUPTED = 1, 2, 3, 130


@dataclass(frozen=True)
class Train:
    """Train a model as a YAML file says; options change single fields of it.

    An example: jaxpipe train configs/gpt-stdlib.yaml --trainer.steps 50 --run.name short
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]
    """The YAML file; a run's own config.yaml starts the same run again."""
    resume: Resume = "auto"
    """An earlier run in the same folder is continued if its configuration is the same (auto),
    continued even if that has changed (must), or moved aside for a new one (never)."""
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)


@dataclass(frozen=True)
class Draw:
    """Draw schedules: a row for each rank, a cell for each tick, a dot for a bubble.

    An example: jaxpipe draw 1f1b --ranks 4 --microbatches 8

    A picture: jaxpipe draw 1f1b gpipe --time --costs F=1,B=2,hop=0.1 --out two.html

    A table: jaxpipe draw --compare gpipe 1f1b 1f1b-eager --costs hop=0.1
    """

    names: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="NAME|FILE",
            help=f"Each one of {', '.join(NAMES)}; or a file, as CSV or in the text form.",
        ),
    ]
    ranks: int | None = None
    """Places in the pipeline; 4 if left out. Not for files, which say it themselves."""
    microbatches: int | None = None
    """Parts of a batch; 8 if left out. Not for files."""
    chunks: int | None = None
    """Stages on each rank, if the schedule leaves that open. Not for files."""
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
    compare: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print a table of makespan, bubble, what ranks hold, and ticks, rather than drawings."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (by default the process's own) and returns its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv == ["--version"]:
        print(f"jaxpipe {__version__}")
        return 0
    try:
        command = _parse(argv, Config())
        if isinstance(command, Draw):
            return _draw(command)
        # What the file says becomes the defaults of a second reading: options come on top.
        config = read(command.file)
        command = _parse(argv, config)
        assert isinstance(command, Train)
        return _train(command.config, command.resume)
    except BrokenPipeError:  # `jaxpipe draw ... | head`: whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (JaxpipeError, OSError) as error:
        print(f"jaxpipe: error: {error}", file=sys.stderr)
        return _USAGE


def _parse(argv: Sequence[str], config: Config) -> Train | Draw:
    train = tyro.conf.subcommand("train", default=Train(file=tyro.MISSING, config=config))
    drawing = tyro.conf.subcommand("draw")
    return tyro.cli(
        Annotated[Train, train] | Annotated[Draw, drawing],  # pyright: ignore[reportArgumentType]
        args=argv,
        prog="jaxpipe",
        description="Pipeline-parallel training in plain JAX. --version prints the version.",
    )


# --- draw -----------------------------------------------------------------------------------------


_PICTURES = {".svg": pictures.svg, ".html": pictures.html, ".json": pictures.trace}
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
        schedule = _schedule(command, name)
        try:
            verify(schedule)
        except ScheduleError as error:
            print(f"jaxpipe: {name} is wrong: {error}", file=sys.stderr)
            return _WRONG
        beside = command.compare or len(command.names) > 1
        cases.append(_Case(schedule, _shared(costs, schedule) if beside else costs, lockstep))
        simulate(*cases[-1])  # refuses costs that do not fit the stages
    if command.compare:
        _print_comparison(cases, costs)
    elif command.out is not None:
        _write(command.out, cases, on_times=command.time)
    else:
        print(_text(cases))
    return 0


def _shared(costs: Costs, schedule: Schedule) -> Costs:
    """Costs of a rank's layers, for its stages: else schedules with more of them would be slower.

    Costs that are given stage by stage stay as they are.
    """
    share = schedule.num_ranks / schedule.num_stages
    all_layers = {name: getattr(costs, name) for name in (*Op, "optimizer")}
    scaled = {name: cost * share for name, cost in all_layers.items() if isinstance(cost, float)}
    return dataclasses.replace(costs, **scaled)


def _check(command: Draw) -> None:
    """Options that contradict each other."""
    suffix = command.out.suffix.lower() if command.out else ""
    endings = (*_PICTURES, ".txt", *_TABLES)
    counts = (command.ranks, command.microbatches, command.chunks)
    problem = ""
    if not command.names:
        problem = f"expected a NAME or a FILE; names are {', '.join(NAMES)}"
    elif all(map(_is_file, command.names)) and any(count is not None for count in counts):
        problem = "files say how many ranks, microbatches and chunks they have; leave that out"
    elif command.compare and command.out:
        problem = "--compare prints a table and writes no --out; leave one of them out"
    elif command.out and suffix not in endings:
        problem = f"got --out {command.out}; expected a name that ends in {', '.join(endings)}"
    elif command.time and suffix not in _PICTURES:
        problem = f"--time needs an --out that ends in {', '.join(_PICTURES)}; text has only ticks"
    elif suffix in _TABLES and len(command.names) > 1:
        problem = f"a {suffix} file holds one schedule; got {len(command.names)}"
    if problem:
        raise ConfigError(f"draw: {problem}.")


def _is_file(name: str) -> bool:
    """Whatever has an ending, or is there."""
    return name not in NAMES and bool(Path(name).suffix or Path(name).is_file())


def _schedule(command: Draw, name: str) -> Schedule:
    """The schedule of a name, or in a file."""
    if _is_file(name):
        return load(name)
    ranks = 4 if command.ranks is None else command.ranks
    microbatches = 8 if command.microbatches is None else command.microbatches
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
    if suffix in _PICTURES:
        text = _PICTURES[suffix]([chart(*case) for case in cases])
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


# --- train ----------------------------------------------------------------------------------------


def _train(config: Config, resume: Resume) -> int:
    validate(config)
    simulate_devices(config.pipeline.ranks * config.pipeline.data)
    from jaxpipe.train import Diverged, run  # not before devices are simulated, nor for `draw`

    try:
        with _stop_signals() as should_stop:
            outcome = run(config, resume=resume, should_stop=should_stop)
    except Diverged as error:
        print(f"jaxpipe: {error}", file=sys.stderr)
        return _DIVERGED
    except KeyboardInterrupt:
        folder = Path(config.run.directory) / config.run.name / "checkpoints"
        print(f"jaxpipe: interrupted at once; older checkpoints are in {folder}", file=sys.stderr)
        return _INTERRUPTED
    print(
        f"held-out loss {outcome.held_out_loss:.4f} nats per byte"
        f" (byte bigram {outcome.bigram_loss:.4f}) after step {outcome.step}\n"
        f"checkpoint: {outcome.checkpoint}"
    )
    if outcome.ending == "interrupted":
        print("interrupted; the same command goes on from the checkpoint")
        return _INTERRUPTED
    return 0


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C or SIGTERM asks for an orderly end, and the second ends at once."""
    asked = threading.Event()

    def ask(*_: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        # A handler may come in the middle of a print, and print must not be entered twice.
        os.write(2, b"\njaxpipe: stopping after this step; once more to stop at once\n")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
