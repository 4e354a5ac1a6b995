"""A whole run: one frozen dataclass per component, every field documented.

The text under a field is its help on the command line too. Each component stands in a file of its
own with what can be wrong with it alone, and with its `FREE` fields, which a run may change as it
goes on; that of the data is where the data are (`jaxpipe.data.config`). A new field needs no more
than its line there. `Config()` is a complete run; a YAML file (`jaxpipe.config.read`) and the
command line change single fields of it.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from jaxpipe.config.metrics import MetricsConfig
from jaxpipe.config.model import ModelConfig
from jaxpipe.config.optimizer import OptimizerConfig
from jaxpipe.config.pipeline import PipelineConfig
from jaxpipe.config.run import RunConfig
from jaxpipe.config.trainer import TrainerConfig
from jaxpipe.config.watch import WatchConfig
from jaxpipe.data.config import DataConfig


class Component(Protocol):
    """A part of a configuration: a frozen dataclass.

    Attributes:
      FREE: the fields that a run may change as it goes on.
    """

    FREE: ClassVar[tuple[str, ...]]
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def problems(self) -> Iterator[str]:
        """What is wrong with these settings, whatever the others are; a line each."""
        ...


@dataclass(frozen=True)
class Config:
    """A whole run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @property
    def components(self) -> dict[str, Component]:
        """Its parts, by name."""
        return {part.name: getattr(self, part.name) for part in dataclasses.fields(self)}


def by_field(config: Config) -> dict[str, Any]:
    """Every value by its whole name, as in `{"trainer.steps": 1000, ...}`."""
    return {
        f"{component}.{field}": value
        for component, fields in dataclasses.asdict(config).items()
        for field, value in fields.items()
    }


def differences(old: Config, new: Config) -> list[str]:
    """What changed from one run to another, a line for each field; where runs lie is left out.

    >>> differences(Config(), Config(trainer=TrainerConfig(steps=10)))
    ['trainer.steps: 1000 -> 10']
    """
    before, after = by_field(old), by_field(new)
    return [
        f"{name}: {before[name]} -> {after[name]}"
        for name in before
        if before[name] != after[name] and not name.startswith("run.")
    ]
