"""A run of less than a minute, to see one: a small GPT over four stages, on the CPU, offline."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jaxpipe.config import (
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    PipelineConfig,
    RunConfig,
    TrainerConfig,
)
from jaxpipe.metrics import Console
from jaxpipe.schedules import by_name, pictures
from jaxpipe.trainer import Outcome, run

NUM_DEVICES = 4


class Demo(NamedTuple):
    """What the demonstration came to.

    Attributes:
      outcome: of the run.
      folder: of the run.
      picture: the schedule, as drawn.
    """

    outcome: Outcome
    folder: Path
    picture: Path


def demo_config(out: Path, steps: int = 150) -> Config:
    """The run: bytes of a part of the Python standard library, read where Python is installed.

    Args:
      out: the folder of the run.
      steps: how long to train.
    """
    out = out.absolute()
    return Config(
        model=ModelConfig(layers=4, width=64, heads=4),
        data=DataConfig(pattern="[a-e]*.py", sequence_length=64),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=min(15, steps)),
        pipeline=PipelineConfig(ranks=NUM_DEVICES, microbatches=8),
        trainer=TrainerConfig(
            steps=steps, batch_size=32, log_interval=25, eval_interval=steps, eval_batches=8,
            checkpoint_interval=steps,
        ),
        run=RunConfig(name=out.name, directory=str(out.parent)),
    )  # fmt: skip


def demonstrate(
    out: Path,
    *,
    steps: int = 150,
    console: Console | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Demo:
    """Trains from the start; an earlier demonstration in the folder is moved aside.

    Args:
      out: the folder of the run.
      steps: how long to train.
      console: where to show how it goes; by default the standard output.
      should_stop: asked after each step.

    Raises:
      JaxpipeError: there are fewer than `NUM_DEVICES` devices, or the folder is something else.
    """
    config = demo_config(out, steps)
    outcome = run(config, resume="never", console=console, should_stop=should_stop)
    pipeline = config.pipeline
    table = by_name(pipeline.schedule, pipeline.ranks, pipeline.microbatches)
    picture = out / "schedule.svg"
    picture.write_text(pictures.svg([pictures.chart_of_ticks(table)]), encoding="utf-8")
    return Demo(outcome, out, picture)
