"""`jaxpipe doctor`."""

import json
from dataclasses import dataclass
from pathlib import Path

from jaxpipe.simulate_devices import simulate_devices

_USAGE = 2


@dataclass(frozen=True)
class RunDoctor:
    """Look at this machine: versions, devices, links, limits, and what is known to go wrong.

    The exit code is 2 if something will fail, else 0. An example: jaxpipe doctor --json
    """

    runs: Path = Path("runs")
    """The folder of all runs."""
    links: bool = True
    """Whether to measure how fast devices talk."""
    simulate: int = 1
    """Where there are only CPUs, how many devices to make of them."""
    json: bool = False
    """Print JSON: a list of {check, verdict, text}."""

    def run(self) -> int:
        """Prints a line for each check, and returns the exit code."""
        simulate_devices(self.simulate)
        from jaxpipe.doctor import examine, gather  # not before devices are simulated

        findings = examine(gather(self.runs, links=self.links))
        if self.json:
            print(json.dumps([finding._asdict() for finding in findings], indent=2))
        else:
            width = max(len(finding.check) for finding in findings)
            for check, verdict, text in findings:
                print(f"{verdict:4}  {check:{width}}  {text}")
        return _USAGE if any(finding.verdict == "FAIL" for finding in findings) else 0
