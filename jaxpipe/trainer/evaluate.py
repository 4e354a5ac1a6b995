"""The loss on data that are not trained on."""

from collections.abc import Callable, Sequence

import jax

from jaxpipe.data import Batch
from jaxpipe.engine import Engine
from jaxpipe.state import TrainState


def evaluate(
    engine: Engine,
    state: TrainState,
    batches: Sequence[Batch],
    should_stop: Callable[[], bool] = lambda: False,
) -> float | None:
    """Mean loss over batches, each position weighing the same; None if it is to stop before."""
    results = []
    for batch in batches:
        results.append(engine.eval_batch(state, batch))
        jax.block_until_ready(results[-2:-1])  # or all would be under way before the first is done
        if should_stop():
            return None
    weights = [float(result["weight"]) for result in results]
    sums = [float(result["loss"]) * weight for result, weight in zip(results, weights, strict=True)]
    return sum(sums) / sum(weights)
