"""Schedules on paper: times by hand, and what ranks hold."""

import dataclasses

import numpy as np
import pytest

from jaxpipe.errors import ScheduleError
from jaxpipe.schedules import Costs, Op, forward_only, gpipe, one_f_one_b, parse, simulate, vee

SPLIT = """
schedule: split
placement: 0 1
num_microbatches: 3
latency: 0
rank 0: 0F0 0F1 .   0I0 0F2 0I1 0W0 0W1 0I2 0W2 .
rank 1: .   1F0 1I0 1F1 1I1 1F2 1I2 1W0 1W1 1W2 .
"""


def test_unequal_stages_and_hops_by_hand():
    timeline = simulate(one_f_one_b(2, 2), Costs(F=[1, 2], B=(2, 4), hop=0.5))
    spans = {
        str(action): (start, timeline.ends[action]) for action, start in timeline.starts.items()
    }
    assert spans == {
        "0F0": (0, 1),
        "0F1": (1, 2),
        "1F0": (1.5, 3.5),
        "1B0": (3.5, 7.5),
        "1F1": (7.5, 9.5),
        "1B1": (9.5, 13.5),
        "0B0": (8, 10),
        "0B1": (14, 16),
    }
    assert timeline.makespan == 16
    assert timeline.bubble_fraction == 1 - (6 + 12) / (2 * 16)
    assert timeline.held == (2, 1)


def test_a_heavy_last_stage_sets_the_pace():
    timeline = simulate(one_f_one_b(4, 16), Costs(F=[1, 1, 1, 2], B=[2, 2, 2, 4]))
    # Three forwards to fill, the last rank never idle, three backwards to drain.
    assert timeline.makespan == 3 * 1 + 16 * (2 + 4) + 3 * 2


def test_hops_within_a_rank_cost_nothing():
    timeline = simulate(forward_only(2, 1, placement=vee(2)), Costs(F=1, hop=10))
    assert timeline.makespan == 4 + 2 * 10  # 0 -> 1, within rank 1, 1 -> 0


def test_the_split_backward_by_hand():
    timeline = simulate(parse(SPLIT), Costs(F=1, I=1, W=1))
    assert timeline.makespan == 10
    assert timeline.bubble_fraction == pytest.approx(1 - 18 / 20)
    # Rank 0 starts microbatch 2 while 0 and 1 wait for W; rank 1 leaves all W to the end.
    assert timeline.held == (3, 3)


def test_held_ends_with_w_and_not_with_i():
    early = parse(SPLIT.replace("0F2 0I1 0W0", "0W0 0F2 0I1"))
    assert simulate(early).held == (2, 3)


def test_held_counts_each_stage_of_a_rank():
    schedule = parse("""
schedule: chunks
placement: 0 1 1 0
num_microbatches: 1
latency: 0
rank 0: 0F0 .   .   3F0 3B0 .   .   0B0
rank 1: .   1F0 2F0 .   .   2B0 1B0 .
""")
    assert simulate(schedule).held == (2, 2)


def test_default_costs_are_a_backward_of_two_forwards():
    assert simulate(gpipe(2, 3)) == simulate(gpipe(2, 3), Costs(F=1, B=2, I=1, W=1, hop=0))


def test_costs_may_be_measured_arrays():
    each = np.array([1.0, 2.0], np.float32)
    timeline = simulate(gpipe(2, 1), Costs(F=each, B=np.float32(3)))  # pyright: ignore[reportArgumentType]
    assert timeline.makespan == 1 + 2 + 3 + 3


def test_all_costs_zero():
    timeline = simulate(gpipe(2, 2), Costs(F=0, B=0))
    assert (timeline.makespan, timeline.bubble_fraction) == (0, 0)


def test_a_timeline_in_a_line():
    text = str(simulate(one_f_one_b(4, 8)))
    assert text == "makespan 33; bubble 27.3%; held by rank: 4 3 2 1"


@pytest.mark.parametrize(
    "costs, message",
    [
        (
            Costs(F=[1, 2, 3]),
            "costs.F has 3 costs; expected one number, or one for each of 2 stages",
        ),
        (Costs(W=[]), "costs.W has 0 costs"),
        (Costs(B=-1), "costs.B is -1; expected 0 or more"),
        (Costs(I=[1, -2]), r"costs.I is \[1, -2\]; expected 0 or more"),
        (Costs(hop=float("nan")), "costs.hop is nan"),
    ],
)
def test_costs_that_are_refused(costs, message):
    with pytest.raises(ScheduleError, match=message):
        simulate(gpipe(2, 2), costs)


def test_a_table_that_never_ends():
    schedule = gpipe(2, 1)
    rows = (schedule.rows[0], tuple(a for a in schedule.rows[1] if a is None or a.op == Op.F))
    with pytest.raises(ScheduleError, match="0B0 waits for 1B0 or 1I0"):
        simulate(dataclasses.replace(schedule, rows=rows))
