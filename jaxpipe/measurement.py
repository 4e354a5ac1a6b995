"""A few train steps of a configuration, measured action by action; nothing is saved."""

from typing import NamedTuple

import jax

from jaxpipe.build import build_engine
from jaxpipe.config import Config, validate
from jaxpipe.data import Batch
from jaxpipe.engine import Engine
from jaxpipe.prepare import batches_of, dataset_of, resolved
from jaxpipe.schedules import Timeline
from jaxpipe.state import TrainState


class Warm(NamedTuple):
    """An engine that has run one step, so that the next compiles nothing.

    Attributes:
      engine: of the configuration.
      state: after the step.
      batch: that it was trained on.
    """

    engine: Engine
    state: TrainState
    batch: Batch


def warmed_up(config: Config) -> Warm:
    """What a configuration describes, after one step.

    Raises:
      JaxpipeError: the configuration, the data or the devices cannot be used.
    """
    validate(config)
    dataset = dataset_of(config)
    config = resolved(config, dataset)
    engine, batch = build_engine(config), batches_of(config, dataset)[1]
    state, _ = engine.train_batch(engine.init(jax.random.key(config.trainer.seed), batch), batch)
    return Warm(engine, state, batch)


def measure_steps(config: Config, num_steps: int) -> tuple[Engine, list[Timeline]]:
    """Runs one step to warm up, then `num_steps` under the profiler.

    Args:
      config: what to train; validated here.
      num_steps: how many steps to measure.

    Returns:
      The engine, and a timeline in seconds for each step.

    Raises:
      JaxpipeError: the configuration, the data or the devices cannot be used, or the profiler does
        not show single operations.
    """
    engine, state, batch = warmed_up(config)
    timelines = []
    for _ in range(num_steps):
        state, _, timeline = engine.timeline(state, batch)
        timelines.append(timeline)
    return engine, timelines
