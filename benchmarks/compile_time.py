"""Seconds to trace and compile a train step, as ratios of one run.

    python benchmarks/compile_time.py --rounds 3

Compares M = 64 with M = 4, the pipeline with the unpipelined step, and schedules with 1F1B of as
many chunks; see benchmarks/rounds.py for how runs alternate.
"""

import argparse

from rounds import run_rounds

VARIANTS = {
    "plain": "--ranks 0",
    "1f1b S=4 M=16": "--ranks 4 --partition type:Block",
    "1f1b S=4 M=4": "--ranks 4 --partition type:Block --microbatches 4",
    "1f1b S=4 M=64": "--ranks 4 --partition type:Block --microbatches 64",
}
FAMILIES = {"1f1b": ("zb-h1", "zb-h2"), "interleaved": ("interleaved-zb", "zb-v", "v-half")}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    names = [name for base, others in FAMILIES.items() for name in (base, *others)]
    schedules = {name: f"--ranks 2 --layers 7 --schedule {name}" for name in names}
    found = run_rounds(VARIANTS | schedules, options.rounds, steps=1)
    for name in VARIANTS:
        print(f"{name:16s} {found.median(name, 'compile'):6.2f} s")
    for above, below in (("1f1b S=4 M=64", "1f1b S=4 M=4"), ("1f1b S=4 M=16", "plain")):
        print(f"{above} / {below}: {found.ratio(above, below, 'compile'):.2f}")
    for base, others in FAMILIES.items():
        for name in others:
            print(f"{name} / {base}: {found.ratio(name, base, 'compile'):.2f}")


if __name__ == "__main__":
    main()
