"""Whether a number leaps up, beside what it was in the last steps."""

import math
import statistics
from collections import deque
from collections.abc import Iterable

_REMEMBERED = 20  # numbers that a new one is compared with


class Leaps:
    """What a number usually is, and when it is far above that.

    Args:
      name: of the number, for people.
      factor: more than so many times the median of the last 20 is a leap; None: nothing is.
      last: what the number was before, the oldest first.

    >>> leaps = Leaps("loss", 3.0)
    >>> [leaps.found(step, 2.0) for step in range(1, 21)] == [None] * 20
    True
    >>> leaps.found(21, 7.0)
    'the loss of step 21 is 7, 3.5 times the median of the 20 before'
    >>> leaps.found(22, 8.0)  # of the same leap
    """

    def __init__(self, name: str, factor: float | None, last: Iterable[float] = ()) -> None:
        self._name, self._factor = name, factor
        self._last = deque[float](last, maxlen=_REMEMBERED)
        self._is_up = False

    @property
    def looks(self) -> bool:
        """Whether numbers are wanted at all."""
        return self._factor is not None

    @property
    def last(self) -> list[float]:
        """The numbers that the next one is compared with, the oldest first."""
        return list(self._last)

    def found(self, step: int, number: float) -> str | None:
        """What is to be said of the number of a step, if a leap begins there."""
        if self._factor is None or not math.isfinite(number):
            return None
        usual = statistics.median(self._last) if len(self._last) == _REMEMBERED else math.inf
        was_up, self._is_up = self._is_up, number > self._factor * usual > 0
        # Also in a leap: where numbers stay, what is usual becomes another in time.
        self._last.append(number)
        if was_up or not self._is_up:
            return None
        return (
            f"the {self._name} of step {step} is {number:.4g}, {number / usual:.1f} times the"
            f" median of the {_REMEMBERED} before"
        )
