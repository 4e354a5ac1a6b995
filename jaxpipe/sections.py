"""What a process is doing: sections of its work, and whoever wants to hear when another begins.

Time-outs, accounts of time and signs of life all need to know where the main thread is. It says so
once, here, and they listen.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Section(NamedTuple):
    """A stretch of work.

    Attributes:
      name: `"step"`, for example; the trainer's are in `TRAINER_SECTIONS`.
      step: of training that it belongs to, from 1; None outside of steps.
      began: when it was entered, in seconds of `time.monotonic`.
    """

    name: str
    step: int | None
    began: float

    def __str__(self) -> str:
        return self.name if self.step is None else f"{self.name} (step {self.step})"


Listener = Callable[[Section | None], None]

TRAINER_SECTIONS = (
    "start", "compile", "data", "step", "evaluation", "check", "restore", "save", "timeline",
)  # fmt: skip
"""What `jaxpipe train` does: all before its first step; a step that compiles; waiting for a batch;
a step; an evaluation; comparing what devices hold alike; reading and writing a checkpoint;
measuring a step when all is done."""


class Sections:
    """The sections of one thread, which may lie in one another.

    Any thread may read `current`. Each listener is called by the thread that works, with the
    section that is now current, or None outside of all: when one is entered, and when one is left
    for the one around it. The times between two calls therefore add up to all of the time.

    >>> sections = Sections(print)
    >>> with sections.enter("evaluation", step=3), sections.enter("data"):
    ...     pass
    evaluation (step 3)
    data
    evaluation (step 3)
    None
    """

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = list(listeners)
        self._current: Section | None = None

    @property
    def current(self) -> Section | None:
        """The innermost section that has been entered."""
        return self._current

    def listen(self, listener: Listener) -> None:
        """Calls this one too, from now on."""
        self._listeners.append(listener)

    @contextlib.contextmanager
    def enter(self, name: str, step: int | None = None) -> Iterator[None]:
        """A section, for as long as the `with` block runs."""
        around = self._current
        self._become(Section(name, step, time.monotonic()))
        try:
            yield
        finally:
            self._become(around)

    def _become(self, section: Section | None) -> None:
        self._current = section
        for listener in self._listeners:
            listener(section)
