"""Whether a number leaps up, beside what it was in the last steps."""

import math
import statistics
from collections import deque
from collections.abc import Iterable

_COMPARED = 20  # numbers that a new one is compared with


class Leaps:
    """What a number usually is, and when it is far above that.

    Args:
      name: of the number, for people.
      factor: more than so many times the median of the last 20 is a leap; None: nothing is.
      last: what the number was before, the oldest first; None where it was not finite.

    >>> leaps = Leaps("loss", 3.0)
    >>> [leaps.found(step, 2.0) for step in range(1, 21)] == [None] * 20
    True
    >>> leaps.limit(22)
    6.0
    >>> leaps.found(21, 7.0)
    'the loss of step 21 is 7, 3.5 times the median of the 20 before'
    >>> leaps.found(22, 8.0)  # of the same leap
    """

    def __init__(self, name: str, factor: float | None, last: Iterable[float | None] = ()) -> None:
        self._name, self._factor = name, factor
        # One more than is compared: of a step that is not done yet, the one before is not known.
        self._last = deque[float | None](last, maxlen=_COMPARED + 1)
        self._step: int | None = None  # of the newest of them, once one has come
        self._is_up = False

    @property
    def looks(self) -> bool:
        """Whether numbers are wanted at all."""
        return self._factor is not None

    @property
    def last(self) -> list[float | None]:
        """The last numbers, the oldest first; None where one is not finite."""
        return list(self._last)

    def limit(self, step: int) -> float:
        """Above what the number of a step will leap: from the 20 up to the second step before it.

        The step before it may not have been read yet; and whether it has been changes nothing, so
        that a run that goes on from here gives the same.

        Args:
          step: the next one, or the one after that.
        """
        known = list(self._last)
        if self._step is None or self._step == step - 1:
            known = known[:-1]
        usual = _usual(known)
        return math.inf if self._factor is None or usual <= 0 else self._factor * usual

    def found(self, step: int, number: float) -> str | None:
        """What is to be said of the number of a step, if a leap begins there."""
        usual, self._step = _usual(self._last), step
        is_finite = math.isfinite(number)
        # Also in a leap: where numbers stay, what is usual becomes another in time.
        self._last.append(number if is_finite else None)
        if self._factor is None or not is_finite:
            return None
        was_up, self._is_up = self._is_up, number > self._factor * usual > 0
        if was_up or not self._is_up:
            return None
        return (
            f"the {self._name} of step {step} is {number:.4g}, {number / usual:.1f} times the"
            f" median of the {_COMPARED} before"
        )


def _usual(numbers: Iterable[float | None]) -> float:
    """The median of the last 20; infinite while there are fewer, or few are finite."""
    compared = list(numbers)[-_COMPARED:]
    finite = [number for number in compared if number is not None]
    enough = len(compared) == _COMPARED and 2 * len(finite) > _COMPARED
    return statistics.median(finite) if enough else math.inf
