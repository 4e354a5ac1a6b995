"""The command line: `jaxpipe train CONFIG` and `jaxpipe draw NAME`.

Exit codes: 0, all went well; 2, something that was asked for cannot be done, and the message says
what; 3, training diverged; 130, interrupted.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from jaxpipe import __version__
from jaxpipe.config import Config, Resume, read, validate
from jaxpipe.errors import JaxpipeError
from jaxpipe.schedules.names import NAMES, by_name
from jaxpipe.simulate_devices import simulate_devices

_USAGE, _DIVERGED, _INTERRUPTED = 2, 3, 130


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
    """Draw a schedule: a row for each rank, a cell for each tick, a dot for a bubble.

    An example: jaxpipe draw 1f1b --ranks 4 --microbatches 8
    """

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(help=f"One of {', '.join(NAMES)}.")]
    ranks: int = 4
    """Places in the pipeline."""
    microbatches: int = 8
    """Parts of a batch."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (by default the process's own) and returns its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv == ["--version"]:
        print(f"jaxpipe {__version__}")
        return 0
    try:
        command = _parse(argv, Config())
        if isinstance(command, Draw):
            print(by_name(command.name, command.ranks, command.microbatches))
            return 0
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
    draw = tyro.conf.subcommand("draw")
    return tyro.cli(
        Annotated[Train, train] | Annotated[Draw, draw],  # pyright: ignore[reportArgumentType]
        args=argv,
        prog="jaxpipe",
        description="Pipeline-parallel training in plain JAX. --version prints the version.",
    )


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
