"""`jaxpipe timeline CONFIG`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from jaxpipe.cli.alive import say, signs_of_life
from jaxpipe.cli.out import taken
from jaxpipe.config import Config
from jaxpipe.errors import ConfigError
from jaxpipe.schedules import describe_costs, measured_costs, pictures
from jaxpipe.simulate_devices import simulate_devices


@dataclass(frozen=True)
class DrawTimeline:
    """Measure when each rank's actions begin and end in a train step, and draw it.

    The picture has the step as it ran, and above it the step simulated with the times that its
    actions took. Nothing is saved but the picture.

    An example: jaxpipe timeline configs/gpt-stdlib.yaml --out timeline.svg
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]
    """The YAML file, as for `train`."""
    out: Path = Path("timeline.svg")
    """Where to draw, and by its ending what: .svg, .html, or .json (a trace for Perfetto)."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write also where a file is."""
    steps: int = 3
    """Steps to measure, after one that is not; the fastest is drawn."""
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)

    def run(self) -> int:
        """Measures, draws, prints what ops cost, and returns the exit code."""
        self._check()
        config = self.config
        simulate_devices(config.pipeline.num_devices)
        from jaxpipe.measurement import measure_steps  # not before devices are simulated

        with signs_of_life(config.metrics.heartbeat) as sections:
            engine, found = measure_steps(config, self.steps, say=say, sections=sections)
        charts = pictures.charts_of_measured(engine.schedule, found, engine.lockstep)
        text = pictures.FORMATS[self.out.suffix.lower()](charts)
        self.out.write_text(text, encoding="utf-8")
        for chart in charts:
            print(f"{chart.title}, {chart.note}")
        print(f"costs in ms: {describe_costs(measured_costs(engine.schedule, found).scaled(1000))}")
        print(f"picture: {self.out}")
        return 0

    def _check(self) -> None:
        """What would fail only after the steps have run."""
        known = ", ".join(pictures.FORMATS)
        if self.out.suffix.lower() not in pictures.FORMATS:
            problem = f"got --out {self.out}; expected a name that ends in {known}"
        elif not self.out.absolute().parent.is_dir():
            problem = f"got --out {self.out}; expected a name in a folder that is there"
        elif in_the_way := taken(self.out, self.overwrite):
            problem = in_the_way
        elif self.steps < 1:
            problem = f"got --steps {self.steps}; expected at least 1"
        else:
            return
        raise ConfigError(f"timeline: {problem}.")
