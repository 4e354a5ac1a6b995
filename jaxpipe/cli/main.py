"""The commands of `jaxpipe`: reads a command line and runs it.

Exit codes: 0, all went well, or SIGTERM came and the run is saved; 1, an error that nobody
expected, a process that was lost, a damaged checkpoint that was inspected or verified, or a wrong
schedule in a file, which the message draws; 2, something that was asked for cannot be done, and the
message says what; 3, the last starts have all ended in one way, and another would too; 4, training
diverged; 130, interrupted. Of several processes all have the same.
"""

import dataclasses
import functools
import operator
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from jaxpipe import __version__
from jaxpipe.cli.check import Check
from jaxpipe.cli.convert import Export, Import
from jaxpipe.cli.demo import RunDemo
from jaxpipe.cli.doctor import RunDoctor
from jaxpipe.cli.draw import Draw
from jaxpipe.cli.evaluate import Evaluate
from jaxpipe.cli.generate import Generate
from jaxpipe.cli.inspect import Inspect, Verify
from jaxpipe.cli.plan import PlanRun
from jaxpipe.cli.profile import ProfileRun
from jaxpipe.cli.resume import ResumeRun
from jaxpipe.cli.summary import Summary
from jaxpipe.cli.timeline import DrawTimeline
from jaxpipe.cli.train import Train
from jaxpipe.config import Config, read_with_lines
from jaxpipe.errors import JaxpipeError
from jaxpipe.processes import INTERRUPTED

_USAGE = 2

COMMANDS = {
    "demo": RunDemo,
    "doctor": RunDoctor,
    "train": Train,
    "resume": ResumeRun,
    "check": Check,
    "plan": PlanRun,
    "timeline": DrawTimeline,
    "profile": ProfileRun,
    "draw": Draw,
    "generate": Generate,
    "eval": Evaluate,
    "summary": Summary,
    "inspect": Inspect,
    "verify": Verify,
    "export": Export,
    "import": Import,
}
"""All commands, by name: frozen dataclasses whose fields are options, with `run() -> exit code`.

One with a field `config` is about a configuration: its first field is positional, and its `file` is
the YAML file that says what `config` is where options do not.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (by default the process's own) and returns its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv == ["--version"]:
        print(f"jaxpipe {__version__}")
        return 0
    try:
        command = _parse(argv, Config())
        if hasattr(command, "config"):
            reading = read_with_lines(command.file)
            # What the file says becomes the defaults of a second parsing: options come on top.
            command = _parse(argv, reading.config)
            if not getattr(command, "explain", None):  # what a field means, a wrong file may ask
                reading.require_sound(command.config)
        return command.run()
    except BrokenPipeError:  # `jaxpipe draw ... | head`: whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("jaxpipe: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (JaxpipeError, OSError) as error:
        print(f"jaxpipe: error: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, JaxpipeError) else _USAGE


def _parse(argv: Sequence[str], config: Config) -> Any:
    """The command that a command line asks for."""
    commands = (_subcommand(name, kind, config) for name, kind in COMMANDS.items())
    union: Any = functools.reduce(operator.or_, commands)
    return tyro.cli(
        union,
        args=argv,
        prog="jaxpipe",
        description="Pipeline-parallel training in plain JAX. --version prints the version.",
    )


def _subcommand(name: str, kind: Any, config: Config) -> Any:
    """A command, as a type that tyro understands; one with a configuration starts from this one."""
    fields = [field.name for field in dataclasses.fields(kind)]
    if "config" not in fields:
        return Annotated[kind, tyro.conf.subcommand(name)]
    default = kind(**{fields[0]: tyro.MISSING}, config=config)
    return Annotated[kind, tyro.conf.subcommand(name, default=default)]
