"""All schedules at all sizes, their names and their drawings; formulas of those without chunks."""

import functools
import inspect
import pathlib

import pytest

from jaxpipe.errors import ScheduleError
from jaxpipe.schedules import (
    NAMES,
    Action,
    Costs,
    Op,
    by_name,
    forward_only,
    gpipe,
    interleaved,
    loop,
    one_f_one_b,
    simulate,
    vee,
    verify,
)
from jaxpipe.schedules.families.fill import fill

MOST_LINES = 40
GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
CHUNKED = ["interleaved", "looped-bfs", "interleaved-zb"]
ON_A_V = ["zb-v", "v-half", "v-min", "1f1b-v", "dualpipe-v"]
MICROBATCHES = range(1, 18)
all_ranks = pytest.mark.parametrize("num_ranks", range(1, 9))


@all_ranks
@pytest.mark.parametrize("schedule_of", [gpipe, one_f_one_b])
def test_makespan_and_bubble_follow_the_formulas(schedule_of, num_ranks):
    for m in MICROBATCHES:
        schedule = schedule_of(num_ranks, m)
        verify(schedule)
        assert schedule.num_ticks == 2 * (m + num_ranks - 1)
        assert simulate(schedule, Costs(F=1, B=1)).makespan == 2 * (m + num_ranks - 1)
        timeline = simulate(schedule, Costs(F=1, B=2))
        assert timeline.makespan == 3 * (m + num_ranks - 1)
        assert timeline.bubble_fraction == pytest.approx((num_ranks - 1) / (m + num_ranks - 1))


@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_is_said_in_few_lines(name):
    make = NAMES[name]
    function = make.func if isinstance(make, functools.partial) else make
    assert len(inspect.getsource(function).splitlines()) <= MOST_LINES


@all_ranks
def test_gpipe_holds_every_microbatch(num_ranks):
    for m in MICROBATCHES:
        assert simulate(gpipe(num_ranks, m)).held == (m,) * num_ranks


@all_ranks
def test_one_f_one_b_holds_no_more_than_the_ranks_to_come(num_ranks):
    for m in MICROBATCHES:
        held = simulate(one_f_one_b(num_ranks, m)).held
        assert held == tuple(min(m, num_ranks - rank) for rank in range(num_ranks))


@all_ranks
def test_eager_one_f_one_b(num_ranks):
    for m in MICROBATCHES:
        schedule = one_f_one_b(num_ranks, m, latency=1)
        verify(schedule)
        assert schedule.latency == 1
        # Two ticks a hop, there and back, and then no more.
        assert schedule.num_ticks == 2 * m + 4 * (num_ranks - 1)
        held = tuple(min(m, 2 * (num_ranks - rank) - 1) for rank in range(num_ranks))
        assert simulate(schedule).held == held


@pytest.mark.parametrize("latency", [0, 1, 2])
@pytest.mark.parametrize("num_ranks", [1, 2, 5])
def test_the_steady_state_has_no_bubbles(num_ranks, latency):
    schedule = one_f_one_b(num_ranks, 20, latency=latency)
    verify(schedule)
    for row in schedule.rows:
        ops = [action.op if action else None for action in row]
        first, last = ops.index(Op.B), len(ops) - 1 - ops[::-1].index(Op.F)
        steady = ops[first : last + 1]
        assert len(steady) >= 10
        assert steady == [Op.B, Op.F] * (len(steady) // 2)


def test_only_eager_one_f_one_b_hides_hops():
    """With exposed hops 1F1B waits twice a microbatch: 8 ranks, 32 microbatches, a hop of 0.1 F."""
    costs = Costs(F=1, B=2, hop=0.1)
    assert simulate(one_f_one_b(8, 32), costs).makespan == pytest.approx(123.8)
    assert simulate(one_f_one_b(8, 32, latency=1), costs).makespan == pytest.approx(118.4)
    assert simulate(gpipe(8, 32), costs).makespan == pytest.approx(118.4)


@all_ranks
@pytest.mark.parametrize("num_chunks", [1, 3])
def test_forward_only_on_a_loop(num_chunks, num_ranks):
    for m in MICROBATCHES:
        schedule = forward_only(num_ranks, m, placement=loop(num_ranks, num_chunks))
        verify(schedule)
        assert {action.op for action in schedule.ticks()} == {Op.F}
        assert simulate(schedule).held == (0,) * num_ranks
        if m % num_ranks == 0 or num_chunks == 1:  # then ranks only wait to be filled
            assert schedule.num_ticks == num_chunks * m + num_ranks - 1


@all_ranks
def test_forward_only_on_a_vee(num_ranks):
    for m in MICROBATCHES:
        schedule = forward_only(num_ranks, m, placement=vee(num_ranks))
        verify(schedule)
        # The last rank is filled, works without a bubble, and its last result goes home.
        assert schedule.num_ticks == 2 * m + 2 * (num_ranks - 1)


def test_forward_only_without_a_placement_is_a_loop():
    assert forward_only(4, 8) == forward_only(4, 8, placement=loop(4))
    assert forward_only(4, 8).num_ticks == 11


def test_forward_only_runs_stages_in_a_row_on_one_rank():
    schedule = forward_only(2, 3, placement=(0, 0, 1, 1))
    verify(schedule)
    assert schedule.num_ticks == 8  # 2 for the first microbatch to pass rank 0, then 6 on rank 1


def chunks(name: str, most: int) -> range:
    """The numbers of stages on a rank that a family can have, up to one."""
    return range(1, most + 1) if name in CHUNKED else range(2, 3) if name in ON_A_V else range(1, 2)


def check(name: str, num_ranks: int, num_microbatches: int, num_chunks: int) -> None:
    schedule = by_name(name, num_ranks, num_microbatches, num_chunks=num_chunks)
    verify(schedule)
    timeline = simulate(schedule)
    assert schedule.num_ranks == num_ranks
    assert schedule.num_stages == num_ranks * num_chunks
    assert schedule.num_microbatches == num_microbatches
    assert {action.stage for action in schedule.ticks()} == set(range(num_ranks * num_chunks))
    assert timeline.makespan >= 3 * num_chunks * num_microbatches
    assert max(timeline.held) <= num_chunks * num_microbatches


@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_ranks_chunks_and_microbatches(name):
    for num_ranks in range(1, 5):
        for num_chunks in chunks(name, most=3):
            for num_microbatches in range(1, 10):
                check(name, num_ranks, num_microbatches, num_chunks)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_larger_numbers(name):
    for num_ranks in range(1, 10):
        for num_chunks in chunks(name, most=4):
            for num_microbatches in (*range(1, 3 * num_ranks + 2), 40):
                check(name, num_ranks, num_microbatches, num_chunks)


@pytest.mark.parametrize("num_ranks, num_microbatches", [(4, 8), (3, 4)])
@pytest.mark.parametrize("name", [*NAMES][3:])
def test_golden(name, num_ranks, num_microbatches):
    drawing = f"{by_name(name, num_ranks, num_microbatches)}\n"
    golden = GOLDEN / f"{name}_{num_ranks}x{num_microbatches}.txt"
    assert drawing == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CHUNKED)
def test_golden_with_three_chunks(name):
    drawing = f"{by_name(name, 2, 3, num_chunks=3)}\n"
    assert drawing == (GOLDEN / f"{name}_2x3_3chunks.txt").read_text(encoding="utf-8")


def test_names():
    plain = ["gpipe", "1f1b", "1f1b-eager"]
    zero_bubble = ["zb-h1", "zb-h2", "interleaved-zb"]
    assert list(NAMES) == [*plain, "interleaved", "looped-bfs", *zero_bubble, *ON_A_V]
    for name in NAMES:
        assert by_name(name, 3, 5).name == name
        assert by_name(name, 3, 5) == NAMES[name](3, 5)
    assert by_name("gpipe", 3, 5) == gpipe(3, 5)
    assert by_name("1f1b", 3, 5) == one_f_one_b(3, 5)
    assert by_name("1f1b-eager", 3, 5) == one_f_one_b(3, 5, latency=1)


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_chunks(name):
    default = 2 if name in CHUNKED + ON_A_V else 1
    assert by_name(name, 3, 5).num_chunks == default
    assert by_name(name, 3, 5, num_chunks=default) == by_name(name, 3, 5)
    if name in CHUNKED:
        assert by_name(name, 3, 5, num_chunks=4).num_chunks == 4
        with pytest.raises(ScheduleError, match="num_chunks=0; expected at least 1"):
            by_name(name, 3, 5, num_chunks=0)
    else:
        for wrong in {0, 1, 2, 3} - {default}:
            message = f"got num_chunks={wrong}; expected {default}: '{name}' has {default} stage"
            with pytest.raises(ScheduleError, match=message):
                by_name(name, 3, 5, num_chunks=wrong)


def test_a_group_that_is_too_small():
    with pytest.raises(ScheduleError, match="group_size=3; expected at least num_ranks=4"):
        interleaved(4, 8, group_size=3)
    assert interleaved(4, 3, group_size=3).num_microbatches == 3


def test_a_limit_that_is_too_low():
    turns = [[Action(0, op, m) for op in (Op.F, Op.I) for m in range(2)]]
    with pytest.raises(ScheduleError, match=r"no rank can go on within limit=0.* hold 0"):
        fill(turns, (0,), limit=0)


def test_an_unknown_name():
    with pytest.raises(ScheduleError, match="no schedule '1f1b-eagr'; did you mean '1f1b-eager'"):
        by_name("1f1b-eagr", 4, 8)


@pytest.mark.parametrize("schedule_of", [*NAMES.values(), forward_only])
@pytest.mark.parametrize(
    "num_ranks, num_microbatches, message",
    [
        (0, 4, "num_ranks=0"),
        (-1, 4, "num_ranks=-1"),
        (2, 0, "num_microbatches=0"),
        (2, -3, "num_microbatches=-3"),
    ],
)
def test_counts_below_one(schedule_of, num_ranks, num_microbatches, message):
    with pytest.raises(ScheduleError, match=f"got {message}; expected at least 1"):
        schedule_of(num_ranks, num_microbatches)


def test_a_negative_latency():
    with pytest.raises(ScheduleError, match="latency=-1"):
        one_f_one_b(2, 2, latency=-1)


def test_a_placement_that_does_not_fit():
    with pytest.raises(ScheduleError, match="rank 2 owns no stage"):
        forward_only(3, 2, placement=(0, 1))
