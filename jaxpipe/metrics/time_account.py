"""Where the time of a run goes, section by section: its goodput, and what is not."""

import time
from collections.abc import Callable, Mapping

from jaxpipe.sections import Section

_OUTSIDE = "other"


class TimeAccount:
    """Seconds by section, told by `Sections` which one is current; they add up to all of the time.

    >>> clock = iter([0.0, 1.0, 4.0, 5.0, 6.0]).__next__
    >>> account = TimeAccount(clock)
    >>> for name in ("start", "step", "save"):  # at 1, 4 and 5
    ...     account(Section(name, None, 0.0))
    >>> account.seconds()  # at 6
    {'other': 1.0, 'start': 3.0, 'step': 1.0, 'save': 1.0}
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts to count; `clock` gives the time in seconds."""
        self._clock, self._since, self._name = clock, clock(), _OUTSIDE
        self._seconds: dict[str, float] = {}

    def __call__(self, section: Section | None) -> None:
        """Takes note of the section that is now current."""
        now = self._clock()
        self._seconds[self._name] = self._seconds.get(self._name, 0.0) + now - self._since
        self._since, self._name = now, _OUTSIDE if section is None else section.name

    def seconds(self) -> Mapping[str, float]:
        """Up to now, by section; `"other"` is what belongs to none."""
        now, found = self._clock(), dict(self._seconds)
        found[self._name] = found.get(self._name, 0.0) + now - self._since
        return found
