"""The loss and metrics on data that are not trained on."""

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
) -> dict[str, float] | None:
    """Means over batches, each target weighing the same, of the loss and the model's metrics.

    Args:
      engine: of the model.
      state: after some step.
      batches: what to evaluate on.
      should_stop: asked after each batch.

    Returns:
      `{"loss": ..., and each of metric_fns by name}`; None if it was to stop before.
    """
    results = []
    for batch in batches:
        results.append(engine.eval_batch(state, batch))
        jax.block_until_ready(results[-2:-1])  # or all would be under way before the first is done
        if should_stop():
            return None
    host = [{name: float(value) for name, value in result.items()} for result in results]
    total = sum(result["weight"] for result in host)
    mean = lambda name: sum(result[name] * result["weight"] for result in host) / total
    return {name: mean(name) for name in host[0] if name != "weight"}
