"""The judge: all schedules pass, every mutant is refused, and the message points at the cell."""

import dataclasses
import itertools

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxpipe.errors import ScheduleError
from jaxpipe.schedules import (
    NAMES,
    Action,
    Op,
    Schedule,
    by_name,
    forward_only,
    gpipe,
    loop,
    one_f_one_b,
    parse,
    vee,
    verify,
)

SPLIT = parse("""
schedule: split
placement: 0 1
num_microbatches: 2
latency: 0
rank 0: 0F0 0F1 .   0I0 0W0 0I1 0W1
rank 1: .   1F0 1I0 1F1 1B1 1W0 .
""")

CHUNKS = parse("""
schedule: chunks
placement: 0 1 1 0
num_microbatches: 1
latency: 1
rank 0: 0F0 .   .   .   .   3F0 3B0 .   .   .   .   0B0
rank 1: .   .   1F0 2F0 .   .   .   .   2B0 1B0 .   .
""")

SMALL = [
    gpipe(2, 2),
    one_f_one_b(3, 2),
    one_f_one_b(2, 3, latency=1),
    forward_only(2, 2, placement=vee(2)),
    forward_only(3, 1),
    SPLIT,
    CHUNKS,
]


def replaced(schedule: Schedule, cells: dict[tuple[int, int], Action | None]) -> Schedule:
    """The schedule with other contents in some cells, by (rank, tick)."""
    rows = [list(row) for row in schedule.rows]
    for (rank, tick), action in cells.items():
        rows[rank][tick] = action
    return dataclasses.replace(schedule, rows=tuple(map(tuple, rows)))


def positions(schedule: Schedule) -> list[tuple[int, int]]:
    return list(itertools.product(range(schedule.num_ranks), range(schedule.num_ticks)))


def contents(schedule: Schedule) -> list[Action | None]:
    """Everything that may stand in a cell, and stages and microbatches one past either end."""
    stages = range(-1, schedule.num_stages + 1)
    microbatches = range(-1, schedule.num_microbatches + 1)
    return [None, *itertools.starmap(Action, itertools.product(stages, Op, microbatches))]


def refused(schedule: Schedule) -> bool:
    try:
        verify(schedule)
    except ScheduleError:
        return True
    return False


def replay(schedule: Schedule) -> bool:
    """Runs the table with values instead of rules: can every action find what it reads?"""
    last = schedule.num_stages - 1
    inbox: dict[tuple[int, str, int, int], int] = {}  # (rank, kind, stage, m) -> usable from tick

    def send(kind: str, here: int, stage: int, m: int, tick: int) -> None:
        there = schedule.placement[stage]
        late = schedule.latency if there != here else 0
        inbox[there, kind, stage, m] = tick + 1 + late

    for m in range(schedule.num_microbatches):
        inbox[schedule.placement[0], "input", 0, m] = 0
    for tick in range(schedule.num_ticks):
        for rank in range(schedule.num_ranks):
            action = schedule.rows[rank][tick]
            if action is None:
                continue
            stage, op, m = action
            reads = {
                Op.F: ["input"],
                Op.B: ["residual", "gradient"],
                Op.I: ["residual", "gradient"],
                Op.W: ["for W"],
            }[op]
            if any(inbox.get((rank, kind, stage, m), tick + 1) > tick for kind in reads):
                return False
            if op == Op.F:
                send("residual", rank, stage, m, tick)
                if stage < last:
                    send("input", rank, stage + 1, m, tick)
                else:
                    send("gradient", rank, stage, m, tick)
            elif op == Op.I:
                send("for W", rank, stage, m, tick)
            if op in (Op.B, Op.I) and stage > 0:
                send("gradient", rank, stage - 1, m, tick)
    return True


@st.composite
def schedules(draw):
    num_ranks, num_microbatches = draw(st.integers(1, 5)), draw(st.integers(2, 9))
    name = draw(st.sampled_from([*NAMES, "forward", "loop", "vee"]))
    if name in NAMES:
        return by_name(name, num_ranks, num_microbatches)
    placement = {"forward": loop(num_ranks), "loop": loop(num_ranks, 2), "vee": vee(num_ranks)}
    return forward_only(num_ranks, num_microbatches, placement=placement[name])


@pytest.mark.parametrize("schedule", SMALL, ids=lambda schedule: schedule.name)
def test_every_other_content_of_every_cell_is_refused(schedule):
    verify(schedule)
    mutants = [
        replaced(schedule, {position: content})
        for position in positions(schedule)
        for content in contents(schedule)
        if content != schedule.rows[position[0]][position[1]]
    ]
    assert len(mutants) >= 70
    for mutant in mutants:
        assert refused(mutant), str(mutant)


@settings(deadline=None)
@given(schedules(), st.data())
def test_a_cell_with_other_content_is_refused(schedule, data):
    rank, tick = data.draw(st.sampled_from(positions(schedule)))
    others = [content for content in contents(schedule) if content != schedule.rows[rank][tick]]
    assert refused(replaced(schedule, {(rank, tick): data.draw(st.sampled_from(others))}))


@settings(deadline=None)
@given(schedules(), st.data())
def test_an_action_that_moves_to_another_rank_is_refused(schedule, data):
    rank, tick = data.draw(st.sampled_from(positions(schedule)))
    to_rank, to_tick = data.draw(st.sampled_from(positions(schedule)))
    action, other = schedule.rows[rank][tick], schedule.rows[to_rank][to_tick]
    assume(rank != to_rank)
    swapped = replaced(schedule, {(rank, tick): other, (to_rank, to_tick): action})
    assert refused(swapped) == (action != other)


@settings(deadline=None)
@given(schedules() | st.sampled_from(SMALL), st.data())
def test_two_cells_of_a_rank_change_places(schedule, data):
    """Some such tables are right, some are wrong: a replay of the values knows which."""
    rank = data.draw(st.integers(0, schedule.num_ranks - 1))
    ticks = st.integers(0, schedule.num_ticks - 1)
    one, two = data.draw(ticks), data.draw(ticks)
    row = schedule.rows[rank]
    swapped = replaced(schedule, {(rank, one): row[two], (rank, two): row[one]})
    assert refused(swapped) == (not replay(swapped))


@settings(deadline=None)
@given(schedules(), st.integers(1, 3))
def test_more_latency_than_a_table_was_placed_for_is_refused(schedule, more):
    slower = dataclasses.replace(schedule, latency=schedule.latency + more)
    assert refused(slower) == (schedule.num_ranks > 1)


@settings(deadline=None)
@given(schedules(), st.sampled_from([-1, 1]))
def test_another_number_of_microbatches_is_refused(schedule, more):
    number = schedule.num_microbatches + more
    assert refused(dataclasses.replace(schedule, num_microbatches=number))


def message(schedule: Schedule) -> str:
    with pytest.raises(ScheduleError) as error:
        verify(schedule)
    return str(error.value)


def test_message_for_a_need_that_comes_too_late():
    # 1B0 changes places with 1F0.
    assert message(
        replaced(one_f_one_b(2, 2), {(1, 1): Action(1, Op.B, 0), (1, 2): Action(1, Op.F, 0)})
    ) == (
        "rank 1, tick 1: 1B0 needs 1F0 (rank 1, tick 2), ready at tick 3.\n"
        "Move 1B0 to a later tick or 1F0 to an earlier one.\n"
        "\n"
        "1f1b: 2 ranks, 2 stages, 2 microbatches, 6 ticks\n"
        "rank 0 | 0F0 0F1 .   0B0 .   0B1 |\n"
        "rank 1 | .  >1B0<1F0 1F1 1B1 .   | <-- here"
    )


def test_message_for_a_hop_that_takes_longer():
    text = message(dataclasses.replace(gpipe(2, 1), latency=2))
    assert text.startswith("rank 1, tick 1: 1F0 needs 0F0 (rank 0, tick 0), ready at tick 3.\n")
    assert ">1F0<" in text and "latency 2" in text


@pytest.mark.parametrize(
    "cells, first, second, marked",
    [
        (
            {(0, 1): Action(0, Op.F, 0)},
            "rank 0, tick 1: 0F0 ran at tick 0 already; expected it once.",
            "Take one of the two away.",
            ">0F0<",
        ),
        (
            {(0, 2): Action(1, Op.F, 1)},
            "rank 0, tick 2: 1F1 is on rank 0, but stage 1 is on rank 1.",
            "Move it to rank 1, or change the placement.",
            ">1F1<",
        ),
        (
            {(0, 2): Action(2, Op.F, 1)},
            "rank 0, tick 2: 2F1: there is no stage 2; expected stages 0 to 1.",
            "Correct the action, or the placement.",
            ">2F1<",
        ),
        (
            {(0, 2): Action(0, Op.F, 2)},
            "rank 0, tick 2: 0F2: there is no microbatch 2; expected microbatches 0 to 1.",
            "Correct the action, or num_microbatches.",
            ">0F2<",
        ),
        (
            {(0, 3): None},
            "rank 0, tick 0: stage 0 runs microbatch 0 as F; expected FB or FIW.",
            "On rank 0, add 0B0.",
            ">0F0<",
        ),
        (
            {(1, 2): Action(1, Op.I, 0)},
            "rank 1, tick 2: stage 1 runs microbatch 0 as FI; expected FB or FIW.",
            "On rank 1, add 1W0.",
            ">1I0<",
        ),
        (
            {(0, 2): Action(0, Op.W, 1)},
            "rank 0, tick 2: stage 0 runs microbatch 1 as FBW; expected FB or FIW.",
            "On rank 0, take 0W1 away.",
            ">0W1<",
        ),
    ],
)
def test_messages_name_the_cell_and_what_to_do(cells, first, second, marked):
    lines = message(replaced(one_f_one_b(2, 2), cells)).splitlines()
    assert lines[:3] == [first, second, ""]
    here = [line for line in lines if line.endswith("| <-- here")]
    assert len(here) == 1 and marked in here[0]
    assert here[0].startswith(f"rank {first[5]} |")


def test_message_for_a_microbatch_that_never_runs():
    lines = message(replaced(forward_only(2, 2), {(1, 2): None})).splitlines()
    assert lines[0] == "stage 1 runs microbatch 1 as nothing; expected F."
    assert lines[1] == "On rank 1, add 1F1."
    assert lines[-1] == "rank 1 | .  F0 .  |"


def test_message_for_rows_of_unequal_length():
    schedule = gpipe(2, 1)
    text = message(dataclasses.replace(schedule, rows=(schedule.rows[0], schedule.rows[1][:-1])))
    assert text.startswith("rank 1 has 3 ticks; expected 4, as in the longest row.\nFill the row")
    assert "rank 1 | .  F0 B0    |" in text


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"placement": (0, 1, 3, 2)}, "stage 1 is on rank 1 and stage 2 on rank 3"),
        ({"placement": (0, 1, 2, 4)}, "stage 3 is placed on rank 4; expected ranks 0 to 3"),
        ({"placement": (0, 1, 2, 2)}, "rank 3 owns no stage"),
        ({"placement": ()}, "rank 0 owns no stage"),
        ({"num_microbatches": 0}, "got num_microbatches=0; expected at least 1"),
        ({"latency": -1}, "got latency=-1; expected 0 or more"),
        ({"rows": ()}, "got num_ranks=0; expected at least 1"),
    ],
)
def test_messages_for_what_is_not_a_cell(change, expected):
    assert expected in message(dataclasses.replace(gpipe(4, 2), **change))


def test_values_may_cross_the_seam_of_the_ring():
    verify(forward_only(4, 3, placement=(2, 3, 0, 1)))
    verify(forward_only(4, 3, placement=(1, 0, 3, 2)))


def test_an_unknown_op_is_refused():
    action = Action(0, "X", 0)  # pyright: ignore[reportArgumentType]
    assert "there is no op 'X'; expected F, B, I or W" in message(
        replaced(gpipe(1, 1), {(0, 0): action})
    )
