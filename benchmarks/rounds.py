"""Rounds of processes, one after the other, so that a noisy machine is noisy for all of them."""

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


class Rounds:
    """What some rounds gave: every variant runs once in each."""

    def __init__(self, variants: Mapping[str, str], rounds: int, steps: int):
        self._rounds: list[dict[str, dict[str, Any]]] = []
        for number in range(rounds):
            found = {name: run(arguments, steps) for name, arguments in variants.items()}
            self._rounds.append(found)
            shown = ", ".join(f"{name} {r['step']:.2f} s" for name, r in found.items())
            print(f"round {number + 1}: {shown}", file=sys.stderr, flush=True)

    def median(self, name: str, key: str) -> float:
        """Of a variant's numbers."""
        return statistics.median(found[name][key] for found in self._rounds)

    def ratio(self, name: str, base: str, key: str) -> float:
        """The median of a variant's number over another's, taken within a round."""
        return statistics.median(found[name][key] / found[base][key] for found in self._rounds)
