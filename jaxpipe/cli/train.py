"""`jaxpipe train CONFIG`."""

import logging
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxpipe.config import Config, Resume, validate
from jaxpipe.processes import INTERRUPTED, Launch, Processes, start_processes
from jaxpipe.signals import stop_signals
from jaxpipe.simulate_devices import simulate_devices

if TYPE_CHECKING:  # it loads JAX, which must not be before devices are simulated
    from jaxpipe.trainer import Outcome


@dataclass(frozen=True)
class Train:
    """Train a model as a YAML file says; options change single fields of it.

    An example: jaxpipe train configs/gpt-stdlib.yaml --trainer.steps 50 --run.name short
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]
    """The YAML file; a run's own config.yaml starts the same run again."""
    resume: Resume = "auto"
    """An earlier run in the same folder is continued if it is the same model on the same batches
    (auto), continued whatever has changed (must), or moved aside for a new one (never)."""
    processes: Launch = field(default_factory=Launch)
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)

    def run(self) -> int:
        """Trains, and returns the exit code."""
        config = validate(self.config)
        try:
            with start_processes(self.processes) as processes:
                simulate_devices(processes.share(config.pipeline.num_devices))
                return self._train(config, processes)
        except KeyboardInterrupt:
            folder = Path(config.run.directory) / config.run.name / "checkpoints"
            print(
                f"jaxpipe: interrupted at once; older checkpoints are in {folder}", file=sys.stderr
            )
            return INTERRUPTED

    def _train(self, config: Config, processes: Processes) -> int:
        from jaxpipe.trainer import run  # not before devices are simulated

        # Orbax warns, at each save, of files that it does not find and that are not meant to be.
        logging.getLogger("absl").setLevel(logging.ERROR)
        with stop_signals() as asked:
            should_stop = lambda: bool(asked)
            outcome = run(config, resume=self.resume, should_stop=should_stop, processes=processes)
        interrupted = outcome.ending == "interrupted"
        if processes.is_first:
            if not interrupted:
                print(f"{_told(outcome)} after step {outcome.step}")
            if outcome.checkpoint is None:
                print("interrupted before the first step: there is nothing to save yet")
            else:
                print(f"checkpoint: {outcome.checkpoint}")
                if interrupted:
                    print("interrupted; the same command goes on from the checkpoint")
        # Whoever sends SIGTERM wants the machine back, and has got what it wants.
        return INTERRUPTED if interrupted and signal.SIGINT in asked else 0


def _told(outcome: "Outcome") -> str:
    """What a run that has finished came to."""
    loss = f"held-out loss {outcome.held_out_loss:.4f}"
    if outcome.held_out_accuracy is not None:
        return f"{loss}, held-out accuracy {outcome.held_out_accuracy:.2%}"
    if outcome.bigram_loss is not None:
        return f"{loss} nats per byte (byte bigram {outcome.bigram_loss:.4f})"
    return f"{loss} nats per token"
