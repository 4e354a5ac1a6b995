"""From orders to ticks; placements."""

import pytest

from jaxpipe.errors import ScheduleError
from jaxpipe.schedules import loop, parse_action, place, vee, verify


def order_of(*rows):
    return [[parse_action(cell) for cell in row.split()] for row in rows]


def cells(schedule):
    return [" ".join(str(action or ".") for action in row) for row in schedule.rows]


def test_every_action_at_its_earliest_tick():
    order = order_of("0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1B1")
    schedule = place(order, loop(2), 2, name="tiny")
    assert cells(schedule) == ["0F0 0F1 . 0B0 . 0B1", ". 1F0 1B0 1F1 1B1 ."]
    assert (schedule.name, schedule.placement, schedule.latency) == ("tiny", (0, 1), 0)
    verify(schedule)


def test_latency_delays_hops_between_ranks_only():
    order = order_of("0F0 3F0", "1F0 2F0")
    schedule = place(order, vee(2), 1, name="vee", latency=2)
    assert cells(schedule) == ["0F0 . . . . . . 3F0", ". . . 1F0 2F0 . . ."]
    verify(schedule)


def test_an_order_that_is_split_into_i_and_w():
    order = order_of("0F0 0I0 0W0", "1F0 1I0 1W0")
    assert cells(place(order, loop(2), 1, name="zb")) == ["0F0 . . 0I0 0W0", ". 1F0 1I0 1W0 ."]


def test_deadlock_says_what_every_rank_waits_for():
    order = order_of("0F0 0B0 0F1 0B1", "1F1 1F0 1B1 1B0", "2F0 2B0")
    with pytest.raises(ScheduleError) as error:
        place(order, loop(3), 2, name="stuck")
    assert str(error.value).splitlines() == [
        "deadlock: no rank can run its next action.",
        "  rank 0: 0B0 waits for 1B0 or 1I0 (1B0 is number 4 in the queue of rank 1)",
        "  rank 1: 1F1 waits for 0F1 (0F1 is number 2 in the queue of rank 0)",
        "  rank 2: 2F0 waits for 1F0 (1F0 is number 2 in the queue of rank 1)",
        "Put each action behind what it needs, on every rank in the same sequence.",
    ]


def test_deadlock_on_what_nobody_runs():
    with pytest.raises(ScheduleError) as error:
        place(order_of("0F0", "1F0 1B0", "2F0"), loop(3), 1, name="stuck")
    assert "  rank 0: done" in str(error.value)
    assert "1B0 waits for 2B0 or 2I0 (it is in no rank's order)" in str(error.value)


@pytest.mark.parametrize(
    "rows, placement, message",
    [
        (["0F0 0F0"], (0,), "rank 0: 0F0 stands twice"),
        (["0F0 1F0"], (0,), "1F0: there is no stage 1"),
        (["0F0", "1F0"], (0, 2), "stage 1 is placed on rank 2; expected ranks 0 to 1"),
        (["0F0", "1F0"], (0, -1), "stage 1 is placed on rank -1; expected ranks 0 to 1"),
        (["0F0", "1F0"], (0, 0), "rank 1 owns no stage"),
        (["0F0", "1F0", "2F0", "3F0"], (0, 2, 1, 3), "stage 0 is on rank 0 and stage 1 on rank 2"),
        ([], (), "got num_ranks=0; expected at least 1"),
    ],
)
def test_orders_and_placements_that_are_refused(rows, placement, message):
    with pytest.raises(ScheduleError) as error:
        place(order_of(*rows), placement, 1, name="bad")
    assert message in str(error.value)


def test_counts_that_are_refused():
    with pytest.raises(ScheduleError, match="num_microbatches=0"):
        place(order_of("0F0"), (0,), 0, name="bad")
    with pytest.raises(ScheduleError, match="latency=-1"):
        place(order_of("0F0"), (0,), 1, name="bad", latency=-1)
    with pytest.raises(ScheduleError, match="num_ranks=0"):
        loop(0)
    with pytest.raises(ScheduleError, match="num_chunks=0"):
        loop(2, 0)
    with pytest.raises(ScheduleError, match="num_ranks=-1"):
        vee(-1)


def test_placements():
    assert loop(3) == (0, 1, 2)
    assert loop(2, 3) == (0, 1, 0, 1, 0, 1)
    assert vee(3) == (0, 1, 2, 2, 1, 0)
    assert vee(1) == (0, 0)
