"""`jaxpipe summary RUN`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxpipe.summary import write_summary


@dataclass(frozen=True)
class Summary:
    """Make a run's summary.html anew, from the files in its folder; a run makes it when it ends.

    An example: jaxpipe summary runs/gpt-stdlib
    """

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of the run."""

    def run(self) -> int:
        """Writes the page, says where it is, and returns the exit code."""
        print(f"summary: {write_summary(self.folder)}")
        return 0
