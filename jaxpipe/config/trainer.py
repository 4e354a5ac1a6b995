"""How long a run trains, and what it says and keeps on the way."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from jaxpipe.config.ranges import below, not_positive


@dataclass(frozen=True)
class TrainerConfig:
    """How long to train, and what to say and keep on the way."""

    steps: int = 1000
    """Steps of the whole run; a resumed run goes on up to this step."""
    batch_size: int = 8
    """Samples per step, over all copies; a multiple of microbatches x data."""
    seed: int = 0
    """Seed of the parameters, of dropout and of the order of the data."""
    log_interval: int = 20
    """Steps between two lines of metrics."""
    eval_interval: int = 250
    """Steps between two evaluations on held-out text; the last step is always evaluated."""
    eval_batches: int = 32
    """Batches of held-out text per evaluation, spaced evenly, always the same."""
    checkpoint_interval: int = 250
    """Steps between two checkpoints; the last step is always saved."""
    keep_checkpoints: int = 2
    """Newest checkpoints that stay on disk, at least 2."""
    keep_interval: int | None = None
    """Checkpoints of every so many steps stay for good; null: none do."""
    keep_best: int = 0
    """How many checkpoints with the lowest held-out loss stay besides."""
    checkpoint_patience: float = 1200.0
    """Seconds that a checkpoint may take, and that processes wait there for one another."""
    check_interval: int | None = None
    """Steps between two checks that devices which are to hold the same parameters and optimizer
    state do, to the bit; then also before each checkpoint. null: never."""
    most_skipped: int = 20
    """Steps in a row that may be skipped, as their gradients are not finite (or leap up, if that is
    asked for); with one more, training has diverged. With 0, each waits until the one before is
    read."""
    spike: float | None = None
    """A loss of more than so many times the median of the last 20 has diverged; null: none has."""
    norm_spike: float | None = None
    """The same of the gradients' norm before clipping; null: none has."""
    spike_action: Literal["stop", "log", "skip"] = "stop"
    """What a loss or norm that has leapt up so does: the run ends as diverged, or goes back (stop);
    it is said once for each leap, and the run goes on (log); or that step changes nothing (skip):
    compared with the 20 up to the second step before it, for which nothing waits."""
    rollbacks: int = 0
    """How many times a run that has diverged goes back to its newest checkpoint, and on from there
    with batches that it has not seen; after that, it ends."""

    FREE = (
        *("steps", "log_interval", "eval_interval", "eval_batches", "checkpoint_interval"),
        *("keep_checkpoints", "keep_interval", "keep_best", "checkpoint_patience"),
        *("check_interval", "most_skipped", "spike", "norm_spike", "spike_action", "rollbacks"),
    )

    def problems(self) -> Iterator[str]:
        """What is wrong with these settings, whatever the others are; a line each."""
        counts = {
            "trainer.steps": self.steps,
            "trainer.batch_size": self.batch_size,
            "trainer.log_interval": self.log_interval,
            "trainer.eval_interval": self.eval_interval,
            "trainer.eval_batches": self.eval_batches,
            "trainer.checkpoint_interval": self.checkpoint_interval,
            "trainer.keep_interval": self.keep_interval,
            "trainer.check_interval": self.check_interval,
        }
        more = {
            "trainer.keep_best": self.keep_best,
            "trainer.most_skipped": self.most_skipped,
            "trainer.rollbacks": self.rollbacks,
        }
        yield from below(1, counts)
        yield from below(0, more)
        yield from not_positive({"trainer.checkpoint_patience": self.checkpoint_patience})
        if self.keep_checkpoints < 2:
            yield (
                f"trainer.keep_checkpoints: got {self.keep_checkpoints}, expected at least 2: with"
                " one, a disk that fills up while it is replaced leaves none."
            )
        for name, spike in {"spike": self.spike, "norm_spike": self.norm_spike}.items():
            if spike is not None and not spike > 1:
                yield f"trainer.{name}: got {spike}, expected more than 1, or null."
        if self.spike_action != "stop" and self.spike is None and self.norm_spike is None:
            yield (
                f"trainer.spike_action: got {self.spike_action!r}, but nothing says what a leap"
                " is; set trainer.spike or trainer.norm_spike, such as to 3."
            )
        if not 0 <= self.seed < 2**32:
            yield f"trainer.seed: got {self.seed}, expected 0 to 2**32 - 1."
