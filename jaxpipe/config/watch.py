"""How long each part of a run may take."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from jaxpipe.config.ranges import not_positive


@dataclass(frozen=True)
class WatchConfig:
    """Seconds that each part of a run may take; null: for ever. What takes longer is stuck: it is
    written down, with all stacks, and all processes end."""

    start: float | None = 3600.0
    """All that comes before the first step."""
    compile: float | None = 3600.0
    """The first step, which is compiled."""
    data: float | None = 300.0
    """The wait for the next batch."""
    step: float | None = 600.0
    """Any other step."""
    evaluation: float | None = 3600.0
    """An evaluation, with compilation."""
    restore: float | None = 3600.0
    """Reading a checkpoint."""
    save: float | None = 3600.0
    """The wait until a checkpoint can be written, or the last one is; its writing goes on beside
    the steps."""

    FREE = ("start", "compile", "data", "step", "evaluation", "restore", "save")

    @property
    def limits(self) -> dict[str, float | None]:
        """Seconds by the names of sections."""
        return dataclasses.asdict(self)

    def problems(self) -> Iterator[str]:
        """What is wrong with these settings; a line each."""
        yield from not_positive({f"watch.{name}": limit for name, limit in self.limits.items()})
