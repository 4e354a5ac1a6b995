"""Costs out of timelines: what was simulated with costs gives them back."""

import dataclasses

import pytest

from jaxpipe.errors import ScheduleError
from jaxpipe.schedules import (
    NAMES,
    Action,
    Costs,
    Lockstep,
    Op,
    Timeline,
    by_name,
    measured_costs,
    one_f_one_b,
    pictures,
    simulate,
    zb_h1,
)
from jaxpipe.schedules.fusion import fusible

LOCKSTEP = Lockstep("all")


def unequal(num_stages: int) -> Costs:
    """Costs that differ by op and stage."""
    each = lambda least: [least + 0.25 * stage for stage in range(num_stages)]
    return Costs(F=each(1), B=each(2.5), I=each(1.5), W=each(0.5), hop=0.5, tick=0.125)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "1f1b-eager"])
def test_what_was_simulated_gives_its_costs_back(name: str):
    schedule = by_name(name, 3, 7)
    costs = unequal(schedule.num_stages)
    timeline = simulate(schedule, costs, LOCKSTEP)
    found = measured_costs(schedule, [timeline])
    ops = {action.op for action in schedule.ticks()}
    for op in ops:
        assert getattr(found, op) == pytest.approx(getattr(costs, op))
    # Where ranks meet at every tick but the last, a meeting's time cannot be told from a tick's.
    assert found.hop + found.tick == pytest.approx(costs.hop + costs.tick)
    again = simulate(schedule, found, LOCKSTEP).makespan
    assert again == pytest.approx(timeline.makespan, abs=0 if found.tick else costs.tick)


def test_with_latency_a_meeting_costs_nothing():
    schedule = one_f_one_b(3, 7, latency=1)
    found = measured_costs(schedule, [simulate(schedule, Costs(hop=0.5), LOCKSTEP)])
    assert (found.hop, found.F, found.B) == (0, [1.0] * 3, [2.0] * 3)


def test_ops_that_did_not_run_are_filled_in():
    whole = one_f_one_b(2, 4)
    found = measured_costs(whole, [simulate(whole, Costs(F=1, B=3), LOCKSTEP)])
    assert (found.I, found.W) == ([1.5, 1.5], [1.5, 1.5])
    halves = zb_h1(2, 4)
    found = measured_costs(halves, [simulate(halves, Costs(I=1.25, W=0.5), LOCKSTEP)])
    assert found.B == [1.75, 1.75]


def test_the_median_of_runs_counts():
    schedule = one_f_one_b(1, 3)
    timelines = []
    for costs in (Costs(F=1, B=2), Costs(F=9, B=8), Costs(F=2, B=4)):
        timelines.append(simulate(schedule, costs, LOCKSTEP))
    found = measured_costs(schedule, timelines)
    assert (found.F, found.B) == ([2.0], [4.0])


def test_a_forward_within_its_backward_takes_no_time():
    schedule = one_f_one_b(1, 2)
    starts = {Action(0, op, m): float(3 * m) for op in (Op.F, Op.B) for m in range(2)}
    ends = {action: start + (3 if action.op == Op.B else 0) for action, start in starts.items()}
    timeline = Timeline(starts, ends, 6.0, 0.0, (1,))
    assert measured_costs(schedule, [timeline]) == Costs(F=[0.0], B=[3.0], I=[1.5], W=[1.5])


@pytest.mark.parametrize("name", ["1f1b", "1f1b-eager"])
def test_fused_forwards_run_when_their_backwards_do(name: str):
    """As an engine measures: all of the time is the backward's, and ranks meet at other ticks."""
    schedule, fused = by_name(name, 3, 7), Lockstep("all", fuse=True)
    assert fusible(schedule)
    costs = unequal(schedule.num_stages)
    told = simulate(schedule, costs, fused)
    alone = set(fusible(schedule).values())
    starts = {action: told.starts[action] for action in told.starts}
    starts |= {b: told.starts[forward] for b, forward in fusible(schedule).items()}
    ends = {a: starts[a] if a in alone else end for a, end in told.ends.items()}
    measured = dataclasses.replace(told, starts=starts, ends=ends)
    found = measured_costs(schedule, [measured])
    last = schedule.num_stages - 1
    assert (found.F[last], found.B[last]) == (0, costs.F[last] + costs.B[last])  # pyright: ignore
    if not schedule.latency:
        assert found.hop + found.tick == pytest.approx(costs.hop + costs.tick)
        again = simulate(schedule, found, fused).makespan
        assert again == pytest.approx(told.makespan, abs=3 * costs.tick)  # none could be told


def test_timelines_of_another_schedule_are_refused():
    schedule = zb_h1(2, 4)
    with pytest.raises(ScheduleError, match="got no timelines"):
        measured_costs(schedule, [])
    with pytest.raises(ScheduleError, match="not of the schedule 'zb-h1': 0B0 is only in one"):
        measured_costs(schedule, [simulate(one_f_one_b(2, 4))])


def test_the_fastest_step_is_drawn_beside_the_simulated_one():
    schedule = zb_h1(2, 4)
    timelines = [simulate(schedule, Costs().scaled(factor), LOCKSTEP) for factor in (3, 1, 2)]
    simulated, measured = pictures.charts_of_measured(schedule, timelines, LOCKSTEP)
    assert simulated.title.endswith("simulated") and measured.title.endswith("measured")
    assert measured.end == timelines[1].makespan
    assert simulated.end == timelines[2].makespan  # with the medians
    assert {simulated.unit, measured.unit} == {"s"}
    assert pictures.svg([simulated, measured]).count("<svg") == 1
