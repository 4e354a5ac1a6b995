"""Signs of life: what a process is doing, and for how long, when it says nothing else."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from jaxpipe.sections import Section

_WORDS = {
    "start": "starting",
    "compile": "tracing and compiling",
    "data": "waiting for data",
    "step": "running",
    "evaluation": "evaluating",
    "check": "comparing copies",
    "restore": "reading a checkpoint",
    "save": "writing a checkpoint",
    "timeline": "measuring a step",
}
_AFTER = ("evaluation", "check", "save", "restore", "timeline")


def in_words(section: Section) -> str:
    """What a section is, for people.

    >>> in_words(Section("compile", 1, 0.0)), in_words(Section("restore", None, 0.0))
    ('tracing and compiling step 1', 'reading a checkpoint')
    """
    words = _WORDS.get(section.name, section.name)
    if section.step is None:
        return words
    after = " after" if section.name in _AFTER else ""
    return f"{words}{after} step {section.step}"


@contextlib.contextmanager
def heartbeat(
    current: Callable[[], Section | None], say: Callable[[str, float], None], interval: float
) -> Iterator[None]:
    """Within, says what goes on whenever a section has lasted so long, and again, and again.

    Args:
      current: the section that the main thread is in.
      say: takes what is done, and for how many seconds so far; called by a thread of its own.
      interval: seconds between two signs of life.
    """
    over = threading.Event()

    def run() -> None:
        said = time.monotonic()
        while True:
            section, now = current(), time.monotonic()
            due = (now if section is None else max(section.began, said)) + interval
            if section is not None and now >= due:
                say(in_words(section), now - section.began)
                said, due = now, now + interval
            if over.wait(due - now):
                return

    thread = threading.Thread(target=run, daemon=True, name="jaxpipe heartbeat")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=1.0)  # it may be stuck where it prints
