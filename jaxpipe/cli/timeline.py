"""`jaxpipe timeline CONFIG`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from jaxpipe.config import Config, validate
from jaxpipe.errors import ConfigError
from jaxpipe.schedules import Lockstep, measured_costs, pictures
from jaxpipe.schedules.cost_text import describe_costs
from jaxpipe.simulate_devices import simulate_devices


@dataclass(frozen=True)
class Timeline:
    """Measure when each rank's actions begin and end in a train step, and draw it.

    The picture has the step as it ran, and above it the step simulated with the times that its
    actions took. Nothing is saved but the picture.

    An example: jaxpipe timeline configs/gpt-stdlib.yaml --out timeline.svg
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]
    """The YAML file, as for `train`."""
    out: Path = Path("timeline.svg")
    """Where to draw, and by its ending what: .svg, .html, or .json (a trace for Perfetto)."""
    steps: int = 3
    """Steps to measure, after one that is not; the fastest is drawn."""
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)

    def run(self) -> int:
        """Measures, draws, prints what ops cost, and returns the exit code."""
        suffix = self.out.suffix.lower()
        if suffix not in pictures.FORMATS:
            raise ConfigError(
                f"timeline: got --out {self.out}; expected a name that ends in"
                f" {', '.join(pictures.FORMATS)}."
            )
        if self.steps < 1:
            raise ConfigError(f"timeline: got --steps {self.steps}; expected at least 1.")
        config = validate(self.config)
        simulate_devices(config.pipeline.ranks * config.pipeline.data)
        from jaxpipe.train import timelines  # not before devices are simulated

        schedule, found, platform = timelines(config, self.steps)
        lockstep = Lockstep("all" if platform == "cpu" else "links")
        charts = pictures.charts_of_measured(schedule, found, lockstep)
        self.out.write_text(pictures.FORMATS[suffix](charts), encoding="utf-8")
        for chart in charts:
            print(f"{chart.title}, {chart.note}")
        print(f"costs in ms: {describe_costs(measured_costs(schedule, found).scaled(1000))}")
        print(f"picture: {self.out}")
        return 0
