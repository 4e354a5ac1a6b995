"""Schedules on two ranks and two cores, where idle time costs: measured beside simulated.

    python benchmarks/schedules.py --rounds 4

Every round runs each schedule in a process of its own; ratios are to the first within a round, and
those of compile times to the first that has as many stages on a rank. "makespan" is a step from its
first action to its last, by its profile; "simulated" is the schedule in lockstep with what ops,
ticks and meetings took in those very runs: it says whether the simulator knows where a schedule's
time goes. Seven blocks and a head about as heavy as a block make two or four equal stages.
"""

import argparse

from rounds import run_rounds

SCHEDULES = (
    "1f1b",
    "gpipe",
    "1f1b-eager",
    "interleaved",
    "zb-h1",
    "zb-h2",
    "interleaved-zb",
    "zb-v",
    "v-half",
    "auto",
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--microbatches", type=int, default=4)
    parser.add_argument("--arguments", default="--layers 7", help="more for workload.py")
    parser.add_argument("schedules", nargs="*", default=SCHEDULES)
    options = parser.parse_args()
    all_alike = (
        f"--ranks {options.ranks} --microbatches {options.microbatches} --timelines 6"
        f" {options.arguments} --schedule"
    )
    variants = {name: f"{all_alike} {name}" for name in options.schedules}
    found = run_rounds(variants, options.rounds, options.steps)
    base = options.schedules[0]
    print(
        f"{'schedule':16s} {'step s':>7s} {'ratio':>6s} {'makespan':>9s} {'ratio':>6s}"
        f" {'simulated':>10s} {'ratio':>6s} {'compile':>8s} {'temporaries':>12s}"
    )
    first: dict[float, str] = {}
    for name in options.schedules:
        alike = first.setdefault(found.median(name, "chunks"), name)
        print(
            f"{name:16s} {found.median(name, 'step'):7.3f} {found.ratio(name, base, 'step'):6.2f}"
            f" {found.median(name, 'makespan'):9.3f} {found.ratio(name, base, 'makespan'):6.2f}"
            f" {found.median(name, 'simulated'):10.3f} {found.ratio(name, base, 'simulated'):6.2f}"
            f" {found.ratio(name, alike, 'compile'):8.2f}"
            f" {found.median(name, 'temporaries') / 1e6:9.1f} MB"
        )


if __name__ == "__main__":
    main()
