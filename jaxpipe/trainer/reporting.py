"""Where the metrics of a run go."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxpipe.config import RunDirectory
from jaxpipe.learning_rate import learning_rate
from jaxpipe.metrics import (
    JsonLines,
    Report,
    Sink,
    Sinks,
    StepWork,
    TensorBoard,
    WeightsAndBiases,
    memory_peak,
)
from jaxpipe.trainer.records import Records

SinkOpener = Callable[[Path, int], Sink]
"""Opens a sink of one's own: `(folder of the run, step that it goes on from) -> sink`."""


@contextlib.contextmanager
def reporting(
    folder: RunDirectory,
    records: Records,
    start: int,
    work: StepWork,
    own: Mapping[str, SinkOpener] | None,
    recent: Mapping[str, Sequence[float | None]],
) -> Iterator[Report]:
    """A report that goes on from step `start`.

    Args:
      folder: of the run.
      records: of this start.
      start: steps that are done.
      work: of a step.
      own: sinks of the caller's, by name; None where another process writes.
      recent: what a report said at that step of the last ones.
    """
    config, trainer = folder.config, folder.config.trainer
    rates = jax.vmap(learning_rate(config.optimizer, trainer.steps))(jnp.arange(trainer.steps))
    openers = {} if own is None else _openers(folder, start, own)
    with contextlib.closing(Sinks(openers)) as sinks:
        yield Report(
            records.console,
            sinks,
            work=work,
            log_interval=trainer.log_interval,
            learning_rates=np.asarray(rates).tolist(),
            most_skipped=trainer.most_skipped,
            spike=trainer.spike,
            norm_spike=trainer.norm_spike,
            spiked=None if trainer.spike_action == "stop" else _noted(records),
            skips_spikes=trainer.spike_action == "skip",
            recent=recent,
            compiled=records.compiled,
            memory=memory_peak,
        )


def _noted(records: Records) -> Callable[[int, str], None]:
    """Says what leaps up, and keeps it."""

    def note(step: int, problem: str) -> None:
        records.note(f"SPIKE: {problem}")
        records.history.add("spike", step=step, problem=problem)

    return note


def _openers(
    folder: RunDirectory, start: int, own: Mapping[str, SinkOpener]
) -> dict[str, Callable[[], Sink]]:
    """What opens each sink, by name."""
    metrics, config = folder.config.metrics, folder.config
    openers: dict[str, Callable[[], Sink]] = {
        "metrics.jsonl": lambda: JsonLines(folder.metrics_file, resume_step=start)
    }
    if metrics.tensorboard:
        openers["TensorBoard"] = lambda: TensorBoard(folder.path, resume_step=start)
    if (project := metrics.wandb) is not None:
        openers["Weights & Biases"] = lambda: WeightsAndBiases(
            folder.path, project=project, name=config.run.name, config=dataclasses.asdict(config)
        )
    for name, opener in own.items():
        openers[name] = lambda opener=opener: opener(folder.path, start)
    return openers
