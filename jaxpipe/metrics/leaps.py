"""Whether a number leaps up, beside what it was in the last steps."""

import math
import statistics
from collections import deque

_REMEMBERED = 20  # numbers that a new one is compared with


class Leaps:
    """What a number usually is, and when it is far above that.

    Args:
      name: of the number, for people.
      factor: more than so many times the median of the last 20 is a leap; None: nothing is.

    >>> leaps = Leaps("loss", 3.0)
    >>> [leaps.found(step, 2.0) for step in range(1, 21)] == [None] * 20
    True
    >>> leaps.found(21, 7.0)
    'the loss of step 21 is 7, 3.5 times the median of the 20 before'
    """

    def __init__(self, name: str, factor: float | None) -> None:
        self._name, self._factor = name, factor
        self._last = deque[float](maxlen=_REMEMBERED)

    @property
    def looks(self) -> bool:
        """Whether numbers are wanted at all."""
        return self._factor is not None

    def found(self, step: int, number: float) -> str | None:
        """What is to be said of the number of a step, if it leaps; else it is remembered."""
        if self._factor is None or not math.isfinite(number):
            return None
        if len(self._last) == _REMEMBERED:
            usual = statistics.median(self._last)
            if number > self._factor * usual > 0:
                return (
                    f"the {self._name} of step {step} is {number:.4g}, {number / usual:.1f} times"
                    f" the median of the {_REMEMBERED} before"
                )
        self._last.append(number)
        return None
