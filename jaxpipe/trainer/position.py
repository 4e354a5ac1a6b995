"""Where a run is, and where it goes on from."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax

from jaxpipe.data import Batch
from jaxpipe.pretrained import start_of, start_params
from jaxpipe.state import TrainState
from jaxpipe.trainer.parts import Parts


class Position(NamedTuple):
    """Where a run is.

    Attributes:
      state: after `step`.
      step: steps that are done.
      batch: the number of the batch that comes next.
      recent: losses and norms of the last steps, by name, for what is compared with them.
    """

    state: TrainState
    step: int
    batch: int
    recent: Mapping[str, Sequence[float | None]]


def newest(parts: Parts) -> Position:
    """The newest checkpoint that is sound, or a new state."""
    seed, batch = parts.trainer.seed, parts.plan.batches[1]
    records, checkpoints = parts.records, parts.checkpoints
    with records.sections.enter("restore"):
        step, damaged = checkpoints.newest()
    for problem in damaged:
        records.note(f"LOST: {problem}")
        records.history.add("lost", problem=str(problem))
    if step is None:
        return Position(_fresh(parts, jax.random.key(seed), batch), 0, 1, {})
    records.note(f"resuming from step {step}: {checkpoints.path(step)}")
    records.history.add("resumed", step=step)
    with records.sections.enter("restore", step):
        state = checkpoints.restore(step, parts.engine.abstract_state(batch))
    metadata = checkpoints.manifest(step).metadata
    return Position(state, step, metadata["data"]["next_batch"], metadata.get("recent", {}))


def _fresh(parts: Parts, key: jax.Array, batch: Batch) -> TrainState:
    """A state before the first step, with the parameters that the run starts from, if any."""
    engine, records = parts.engine, parts.records
    path = start_of(parts.folder.config)
    if path is None:
        with records.sections.enter("start"):
            return engine.init(key, batch)
    records.note(f"starting from the parameters in {path}")
    with records.sections.enter("restore"):
        params = start_params(path, engine.abstract_state(batch).params)
    with records.sections.enter("start"):
        return engine.init(key, batch, params)
