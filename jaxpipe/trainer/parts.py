"""What does not change in a run."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxpipe.checkpoint import Checkpoints
from jaxpipe.config import RunDirectory, TrainerConfig
from jaxpipe.crashes import Crashes
from jaxpipe.engine import Engine
from jaxpipe.processes import Processes
from jaxpipe.trainer.records import Records
from jaxpipe.trainer.reporting import SinkOpener
from jaxpipe.trainer.start import Plan


class Parts(NamedTuple):
    """What a run works with, from its first step to its last.

    Attributes:
      engine: runs the steps.
      folder: what is trained, and where that is kept.
      plan: its data, and what a step does.
      checkpoints: opened.
      records: what it says, and keeps of itself.
      should_stop: whether it is to end; of several processes any one may say so.
      processes: all that train together.
      crashes: what has ended it earlier.
      sinks: of the user's own for metrics; None where nothing is to be written.
    """

    engine: Engine
    folder: RunDirectory
    plan: Plan
    checkpoints: Checkpoints
    records: Records
    should_stop: Callable[[], bool]
    processes: Processes
    crashes: Crashes
    sinks: Mapping[str, SinkOpener] | None

    @property
    def trainer(self) -> TrainerConfig:
        """How long it trains, and what it keeps."""
        return self.folder.config.trainer

    def stops(self) -> bool:
        """Whether all processes are to stop; they ask together."""
        return self.processes.stop_together(self.should_stop())
