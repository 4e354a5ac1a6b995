"""`jaxpipe resume RUN`."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from jaxpipe.cli.train import Train
from jaxpipe.config import Config, RunConfig
from jaxpipe.errors import ConfigError
from jaxpipe.processes import Launch


@dataclass(frozen=True)
class ResumeRun:
    """Go on with a run from its newest checkpoint, as its own config.yaml says.

    Options change single fields of that, and what they change is told; the run may lie elsewhere
    than when it was started. An example: jaxpipe resume runs/gpt-stdlib --trainer.steps 2000
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of the run."""
    processes: Launch = field(default_factory=Launch)
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)

    @property
    def file(self) -> Path:
        """The configuration of the run.

        Raises:
          ConfigError: the folder is no run's.
        """
        file = self.folder / "config.yaml"
        if not file.is_file():
            raise ConfigError(
                f"{self.folder} is no run: it has no config.yaml. Expected a folder that `jaxpipe"
                " train` wrote, such as runs/gpt-stdlib."
            )
        return file

    def run(self) -> int:
        """Trains, and returns the exit code."""
        here = self.folder.absolute()
        run = RunConfig(name=here.name, directory=str(here.parent))
        config = dataclasses.replace(self.config, run=run)
        return Train(self.file, resume="must", processes=self.processes, config=config).run()
