"""Operations that really ran in one step, counted in a profile: pipeline against plain JAX.

    python benchmarks/operations.py

An idle rank must run nothing: guards skip, and XLA must not move work out of them. What the
pipeline has more is its own work per tick, what it writes to and reads from the stash, and what
`jax.checkpoint` computes again, which XLA saves where F and B stand in one program. Counts do not
depend on the machine's load.
"""

import argparse
import collections
import glob
import re
import tempfile

from rounds import run

VARIANTS = {
    "plain": "--ranks 0",
    "1f1b S=2": "--ranks 2 --partition type:Block",
    "1f1b S=4": "--ranks 4 --partition type:Block",
}


def count(folder: str) -> collections.Counter[str]:
    """How often each sort of operation ran."""
    from jax.profiler import ProfileData

    (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
    found: collections.Counter[str] = collections.Counter()
    for plane in ProfileData.from_file(path).planes:
        for line in plane.lines:
            for event in line.events:
                if "hlo_op" in dict(event.stats):
                    found[re.sub(r"[.\d]+$", "", event.name)] += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--each", action="store_true", help="also list each sort of operation")
    options = parser.parse_args()
    ticks = {"1f1b S=2": 2 * (16 + 1), "1f1b S=4": 2 * (16 + 3)}
    counts = {}
    for name, arguments in VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            run(f"{arguments} --profile {folder}", steps=1)
            counts[name] = count(folder)
    plain = counts["plain"].total()
    for name, found in counts.items():
        line = f"{name:10s} {found.total():7d} operations"
        if name in ticks:
            ranks = int(name[-1])
            more = (found.total() - plain) / (ticks[name] * ranks)
            line += f", {found.total() / plain:.2f} of plain, {more:.1f} more per tick and rank"
        print(line)
        if options.each:
            for sort, number in found.most_common():
                print(f"    {number:6d} {sort}")


if __name__ == "__main__":
    main()
