"""Whether each process reads the rows of a batch that it is to give, seen by comparing hashes."""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np


class Rows(NamedTuple):
    """What a process gives of some batches.

    Attributes:
      start: the first of its rows of each batch.
      stop: the one after its last.
      hashes: one for each row, of the first batch first.
    """

    start: int
    stop: int
    hashes: list[str]


def rows_of(rows: slice, batches: Sequence[Mapping[str, Any]]) -> Rows:
    """What this process gives: arrays `[stop - start, ...]`, in each batch."""
    count = rows.stop - rows.start
    hashes = []
    for batch in batches:
        fields = [np.asarray(batch[name]) for name in sorted(batch)]
        for row in range(count):
            digest = hashlib.sha256()
            for field in fields:
                digest.update(np.ascontiguousarray(field[row]).tobytes())
            hashes.append(digest.hexdigest()[:16])
    return Rows(rows.start, rows.stop, hashes)


def row_problems(given: Sequence[Rows]) -> list[str]:
    """What is wrong with what processes give, a line each.

    Equal rows of a process, as of empty text, say nothing.

    >>> print(*row_problems([Rows(0, 2, ["a", "b"]), Rows(2, 4, ["a", "b"])]))
    processes 0 and 1 give the same rows, as rows 0 to 1 and 2 to 3: do they read one shard?
    >>> row_problems([Rows(0, 2, ["a", "b"]), Rows(2, 4, ["c", "a"]), Rows(0, 2, ["a", "b"])])
    []
    """
    problems = []
    for (i, one), (j, other) in combinations(enumerate(given), 2):
        same = one.hashes == other.hashes
        if one[:2] == other[:2] and not same:
            problems.append(
                f"processes {i} and {j} are both to give rows {one.start} to {one.stop - 1}, and"
                " give unlike ones."
            )
        if (one.stop <= other.start or other.stop <= one.start) and same and len({*one.hashes}) > 1:
            problems.append(
                f"processes {i} and {j} give the same rows, as rows {one.start} to {one.stop - 1}"
                f" and {other.start} to {other.stop - 1}: do they read one shard?"
            )
    return problems
