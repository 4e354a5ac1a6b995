"""Few cases out of many settings, in which every value occurs, or any two values meet."""

import itertools
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

_Case = TypeVar("_Case", bound=tuple[Any, ...])


def covering(cases: Sequence[_Case], *, meeting: int = 2, seed: int = 0) -> list[_Case]:
    """Such cases out of all that can be, the same at every call.

    Args:
      cases: all that can be.
      meeting: any so many values of different settings stand in one of the chosen cases, if they
        do in one of `cases`.
      seed: other choices.
    """
    groups = lambda case: {
        (places, tuple(case[i] for i in places))
        for places in itertools.combinations(range(len(case)), meeting)
    }
    missing = set().union(*map(groups, cases))
    rng, chosen = np.random.default_rng(seed), []
    while missing:
        some = [cases[i] for i in rng.choice(len(cases), 300)]
        best = max(some, key=lambda case: len(groups(case) & missing))
        if groups(best) & missing:
            chosen.append(best)
            missing -= groups(best)
    return chosen
