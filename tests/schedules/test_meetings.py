"""Meetings: every value lands in time, no outbox is overwritten, and no tick too many meets."""

import dataclasses
import itertools

import pytest
from hypothesis import given, settings
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
    needs,
    one_f_one_b,
    parse,
    place,
    vee,
    verify,
)
from jaxpipe.schedules.meetings import Hop, Permute, hops, permutes


def crossing(schedule: Schedule) -> list[Hop]:
    return [hop for hop in hops(schedule) if hop.crosses]


def meeting_ticks(schedule: Schedule) -> set[int]:
    return {hop.landed for hop in crossing(schedule)}


def window(schedule: Schedule, hop: Hop) -> range:
    """The ticks at which a value may land, by walking over the rank's row."""
    row = schedule.rows[hop.source]
    latest = schedule.ticks()[hop.reader] - 1
    for tick in range(hop.sent + 1, schedule.num_ticks):
        action = row[tick]
        if action is None or (action.op == Op.F) != (hop.maker.op == Op.F):
            continue
        if action.op == Op.W:
            continue
        to = action.stage + (1 if action.op == Op.F else -1)
        leaves = 0 <= to < schedule.num_stages and schedule.placement[to] != hop.source
        if leaves:
            # Meetings with latency carry what the outbox held before their tick.
            latest = min(latest, tick - 1 + schedule.latency)
            break
    return range(hop.sent + schedule.latency, latest + 1)


def check(schedule: Schedule) -> None:
    """Everything that must hold of the hops of a schedule."""
    found, ticks = hops(schedule), schedule.ticks()
    readers = [
        action
        for action in ticks
        for group in needs(action, schedule.num_stages)
        if group[0].stage != action.stage
    ]
    assert sorted(hop.reader for hop in found) == sorted(readers)
    for hop in found:
        assert hop.sent == ticks[hop.maker]
        assert (hop.source, hop.target) == (
            schedule.placement[hop.maker.stage],
            schedule.placement[hop.reader.stage],
        )
        if hop.crosses:
            assert hop.landed in window(schedule, hop)
        else:
            assert hop.landed == hop.sent < ticks[hop.reader]
    # The outbox holds one value: what a rank sends in one flow at one tick is one value.
    sends = [(hop.source, hop.maker.op == Op.F, hop.landed) for hop in found if hop.crosses]
    assert len(sends) == len(set(sends))
    at_once = {hop.sent + schedule.latency for hop in found if hop.crosses}
    assert len(meeting_ticks(schedule)) <= len(at_once)
    check_permutes(found)


def check_permutes(found: list[Hop]) -> None:
    table = permutes(found)
    carried = {
        (tick, permute.forwards, link)
        for tick, several in table.items()
        for permute in several
        for link in permute.links
    }
    wanted = {
        (hop.landed, hop.maker.op == Op.F, (hop.source, hop.target)) for hop in found if hop.crosses
    }
    assert carried == wanted
    for several in table.values():
        assert 1 <= len(several) <= 4
        for permute in several:
            sources, targets = zip(*permute.links, strict=True)
            assert len(set(sources)) == len(sources)
            assert len(set(targets)) == len(targets)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("name", NAMES)
def test_every_family(name, num_ranks):
    for m in (1, 2, 5, 8):
        schedule = by_name(name, num_ranks, m)
        check(schedule)
        if schedule.latency:
            check(dataclasses.replace(schedule, latency=0))


@pytest.mark.parametrize("placement", [loop(3, 3), vee(4), (0, 0, 1, 1), (1, 0, 3, 2)])
def test_forward_only(placement):
    check(forward_only(1 + max(placement), 5, placement=placement))


@st.composite
def random_schedules(draw, most_stages: int = 6, most_microbatches: int = 4) -> Schedule:
    """A random right table: actions in a random order that their needs allow, with idle ticks."""
    num_ranks = draw(st.integers(1, 3))
    placements = [loop(num_ranks), loop(num_ranks, 2), vee(num_ranks)]
    fits = [p for p in placements if len(p) <= most_stages]
    placement = draw(st.sampled_from(fits))
    m = draw(st.integers(1, most_microbatches))
    split = draw(st.lists(st.booleans(), min_size=len(placement), max_size=len(placement)))
    latency = draw(st.integers(0, 1))
    ops = [(Op.F, Op.I, Op.W) if halves else (Op.F, Op.B) for halves in split]
    todo = [Action(s, op, n) for s in range(len(placement)) for op in ops[s] for n in range(m)]
    random = draw(st.randoms(use_true_random=False))
    order: list[list[Action]] = [[] for _ in range(num_ranks)]
    done: set[Action] = set()
    while todo:
        ready = [
            a for a in todo if all(any(n in done for n in g) for g in needs(a, len(placement)))
        ]
        action = random.choice(ready)
        todo.remove(action)
        done.add(action)
        order[placement[action.stage]].append(action)
    wait = draw(st.integers(0, 2))  # placed for slower links than it has: values have time
    schedule = place(order, placement, m, name="random", latency=latency + wait)
    return dataclasses.replace(schedule, latency=latency)


@settings(deadline=None, max_examples=150)
@given(random_schedules())
def test_random_orders(schedule):
    verify(schedule)
    check(schedule)


@settings(deadline=None, max_examples=60)
@given(random_schedules(most_stages=3, most_microbatches=3))
def test_no_fewer_ticks_would_do(schedule):
    windows = [set(window(schedule, hop)) for hop in crossing(schedule)]
    num_ticks = len(meeting_ticks(schedule))
    possible = sorted(set().union(*windows)) if windows else []
    for fewer in itertools.combinations(possible, max(0, num_ticks - 1)):
        assert num_ticks == 0 or any(span.isdisjoint(fewer) for span in windows)


def test_a_table_with_time_to_travel_meets_once_a_period():
    """The eager table without its latency: F and B of neighbours land at the same tick."""
    loose = dataclasses.replace(one_f_one_b(4, 32, latency=1), latency=0)
    tight = one_f_one_b(4, 32)
    check(loose)
    steady = lambda schedule: len([t for t in meeting_ticks(schedule) if 20 <= t < 60])
    assert steady(tight) == 40
    assert steady(loose) == 20


def test_values_wait_for_those_of_the_other_flow():
    schedule = parse("""
schedule: loose
placement: 0 1
num_microbatches: 3
latency: 0
rank 0: 0F0 0F1 .   .   0F2 0B0 .   0B1 0B2
rank 1: .   1F0 1B0 1F1 1B1 .   1F2 1B2 .
""")
    at = {str(hop.maker): hop.landed for hop in hops(schedule)}
    assert at["0F0"] == 0  # before the outbox takes 0F1
    assert at["0F1"] == at["1B0"] == 2  # 0F1 could leave at 1, but is read at 3
    assert at["1B2"] == 7
    assert meeting_ticks(schedule) == {0, 2, 5, 7}  # 0F2 and 1B1 were both made at 4


def test_with_latency_the_outbox_is_read_before_the_work_of_the_tick():
    schedule = one_f_one_b(2, 3, latency=1)
    at = {str(hop.maker): (hop.sent, hop.landed) for hop in hops(schedule)}
    assert at["0F0"] == (0, 1)  # leaves while 0F1 runs, at tick 1


def test_a_rank_that_hears_twice_in_one_flow():
    schedule = parse("""
schedule: twice
placement: 0 1 2 2 1 0
num_microbatches: 3
latency: 0
rank 0: 0F0 .   .   0F1 0F2 5F0 .   .   .   .   5F1 5F2
rank 1: .   1F0 .   .   4F0 1F1 1F2 .   .   4F1 4F2 .
rank 2: .   .   2F0 3F0 .   .   2F1 2F2 3F1 3F2 .   .
""")
    verify(schedule)
    check(schedule)
    # 0F1 must leave before 0F2, and 3F0 is read at 4: rank 1 hears both at 3, from both sides.
    assert permutes(hops(schedule))[3] == (
        Permute(forwards=True, links=((0, 1),)),
        Permute(forwards=True, links=((2, 1),)),
    )


def test_ticks_may_be_given():
    """A forward that runs later leaves its input more time."""
    schedule = gpipe(2, 2)
    ticks = schedule.ticks()
    later = ticks | {Action(1, Op.F, 1): 4, Action(1, Op.B, 1): 5, Action(0, Op.B, 1): 6}
    landed = {str(hop.maker): hop.landed for hop in hops(schedule, later)}
    assert landed["0F1"] == 3


def test_one_rank_never_meets():
    assert not crossing(by_name("1f1b", 1, 3))
    assert permutes(hops(forward_only(1, 2, placement=(0, 0)))) == {}


def test_tables_that_are_wrong():
    schedule = gpipe(2, 1)
    early = dataclasses.replace(schedule, latency=1)
    with pytest.raises(ScheduleError, match="0B0 runs at tick 3, before 1B0 of tick 2 could be"):
        hops(early)
    without = dataclasses.replace(schedule, rows=((None,), schedule.rows[1]))
    with pytest.raises(ScheduleError, match="1F0 needs 0F0, which is nowhere in the schedule"):
        hops(without)
