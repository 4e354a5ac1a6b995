"""The loss and metrics on data that are not trained on."""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from jaxpipe.batch import IGNORED
from jaxpipe.data import Batch
from jaxpipe.engine import Engine
from jaxpipe.errors import DataError
from jaxpipe.state import TrainState


def evaluate(
    engine: Engine,
    state: TrainState,
    batches: Sequence[Batch],
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Means over batches, each target weighing the same, of the loss and the model's metrics.

    Args:
      engine: of the model.
      state: after some step.
      batches: what to evaluate on; those without a target that counts are left out.
      should_stop: asked after each batch.

    Returns:
      `{"loss": ..., and each of metric_fns by name}`; None if it was to stop before.

    Raises:
      DataError: no target of all batches counts.
    """
    results = []
    for batch in batches:
        results.append(engine.eval_batch(state, batch))
        jax.block_until_ready(results[-2:-1])  # or all would be under way before the first is done
        if should_stop():
            return None
    host = [{name: float(value) for name, value in result.items()} for result in results]
    host = [result for result in host if result["weight"] != 0]  # whose means are 0/0
    if not host:
        raise _nothing_counts(len(batches))
    total = sum(result["weight"] for result in host)
    mean = lambda name: sum(result[name] * result["weight"] for result in host) / total
    return {name: mean(name) for name in host[0] if name != "weight"}


def num_targets(batches: Sequence[Batch]) -> int:
    """How many targets of these batches count.

    Raises:
      DataError: none does.
    """
    count = sum(int(np.sum(_counting(batch))) for batch in batches)
    if not count:
        raise _nothing_counts(len(batches))
    return count


def _counting(batch: Batch) -> np.ndarray:
    """Which targets count."""
    counts = np.asarray(batch["targets"]) != IGNORED
    return counts & (np.asarray(batch["weights"]) > 0) if "weights" in batch else counts


def _nothing_counts(num_batches: int) -> DataError:
    return DataError(
        f"got {num_batches} held-out batches, and none of their targets counts: all have weight 0"
        f" or are {IGNORED}. Expected one at least: hold out more, or other, data"
        " (data.held_out_fraction), or raise trainer.eval_batches."
    )
