"""Timelines by clocks of their own become one: spans stay as long, and nothing comes early."""

import dataclasses

import pytest

from jaxpipe.schedules import (
    Costs,
    Lockstep,
    Schedule,
    Timeline,
    forward_only,
    gpipe,
    needs,
    one_f_one_b,
    simulate,
    zb_h1,
)
from jaxpipe.schedules.clocks import joined

COSTS = Costs(F=[1, 3, 1, 2], B=[2, 5, 3, 3], I=[1, 3, 1, 2], W=[1, 2, 2, 1], hop=0.5)


def seen(schedule: Schedule, whole: Timeline, ranks: list[int]) -> Timeline:
    """What a process sees that has these ranks: its first action is at 0."""
    own = {a: t for a, t in whole.starts.items() if schedule.placement[a.stage] in ranks}
    first = min(own.values(), default=0.0)
    starts = {action: start - first for action, start in own.items()}
    ends = {action: whole.ends[action] - first for action in own}
    return dataclasses.replace(whole, starts=starts, ends=ends)


@pytest.mark.parametrize("ranks", [[[0, 1], [2, 3]], [[3], [], [1], [0], [2]], [[0, 1, 2, 3]]])
@pytest.mark.parametrize("make", [gpipe, one_f_one_b, zb_h1, forward_only])
@pytest.mark.parametrize("lockstep", [Lockstep("all"), None])
def test_parts_make_the_whole_again(make, lockstep, ranks):
    schedule = make(4, 6)
    whole = simulate(schedule, COSTS, lockstep)
    found = joined(schedule, [seen(schedule, whole, own) for own in ranks])
    assert found.starts.keys() == whole.starts.keys() and min(found.starts.values()) == 0
    for action, start in found.starts.items():
        taken = whole.ends[action] - whole.starts[action]
        assert found.ends[action] - start == pytest.approx(taken)
        for group in needs(action, 4):
            assert start >= min(found.ends[need] for need in group if need in found.ends) - 1e-9
    if make is not forward_only:  # there nothing comes back that says how late a clock may start
        # A hop of half a unit may be on either side of each of the three boundaries.
        assert found.makespan == pytest.approx(whole.makespan, abs=1.5)
        assert found.bubble_fraction == pytest.approx(whole.bubble_fraction, abs=0.1)
    if len(ranks) == 1:
        assert found.starts == whole.starts
