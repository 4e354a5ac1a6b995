"""How fast batches are read: by their number, one after another, and ahead by threads.

    python benchmarks/data.py

Tokens are random, 20 million in documents of 700, mapped from disk, and in the cache of the system.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np

from jaxpipe.data import Batches, TokenSamples, write_tokens
from jaxpipe.data.samples import Packing

BATCHES, VOCABULARY, TOKENS, DOCUMENT = 30, 50_257, 20_000_000, 700
PACKINGS: tuple[Packing, ...] = ("stream", "packed", "padded")


def main() -> None:
    ids = np.random.default_rng(0).integers(0, VOCABULARY, TOKENS)
    documents = [ids[i : i + DOCUMENT] for i in range(0, TOKENS, DOCUMENT)]
    with tempfile.TemporaryDirectory() as folder:
        tokens = write_tokens(Path(folder) / "tokens", documents, VOCABULARY)
        print("length  batch  packing   by number      ahead   tokens/s ahead")
        for length, size in ((128, 8), (2048, 64)):
            for packing in PACKINGS:
                batches = Batches(TokenSamples(tokens, length, packing), size, seed=0)
                following = batches.starting_at(1)
                each = measured(lambda i, b=batches: b[i])
                ahead = measured(lambda i, f=following: next(f))
                print(
                    f"{length:6}  {size:5}  {packing:7}  {each * 1000:7.2f} ms"
                    f" {ahead * 1000:7.2f} ms   {length * size / ahead / 1e6:6.1f} M"
                )


def measured(read: Callable[[int], object]) -> float:
    """Seconds for a batch."""
    read(1)
    began = time.perf_counter()
    for number in range(BATCHES):
        read(number + 2)
    return (time.perf_counter() - began) / BATCHES


if __name__ == "__main__":
    main()
