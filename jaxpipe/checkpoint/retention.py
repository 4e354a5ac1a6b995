"""Which checkpoints stay."""

import dataclasses
import math

from jaxpipe.checkpoint.folder import Folder
from jaxpipe.checkpoint.manifest import read_manifest
from jaxpipe.errors import CheckpointError


@dataclasses.dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the newest, those of an interval, and the best.

    Attributes:
      keep: how many of the newest.
      interval: steps between those that stay for good, or None.
      best: how many of the lowest metric.

    Raises:
      CheckpointError: fewer than two would stay, or a number makes no sense.
    """

    keep: int = 2
    interval: int | None = None
    best: int = 0

    def __post_init__(self) -> None:
        if self.keep < 2:
            raise CheckpointError(
                f"keep={self.keep}: expected at least 2, since the newest may be damaged."
            )
        if self.best < 0 or (self.interval is not None and self.interval < 1):
            raise CheckpointError(
                f"keep_best={self.best}, keep_interval={self.interval}: expected at least 0 and 1."
            )

    def superfluous(self, folder: Folder, newest: int) -> list[int]:
        """Steps that may go, now that `newest` is written and verified."""
        steps = [step for step in folder.finished() if step <= newest]
        stay = set(steps[-self.keep :])
        if self.interval is not None:
            stay |= {step for step in steps if step % self.interval == 0}
        if self.best:
            stay |= set(sorted(steps, key=lambda step: _metric(folder, step))[: self.best])
        return [step for step in steps if step not in stay]


def _metric(folder: Folder, step: int) -> float:
    try:
        found = read_manifest(folder.step(step)).metadata.get("metric")
    except CheckpointError:
        return math.inf
    return math.inf if found is None or math.isnan(found) else float(found)
