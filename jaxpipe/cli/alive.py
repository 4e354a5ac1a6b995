"""Signs of life, on standard error, of commands that compile before they say anything."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxpipe.sections import Sections


def say(text: str) -> None:
    """Tells people something that is no result."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def signs_of_life(interval: float) -> Iterator["Sections"]:
    """Within, whatever lasts is said every so often.

    Args:
      interval: seconds between two signs of life.

    Yields:
      Sections, to be entered by who works.
    """
    from jaxpipe.metrics import PlainConsole, heartbeat  # not before devices are simulated
    from jaxpipe.sections import Sections

    sections = Sections()
    with heartbeat(lambda: sections.current, PlainConsole(0, sys.stderr).still, interval):
        yield sections
