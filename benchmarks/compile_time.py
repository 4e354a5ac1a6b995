"""Seconds to trace and compile a train step, as ratios of one run.

    python benchmarks/compile_time.py --rounds 3

Compares M = 64 with M = 4, and the pipeline with the unpipelined step; see benchmarks/rounds.py
for how runs alternate.
"""

import argparse

from rounds import run_rounds

VARIANTS = {
    "plain": "--ranks 0",
    "1f1b S=4 M=16": "--ranks 4 --partition type:Block",
    "1f1b S=4 M=4": "--ranks 4 --partition type:Block --microbatches 4",
    "1f1b S=4 M=64": "--ranks 4 --partition type:Block --microbatches 64",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found = run_rounds(VARIANTS, options.rounds, steps=1)
    for name in VARIANTS:
        print(f"{name:16s} {found.median(name, 'compile'):6.2f} s")
    for above, below in (("1f1b S=4 M=64", "1f1b S=4 M=4"), ("1f1b S=4 M=16", "plain")):
        print(f"{above} / {below}: {found.ratio(above, below, 'compile'):.2f}")


if __name__ == "__main__":
    main()
