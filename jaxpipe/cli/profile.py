"""`jaxpipe profile CONFIG`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from jaxpipe.cli.alive import say, signs_of_life
from jaxpipe.config import Config
from jaxpipe.errors import ConfigError
from jaxpipe.simulate_devices import simulate_devices


@dataclass(frozen=True)
class ProfileRun:
    """Run a few train steps under JAX's profiler, and say what takes the time.

    The folder then has a trace for XProf or TensorBoard (.xplane.pb) and one for Perfetto
    (.trace.json.gz). An example: jaxpipe profile configs/gpt-stdlib.yaml --steps 3 --out profile
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]
    """The YAML file, as for `train`."""
    steps: int = 3
    """Steps to look at, after one that is not."""
    out: Path = Path("profile")
    """Where to write traces."""
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)

    def run(self) -> int:
        """Profiles, prints what took the time, and returns the exit code."""
        config = self.config
        if self.steps < 1:
            raise ConfigError(f"profile: got --steps {self.steps}; expected at least 1.")
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise ConfigError(f"profile: got --out {self.out}; expected an empty folder, or none.")
        simulate_devices(config.pipeline.num_devices)
        from jaxpipe.profiling import profile_steps  # not before devices are simulated

        with signs_of_life(config.metrics.heartbeat) as sections:
            found = profile_steps(config, self.steps, self.out, say=say, sections=sections)
        print(found)
        for path in sorted(self.out.rglob("*")):
            if path.name.endswith((".xplane.pb", ".trace.json.gz")):
                print(f"trace: {path}")
        return 0
