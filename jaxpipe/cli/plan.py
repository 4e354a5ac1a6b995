"""`jaxpipe plan CONFIG`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from jaxpipe.config import Config


@dataclass(frozen=True)
class PlanRun:
    """Say whether a run fits on devices that need not be there, and how long a step takes.

    Nothing is allocated, and no data are read, but the first image where a network reads images.
    Where it does not fit, the nearest configurations that do are shown as options. The exit code is
    0 if it fits, else 2.

    An example: jaxpipe plan configs/llama-70b.yaml --devices 128xH100
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CONFIG")]
    """The YAML file, as for `train`."""
    devices: str = "8xH100"
    """How many of which: A100, A100-40GB, H100, H200, B200, or TPUs v4, v5e, v5p, v6e."""
    efficiency: float = 0.5
    """Share of the peak FLOP/s that stages reach while they compute."""
    usable: float = 0.9
    """Share of a device's memory that arrays may take; set XLA_PYTHON_CLIENT_MEM_FRACTION so."""
    alternatives: int = 3
    """How many configurations to look for where this one does not fit."""
    config: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)

    def run(self) -> int:
        """Prints the plan, and returns the exit code."""
        import jax  # not before what is wrong has been said

        jax.config.update("jax_platforms", "cpu")  # the devices of this machine are not needed
        from jaxpipe.planner import Assumptions, plan

        assumed = Assumptions(efficiency=self.efficiency, usable=self.usable)
        found = plan(self.config, self.devices, assumed=assumed, alternatives=self.alternatives)
        print(found)
        return 0 if found.fits else 2
