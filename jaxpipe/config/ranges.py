"""What is said of a number that is out of its range."""

import math
from collections.abc import Iterator, Mapping


def below(least: int, numbers: Mapping[str, int | None]) -> Iterator[str]:
    """A line for each number below the least one allowed; None is none.

    >>> list(below(1, {"pipeline.ranks": 0, "trainer.keep_interval": None}))
    ['pipeline.ranks: got 0, expected at least 1.']
    """
    for name, number in numbers.items():
        if number is not None and number < least:
            yield f"{name}: got {number}, expected at least {least}."


def no_share(numbers: Mapping[str, float]) -> Iterator[str]:
    """A line for each number that is not within 0 and 1, or is 1.

    >>> list(no_share({"model.dropout": 1.0}))
    ['model.dropout: got 1.0, expected 0 or more and less than 1.']
    """
    for name, number in numbers.items():
        if not 0 <= number < 1:
            yield f"{name}: got {number}, expected 0 or more and less than 1."


def not_positive(numbers: Mapping[str, float | None]) -> Iterator[str]:
    """A line for each number that is not finite and more than 0; None is none.

    >>> list(not_positive({"optimizer.learning_rate": 0.0}))
    ['optimizer.learning_rate: got 0.0, expected more than 0.']
    """
    for name, number in numbers.items():
        if number is not None and not (math.isfinite(number) and number > 0):
            yield f"{name}: got {number}, expected more than 0."


def nearest_multiples(number: int, divisor: int) -> tuple[int, ...]:
    """The multiples of `divisor` next to `number`, below and above; none below 1.

    >>> nearest_multiples(30, 8), nearest_multiples(3, 8), nearest_multiples(16, 8)
    ((24, 32), (8,), (16,))
    """
    under = number // divisor * divisor
    around = {under, under if under == number else under + divisor}
    return tuple(sorted(multiple for multiple in around if multiple > 0))


def either(numbers: tuple[int, ...]) -> str:
    """Numbers to choose from, for people.

    >>> either((24, 32))
    '24 or 32'
    """
    return " or ".join(map(str, numbers))
