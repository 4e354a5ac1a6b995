"""How long each part of a run may take."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from jaxpipe.config.ranges import not_positive

_LATER = 30.0  # seconds


@dataclass(frozen=True)
class WatchConfig:
    """Seconds that each part of a run may take; null: for ever. What takes longer is stuck: it is
    written down, with all stacks, and all processes end."""

    start: float | None = 3600.0
    """All that comes before the first step."""
    compile: float | None = 3600.0
    """The first step, which is compiled."""
    data: float | None = 300.0
    """The wait for the next batch; then the run ends with an error that names it."""
    step: float | None = 600.0
    """Any other step."""
    evaluation: float | None = 3600.0
    """An evaluation, with compilation."""
    check: float | None = 3600.0
    """A comparison of what devices hold alike, with compilation."""
    restore: float | None = 3600.0
    """Reading a checkpoint."""
    save: float | None = 3600.0
    """The wait until a checkpoint can be written, or the last one is; its writing goes on beside
    the steps."""
    timeline: float | None = 3600.0
    """The steps that are measured when all is saved, with compilation."""

    FREE = (
        "start", "compile", "data", "step", "evaluation", "check", "restore", "save", "timeline",
    )  # fmt: skip

    @property
    def limits(self) -> dict[str, float | None]:
        """Seconds by the names of sections."""
        limits = dataclasses.asdict(self)
        if self.data is not None:  # an error that says what did not come is to be first
            limits["data"] = self.data + _LATER
        return limits

    def problems(self) -> Iterator[str]:
        """What is wrong with these settings; a line each."""
        limits = dataclasses.asdict(self)
        yield from not_positive({f"watch.{name}": limit for name, limit in limits.items()})
