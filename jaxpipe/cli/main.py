"""The commands of `jaxpipe`: reads a command line and runs it.

Exit codes: 0, all went well, or SIGTERM came and the run is saved; 1, an error that nobody
expected, a process that was lost, a damaged checkpoint that was inspected or verified, or a wrong
schedule in a file, which the message draws; 2, something that was asked for cannot be done, and the
message says what; 3, the last starts have all ended in one way, and another would too; 4, training
diverged; 130, interrupted. Of several processes all have the same.
"""

import os
import sys
from collections.abc import Sequence

from jaxpipe import __version__
from jaxpipe.cli.check import Check
from jaxpipe.cli.command_line import USAGE, read_command
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
from jaxpipe.errors import JaxpipeError
from jaxpipe.processes import INTERRUPTED

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
        return read_command(argv, COMMANDS).run()
    except BrokenPipeError:  # `jaxpipe draw ... | head`: whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("jaxpipe: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (JaxpipeError, OSError) as error:
        print(f"jaxpipe: error: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, JaxpipeError) else USAGE
