"""Where the metrics of a run go."""

import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxpipe.build import learning_rate
from jaxpipe.config import RunDirectory
from jaxpipe.metrics import Console, JsonLines, Report, Sinks, TensorBoard


@contextlib.contextmanager
def reporting(folder: RunDirectory, console: Console, start: int, writes: bool) -> Iterator[Report]:
    """A report, and if it `writes`, into the run's folder; goes on from step `start`."""
    config, trainer = folder.config, folder.config.trainer
    rates = jax.vmap(learning_rate(config.optimizer, trainer.steps))(jnp.arange(trainer.steps))
    openers = {
        "metrics.jsonl": lambda: JsonLines(folder.metrics_file, resume_step=start),
        "TensorBoard": lambda: TensorBoard(folder.path, resume_step=start),
    }
    with contextlib.closing(Sinks(openers if writes else {})) as sinks:
        yield Report(
            console,
            sinks,
            tokens_per_step=trainer.batch_size * config.data.units_per_sample,
            unit=config.data.unit,
            log_interval=trainer.log_interval,
            learning_rates=np.asarray(rates).tolist(),
            most_skipped=trainer.most_skipped,
            spike=trainer.spike,
        )
