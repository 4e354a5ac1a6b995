"""Step time, compile time and temporaries of the pipeline against plain JAX, as ratios of one run.

    python benchmarks/step_time.py --rounds 5

Each round runs every variant in a process of its own, one after the other, so that a noisy machine
is noisy for all; ratios are taken within a round, and their median is printed. The workload is that
of benchmarks/workload.py.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

WORKLOAD = str(Path(__file__).with_name("workload.py"))
VARIANTS = {
    "plain": "--ranks 0",
    "1f1b S=4": "--ranks 4",
    "1f1b S=2": "--ranks 2",
    "gpipe S=4": "--ranks 4 --schedule gpipe",
}


def run(variant: str, steps: int) -> dict[str, Any]:
    """One process; words like NAME=VALUE are put into its environment."""
    words = variant.split()
    env = dict(word.split("=", 1) for word in words if "=" in word and not word.startswith("--"))
    arguments = [word for word in words if "=" not in word or word.startswith("--")]
    command = [sys.executable, WORKLOAD, *arguments, "--steps", str(steps)]
    env = {k: v.replace(",", " ") for k, v in env.items()}
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | env)
    result = json.loads(out.stdout.splitlines()[-1])
    return result | dict(step=statistics.median(result["steps"]))


def main() -> None:
    parser = argparse.ArgumentParser(description="the first variant is what ratios are taken to")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--variant", action="append", help="NAME:ARGUMENTS of workload.py")
    options = parser.parse_args()
    variants = VARIANTS
    if options.variant:
        variants = dict(v.split(":", 1) for v in options.variant)
    rounds = []
    for number in range(options.rounds):
        rounds.append({name: run(arguments, options.steps) for name, arguments in variants.items()})
        shown = ", ".join(f"{name} {r['step']:.2f} s" for name, r in rounds[-1].items())
        print(f"round {number + 1}: {shown}", file=sys.stderr, flush=True)
    base = next(iter(variants))
    print(
        f"{'variant':24s} {'step s':>8s} {'ratio':>7s} {'cpu s':>7s} {'compile ratio':>14s}"
        f" {'temporaries':>12s}"
    )
    for name in variants:
        median = lambda key, name=name: statistics.median(r[name][key] for r in rounds)
        ratio = lambda key, name=name: statistics.median(
            r[name][key] / r[base][key] for r in rounds
        )
        print(
            f"{name:24s} {median('step'):8.2f} {ratio('step'):7.2f} {median('cpu'):7.2f}"
            f" {ratio('compile'):14.2f} {median('temporaries') / 1e6:9.1f} MB"
        )


if __name__ == "__main__":
    main()
