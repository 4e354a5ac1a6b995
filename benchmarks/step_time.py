"""Step time, compile time and temporaries of the pipeline against plain JAX, as ratios of one run.

    python benchmarks/step_time.py --rounds 5

Each round runs every variant in a process of its own; ratios are taken within a round, and their
median is printed. The workload is that of benchmarks/workload.py.
"""

import argparse

from rounds import run_rounds

VARIANTS = {
    "plain": "--ranks 0",
    "1f1b S=4": "--ranks 4",
    "1f1b S=2": "--ranks 2",
    "gpipe S=4": "--ranks 4 --schedule gpipe",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="the first variant is what ratios are taken to")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--variant", action="append", help="NAME:ARGUMENTS of workload.py")
    options = parser.parse_args()
    variants = VARIANTS
    if options.variant:
        variants = dict(v.split(":", 1) for v in options.variant)
    found = run_rounds(variants, options.rounds, options.steps)
    base = next(iter(variants))
    print(
        f"{'variant':24s} {'step s':>8s} {'ratio':>7s} {'cpu s':>7s} {'compile ratio':>14s}"
        f" {'temporaries':>12s}"
    )
    for name in variants:
        print(
            f"{name:24s} {found.median(name, 'step'):8.2f} {found.ratio(name, base, 'step'):7.2f}"
            f" {found.median(name, 'cpu'):7.2f} {found.ratio(name, base, 'compile'):14.2f}"
            f" {found.median(name, 'temporaries') / 1e6:9.1f} MB"
        )


if __name__ == "__main__":
    main()
