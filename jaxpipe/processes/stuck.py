"""Processes that live but do not go on: what each was doing, and who writes that down."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol


class Doing(NamedTuple):
    """What a process is doing.

    Attributes:
      section: of its work, such as `"step"`.
      step: of training, from 1; None outside of steps.
      seconds: for how long.
    """

    section: str
    step: int | None
    seconds: float


class Stuck(NamedTuple):
    """Why all processes have to end, where one lives but does not go on.

    Attributes:
      process: the one that was found.
      text: what is the matter with it.
      doing: what each process did when last heard of, where that is known.
    """

    process: int
    text: str
    doing: Mapping[int, Doing]

    def __str__(self) -> str:
        return "\n".join([self.text, *where_all_are(self.doing)])


class Witness(Protocol):
    """Says what this process is doing, and writes down what has become of it; any thread asks."""

    def doing(self) -> Doing | None:
        """What the main thread is doing."""
        ...

    def found(self, stuck: Stuck) -> None:
        """Called once, just before this process ends."""
        ...


def where_all_are(doing: Mapping[int, Doing]) -> list[str]:
    """A line for each place where processes are.

    >>> print(*where_all_are({0: Doing("step", 7, 9.2), 1: Doing("data", 7, 9.6),
    ...                       2: Doing("step", 7, 8.8)}), sep="\\n")
      processes 0, 2: in step (step 7) for 9 s
      process 1: in data (step 7) for 10 s
    """
    places: dict[tuple[str, int | None], list[int]] = {}
    for index in sorted(doing):
        places.setdefault(doing[index][:2], []).append(index)
    lines = []
    for (section, step), indices in places.items():
        at = "" if step is None else f" (step {step})"
        longest = max(doing[index].seconds for index in indices)
        lines.append(f"  {listed(indices)}: in {section}{at} for {longest:.0f} s")
    return lines


def listed(indices: list[int]) -> str:
    """Processes in words.

    >>> listed([1]), listed([1, 3])
    ('process 1', 'processes 1, 3')
    """
    return f"process{'es' * (len(indices) != 1)} {', '.join(map(str, indices))}"


def doing_of(words: Mapping[str, Any]) -> dict[int, Doing]:
    """What each process did, from JSON."""
    return {int(index): Doing(*done) for index, done in words.items()}
