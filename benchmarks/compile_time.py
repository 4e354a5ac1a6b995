"""Seconds to trace and compile a train step, as ratios of one run.

    python benchmarks/compile_time.py --rounds 3

Compares M = 64 with M = 4, and the pipeline with the unpipelined step; see benchmarks/step_time.py
for how runs alternate.
"""

import argparse
import statistics

from step_time import run

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
    rounds = [
        {name: run(arguments, steps=1)["compile"] for name, arguments in VARIANTS.items()}
        for _ in range(options.rounds)
    ]
    for name in VARIANTS:
        print(f"{name:16s} {statistics.median(r[name] for r in rounds):6.2f} s")
    for above, below in (("1f1b S=4 M=64", "1f1b S=4 M=4"), ("1f1b S=4 M=16", "plain")):
        ratio = statistics.median(r[above] / r[below] for r in rounds)
        print(f"{above} / {below}: {ratio:.2f}")


if __name__ == "__main__":
    main()
