"""A few train steps of a configuration, measured action by action; nothing is saved."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from jaxpipe.build import build_engine
from jaxpipe.config import Config, validate
from jaxpipe.data import Batch
from jaxpipe.engine import Engine
from jaxpipe.prepare import batches_of, dataset_of, resolved
from jaxpipe.schedules import Timeline
from jaxpipe.sections import Sections
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


def warmed_up(
    config: Config,
    *,
    say: Callable[[str], None] = lambda text: None,
    sections: Sections | None = None,
) -> Warm:
    """What a configuration describes, after one step.

    Args:
      config: what to train; validated here.
      say: told how far the tokens are, if they are to be made.
      sections: entered for what is done, for signs of life.

    Raises:
      JaxpipeError: the configuration, the data or the devices cannot be used.
    """
    validate(config)
    sections = Sections() if sections is None else sections
    with sections.enter("start"):
        dataset = dataset_of(config, say)
        config = resolved(config, dataset)
        engine, batch = build_engine(config), batches_of(config, dataset)[1]
    with sections.enter("compile", 1):
        state = engine.init(jax.random.key(config.trainer.seed), batch)
        state, _ = jax.block_until_ready(engine.train_batch(state, batch))
    return Warm(engine, state, batch)


def measure_steps(
    config: Config,
    num_steps: int,
    *,
    say: Callable[[str], None] = lambda text: None,
    sections: Sections | None = None,
) -> tuple[Engine, list[Timeline]]:
    """Runs one step to warm up, then `num_steps` under the profiler.

    Args:
      config: what to train; validated here.
      num_steps: how many steps to measure.
      say: told how far the tokens are, if they are to be made.
      sections: entered for what is done, for signs of life.

    Returns:
      The engine, and a timeline in seconds for each step.

    Raises:
      JaxpipeError: the configuration, the data or the devices cannot be used, or the profiler does
        not show single operations.
    """
    sections = Sections() if sections is None else sections
    engine, state, batch = warmed_up(config, say=say, sections=sections)
    timelines = []
    for number in range(num_steps):
        with sections.enter("timeline", 1 + number):
            state, _, timeline = engine.timeline(state, batch)
        timelines.append(timeline)
    return engine, timelines
