"""Schedules on two ranks and two cores, where idle time costs: measured beside simulated.

    python benchmarks/schedules.py --rounds 3

Every round runs each schedule in a process of its own; ratios are to the first within a round.
"simulated" is the schedule in lockstep with the times that each op of each stage took in those very
runs: it says whether the simulator knows where a schedule's time goes.
"""

import argparse
import statistics
import sys

from step_time import run

SCHEDULES = (
    "1f1b",
    "gpipe",
    "1f1b-eager",
    "interleaved",
    "zb-h1",
    "zb-h2",
    "interleaved-zb",
    "zb-v",
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--arguments", default="--partition flops", help="more for workload.py")
    parser.add_argument("schedules", nargs="*", default=SCHEDULES)
    options = parser.parse_args()
    rounds = []
    for number in range(options.rounds):
        found = {}
        for name in options.schedules:
            arguments = (
                f"--ranks {options.ranks} --schedule {name} --timelines 3 {options.arguments}"
            )
            found[name] = run(arguments, options.steps)
        rounds.append(found)
        shown = ", ".join(f"{name} {r['step']:.2f} s" for name, r in found.items())
        print(f"round {number + 1}: {shown}", file=sys.stderr, flush=True)
    base = options.schedules[0]
    print(
        f"{'schedule':16s} {'step s':>7s} {'ratio':>6s} {'makespan':>9s} {'simulated':>10s}"
        f" {'ratio':>6s} {'temporaries':>12s}"
    )
    for name in options.schedules:
        median = lambda key, name=name: statistics.median(r[name][key] for r in rounds)
        ratio = lambda key, name=name: statistics.median(
            r[name][key] / r[base][key] for r in rounds
        )
        print(
            f"{name:16s} {median('step'):7.2f} {ratio('step'):6.2f} {median('makespan'):9.2f}"
            f" {median('simulated'):10.2f} {ratio('simulated'):6.2f}"
            f" {median('temporaries') / 1e6:9.1f} MB"
        )


if __name__ == "__main__":
    main()
