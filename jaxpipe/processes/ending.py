"""How an exception ends a process: its exit code, and what to say."""

import traceback
from typing import NamedTuple

INTERRUPTED = 130


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
