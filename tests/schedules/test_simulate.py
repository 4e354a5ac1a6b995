"""Schedules on paper: times by hand, and what ranks hold."""

import dataclasses

import numpy as np
import pytest

from jaxpipe.errors import ScheduleError
from jaxpipe.schedules import (
    Costs,
    Lockstep,
    Op,
    Schedule,
    forward_only,
    gpipe,
    one_f_one_b,
    parse,
    simulate,
    vee,
)

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


def spans(schedule: Schedule, costs: Costs, lockstep: Lockstep) -> dict[str, tuple[float, float]]:
    timeline = simulate(schedule, costs, lockstep)
    return {str(a): (start, timeline.ends[a]) for a, start in timeline.starts.items()}


@pytest.mark.parametrize("barrier", ["links", "all"])
def test_two_ranks_in_lockstep_by_hand(barrier):
    found = spans(one_f_one_b(2, 2), Costs(F=1, B=2, hop=0.5), Lockstep(barrier))
    assert found == {
        "0F0": (0, 1),  # meets: both go on at 1.5
        "0F1": (1.5, 2.5),
        "1F0": (1.5, 2.5),
        "1B0": (2.5, 4.5),  # 0F1 and 1B0 meet, once: at 5
        "0B0": (5, 7),
        "1F1": (5, 6),
        "1B1": (6, 8),  # at 8.5
        "0B1": (8.5, 10.5),
    }


def test_a_meeting_beside_the_next_tick():
    schedule, costs = one_f_one_b(2, 2, latency=1), Costs(F=1, B=2, hop=0.5)
    assert spans(schedule, costs, Lockstep()) == {
        "0F0": (0, 1),
        "0F1": (1, 2),  # while 0F0 travels
        "1F0": (1.5, 2.5),
        "1B0": (2.5, 4.5),
        "1F1": (4.5, 5.5),  # while 1B0 travels
        "0B0": (5, 7),
        "1B1": (5.5, 7.5),
        "0B1": (8, 10),
    }
    behind = spans(schedule, costs, Lockstep(overlap=False))
    assert behind["0F1"] == (1.5, 2.5)
    assert behind["0B1"][1] > 10


@pytest.mark.parametrize("hop", [0, 0.5, 0.9])
def test_eager_1f1b_loses_nothing_where_all_links_are_used_at_every_tick(hop: float):
    schedule, costs = one_f_one_b(4, 16, latency=1), Costs(F=1, B=2, hop=hop)
    chosen, steady = (simulate(schedule, costs, Lockstep(steady=on)) for on in (False, True))
    assert steady.makespan == pytest.approx(chosen.makespan)
    # Without latency the links are chosen, whatever `steady` says.
    alike = {
        simulate(one_f_one_b(4, 16), costs, Lockstep(steady=on)).makespan for on in (False, True)
    }
    assert len(alike) == 1


def test_ranks_that_do_not_meet_run_free():
    """Every tick of the steady state has a B, but no rank runs B at every tick."""
    costs = Costs(F=1, B=2)
    assert simulate(one_f_one_b(4, 8), costs, Lockstep("links")).makespan == 33
    # 4 + 3 ticks with F or B alone on some rank, and the others as long as a B.
    assert simulate(one_f_one_b(4, 8), costs, Lockstep("all")).makespan == 40


def test_a_looser_table_meets_less():
    """The eager table without latency: F beside F and B beside B, and a meeting after each pair."""
    loose = dataclasses.replace(one_f_one_b(4, 8, latency=1), latency=0)
    assert simulate(loose, Costs(F=1, B=2), Lockstep("all")).makespan == 36


@pytest.mark.parametrize("latency", [0, 1])
def test_waiting_takes_time(latency):
    costs = Costs(F=[1, 2, 1.5], B=[2, 3, 4], hop=0.25)
    schedule = one_f_one_b(3, 6, latency=latency)
    free = simulate(schedule, costs).makespan
    links = simulate(schedule, costs, Lockstep("links")).makespan
    everyone = simulate(schedule, costs, Lockstep("all")).makespan
    assert free <= links <= everyone
    assert free < everyone


def test_one_rank_never_waits():
    assert simulate(gpipe(1, 3), Costs(hop=5), Lockstep("all")).makespan == 9


def test_ticks_cost_in_a_loop_only():
    costs = Costs(F=1, B=2, tick=0.25)
    assert simulate(gpipe(1, 3), costs).makespan == 9
    assert simulate(gpipe(1, 3), costs, Lockstep()).makespan == 9 + 6 * 0.25
    # Ranks pay for their bubbles too: 0F0, then its hop, three bubbles while rank 1 works, 0B0.
    assert simulate(gpipe(2, 1), costs, Lockstep()).makespan == 6 + 4 * 0.25


@pytest.mark.parametrize("lockstep", [None, Lockstep("links"), Lockstep("all")])
def test_each_rank_pays_for_its_optimizer_at_the_end(lockstep):
    schedule = forward_only(2, 1, placement=vee(2))
    timeline = simulate(schedule, Costs(F=1, optimizer=[1, 2, 3, 4]), lockstep)
    # Rank 0 is done at 4, rank 1 at 3.
    assert timeline.makespan == max(4 + 1 + 4, 3 + 2 + 3)
    assert timeline.bubble_fraction == pytest.approx(1 - (4 + 10) / 18)
    assert simulate(gpipe(2, 2), Costs(optimizer=7), lockstep).makespan == 9 + 7


def test_a_barrier_that_does_not_exist():
    with pytest.raises(ScheduleError, match="barrier='some'; expected 'links' or 'all'"):
        simulate(gpipe(2, 2), None, Lockstep("some"))  # pyright: ignore[reportArgumentType]


def test_costs_per_stage_are_checked_for_the_optimizer_too():
    with pytest.raises(ScheduleError, match=r"costs\.optimizer has 3 costs"):
        simulate(gpipe(2, 2), Costs(optimizer=[1, 2, 3]))


def test_wrong_tables_are_refused_in_lockstep_too():
    schedule = gpipe(2, 1)
    for wrong in (
        dataclasses.replace(schedule, latency=1),
        dataclasses.replace(schedule, rows=(schedule.rows[0], (None,))),
        dataclasses.replace(schedule, rows=()),
        dataclasses.replace(schedule, placement=(0, 5)),
    ):
        with pytest.raises(ScheduleError):
            simulate(wrong, None, Lockstep())
