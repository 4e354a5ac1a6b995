"""How a process ends: its exit code, what to say, and how to be gone for certain."""

import contextlib
import faulthandler
import os
import sys
import traceback
from collections.abc import Callable
from typing import NamedTuple, NoReturn

INTERRUPTED = 130
LOST = 1  # the exit code of all when one process is lost or stuck
_LAST_WORDS = 10.0  # seconds for a process that ends alone


class Ending(NamedTuple):
    """How a process ends.

    Attributes:
      code: its exit code, as the command line has them.
      text: for people; a whole traceback where nobody expected the exception.
    """

    code: int
    text: str


def ending_of(error: BaseException) -> Ending:
    """The ending that an exception brings about.

    Exceptions with an attribute `exit_code`, such as `JaxpipeError`s, choose their code and need no
    traceback.

    >>> ending_of(FileNotFoundError("no such file"))
    Ending(code=2, text='error: no such file')
    """
    if isinstance(error, KeyboardInterrupt):
        return Ending(INTERRUPTED, "interrupted at once")
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) and error.code else 1
        said = f" ({error.code})" if error.code else ""
        return Ending(code, f"left early, by sys.exit{said}, while other processes went on")
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return Ending(code, f"error: {error}")
    if isinstance(error, OSError):
        return Ending(2, f"error: {error}")
    shown = "".join(traceback.format_exception(error))
    return Ending(1, f"failed:\n{shown.rstrip()}")


def say(text: str) -> None:
    """Says something on standard error, from any thread."""
    # Not `print`: the main thread may hold the stream.
    with contextlib.suppress(OSError):
        os.write(2, f"jaxpipe: {text}\n".encode(errors="replace"))


def last_resort(seconds: float) -> None:
    """Ends this process after so many seconds, with exit code 1, whatever gets stuck until then."""
    with contextlib.suppress(Exception):
        faulthandler.dump_traceback_later(seconds, exit=True)


def flush() -> None:
    """Writes out what was printed."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()


def end_alone(text: str, last: Callable[[], None]) -> NoReturn:
    """Ends this process, the only one, at once, because it does not go on by itself.

    Args:
      text: for people.
      last: called before the end.
    """
    say(text)
    last_resort(_LAST_WORDS)
    with contextlib.suppress(Exception):
        last()
    flush()
    os._exit(LOST)
