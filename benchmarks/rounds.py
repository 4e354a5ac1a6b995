"""Rounds of processes, one after the other, so that a noisy machine is noisy for all of them."""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WORKLOAD = str(Path(__file__).with_name("workload.py"))


def run(variant: str, steps: int) -> dict[str, Any]:
    """One process of workload.py; words like NAME=VALUE are put into its environment."""
    words = variant.split()
    env = dict(word.split("=", 1) for word in words if "=" in word and not word.startswith("--"))
    arguments = [word for word in words if "=" not in word or word.startswith("--")]
    command = [sys.executable, WORKLOAD, *arguments, "--steps", str(steps)]
    env = {k: v.replace(",", " ") for k, v in env.items()}
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | env)
    result = json.loads(out.stdout.splitlines()[-1])
    return result | dict(step=statistics.median(result["steps"]))


@dataclasses.dataclass(frozen=True)
class Rounds:
    """What some rounds gave: every variant runs once in each.

    Attributes:
      found: round by round, {variant: its numbers}.
    """

    found: list[dict[str, dict[str, Any]]]

    def median(self, name: str, key: str) -> float:
        """Of a variant's numbers."""
        return statistics.median(each[name][key] for each in self.found)

    def ratio(self, name: str, base: str, key: str) -> float:
        """The median of a variant's number over another's, taken within a round."""
        return statistics.median(each[name][key] / each[base][key] for each in self.found)


def run_rounds(variants: Mapping[str, str], rounds: int, steps: int) -> Rounds:
    """Runs every variant in every round, and says on the way what its steps took."""
    found = []
    for number in range(rounds):
        found.append({name: run(arguments, steps) for name, arguments in variants.items()})
        shown = ", ".join(f"{name} {each['step']:.2f} s" for name, each in found[-1].items())
        print(f"round {number + 1}: {shown}", file=sys.stderr, flush=True)
    return Rounds(found)
