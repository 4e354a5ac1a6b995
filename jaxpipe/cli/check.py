"""`jaxpipe check CONFIG`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from jaxpipe.config import Config, differences, explain
from jaxpipe.schedules import AUTO, by_name, simulate


@dataclass(frozen=True)
class Check:
    """Say whether a configuration can run, and all that is wrong with it; nothing starts.

    Data and devices are not looked at. An example: jaxpipe check configs/gpt-stdlib.yaml
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]
    """The YAML file, as for `train`."""
    explain: str | None = None
    """A field, such as pipeline.zero, or a component, such as pipeline: says what it means."""
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)

    def run(self) -> int:
        """Prints what the configuration is, and returns the exit code."""
        if self.explain is not None:
            print(explain(self.explain, self.config))
            return 0
        config = self.config
        pipeline = config.pipeline
        print(f"{self.file}: can run")
        print(
            f"devices: {pipeline.num_devices} (pipe {pipeline.ranks} x data {pipeline.data} x"
            f" tensor {pipeline.tensor})"
        )
        print(f"layers: {config.model.num_layers}, with the embedding and the head")
        print(f"schedule: {_described(config)}")
        per_step = config.trainer.batch_size * config.data.units_per_sample
        print(
            f"{config.data.unit}: {per_step:,} a step, {per_step * config.trainer.steps:,} in all"
        )
        changes = differences(Config(), config)
        print("defaults: all" if not changes else "not as by default:")
        for change in changes:
            print(f"  {change}")
        return 0


def _described(config: Config) -> str:
    pipeline = config.pipeline
    if pipeline.schedule == AUTO:
        return "auto, the fastest that a search finds"
    schedule = by_name(
        pipeline.schedule, pipeline.ranks, pipeline.microbatches, num_chunks=pipeline.chunks
    )
    bubble = simulate(schedule).bubble_fraction
    return (
        f"{schedule.name}, {schedule.num_stages} stages, {schedule.num_microbatches} microbatches,"
        f" bubble {bubble:.1%} if a backward takes two forwards"
    )
