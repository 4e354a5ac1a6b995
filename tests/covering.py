"""Few cases out of many settings, in which any two values of any two settings meet."""

import itertools
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

_Case = TypeVar("_Case", bound=tuple[Any, ...])


def covering(cases: Sequence[_Case]) -> list[_Case]:
    """Such cases out of all that can be, the same at every call."""
    pairs = lambda case: {
        (i, j, case[i], case[j]) for i, j in itertools.combinations(range(len(case)), 2)
    }
    missing = set().union(*map(pairs, cases))
    rng, chosen = np.random.default_rng(0), []
    while missing:
        some = [cases[i] for i in rng.choice(len(cases), 300)]
        best = max(some, key=lambda case: len(pairs(case) & missing))
        if pairs(best) & missing:
            chosen.append(best)
            missing -= pairs(best)
    return chosen
