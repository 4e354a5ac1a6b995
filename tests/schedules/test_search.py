"""The search: never slower than a family, faster than all where stages or ops are uneven."""

import dataclasses
import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpipe.errors import ScheduleError
from jaxpipe.schedules import (
    NAMES,
    Action,
    Costs,
    Found,
    Kept,
    Lockstep,
    Op,
    Schedule,
    by_name,
    loop,
    parse,
    place,
    search,
    simulate,
    vee,
    verify,
)
from jaxpipe.schedules.search.bound import lower_bound
from jaxpipe.schedules.search.greedy import Policy, greedy, policies
from jaxpipe.schedules.search.improve import improve
from jaxpipe.schedules.search.task import Task, Watch

UNEVEN = Costs(F=1, B=2, I=1.2, W=0.8)


def scaled(weights, costs: Costs = UNEVEN, **changes) -> Costs:
    """Costs of stages that are not all as heavy as each other."""
    each = {op: [getattr(costs, op) * weight for weight in weights] for op in Op}
    return dataclasses.replace(costs, **each, **changes)


HALVES = scaled([0.5] * 8)
HEAVY_HEAD = scaled([0.5] * 7 + [0.8])
UNEQUAL = scaled([0.8, 1, 1.3, 1.1])


def families(placement: tuple[int, ...], num_microbatches: int, limit: float) -> list[Schedule]:
    """Every named schedule on this placement that keeps at most so many microbatches."""
    num_ranks, found = 1 + max(placement), []
    for name in NAMES:
        try:
            chunks = len(placement) // num_ranks
            schedule = by_name(name, num_ranks, num_microbatches, num_chunks=chunks)
        except ScheduleError:
            continue
        if schedule.placement == placement and max(Kept().peaks(schedule)) <= limit:
            found.append(schedule)
    return found


@pytest.mark.parametrize(
    "costs",
    [
        Costs(),
        UNEVEN,
        UNEQUAL,
        scaled([1, 1, 1, 2]),
        Costs(F=1, B=3, I=2, W=1, hop=0.2),
        Costs(F=1, B=1.6, I=1, W=0.9),  # the split costs something
        Costs(F=1, B=1.2, I=1.5, W=1.5, hop=0.5),  # and here too much
        Costs(I=[0, 1, 1, 1], optimizer=[1, 0, 0, 2]),
    ],
)
@pytest.mark.parametrize("limit", [4, 7])
def test_never_slower_than_a_family_at_the_same_memory(costs, limit):
    found = search(loop(4), 6, costs, memory_limit=limit, steps=20)
    check(found, costs)
    known = families(loop(4), 6, limit)
    assert len(known) >= 3
    for family in known:
        assert found.makespan <= simulate(family, costs).makespan * (1 + 1e-9)
        assert found.lower_bound <= simulate(family, costs).makespan * (1 + 1e-9)


def check(found: Found, costs: Costs) -> None:
    verify(found.schedule)
    assert found.makespan == simulate(found.schedule, costs).makespan
    assert found.memory == Kept().peaks(found.schedule)
    assert found.lower_bound <= found.makespan * (1 + 1e-9)


@pytest.mark.parametrize(
    "placement, limit", [(loop(2, 3), 6), (loop(3, 2), 8), (vee(3), 5), (vee(2), 9)]
)
def test_never_slower_with_several_stages_on_a_rank(placement, limit):
    for costs in (UNEVEN, scaled([0.5, 0.6, 0.5, 0.4, 0.5, 0.9][: len(placement)], hop=0.1)):
        found = search(placement, 5, costs, memory_limit=limit, steps=20)
        check(found, costs)
        assert max(found.memory) <= limit
        for family in families(placement, 5, limit):
            assert found.makespan <= simulate(family, costs).makespan * (1 + 1e-9)


@pytest.mark.parametrize(
    "placement, costs, limit",
    [
        (loop(4), UNEVEN, 5),  # more memory than ZB-H1 takes, less than ZB-H2
        (loop(4, 2), HALVES, 10),
        (vee(4), HALVES, 6),
        (vee(4), HALVES, 10),
        (loop(4), UNEQUAL, 4),
        (loop(4, 2), scaled([0.5] * 6 + [0.8] * 2), 8),
        (vee(4), HEAVY_HEAD, 8),
        (vee(4), scaled([0.5] * 7 + [1.0]), 8),
    ],
)
def test_faster_than_every_family_at_the_same_memory(placement, costs, limit):
    found = search(placement, 8, costs, memory_limit=limit, steps=200)
    best = min(simulate(one, costs).makespan for one in families(placement, 8, limit))
    assert found.origin == "search"
    assert max(found.memory) <= limit
    assert found.makespan < 0.99 * best


def test_zb_h1_is_as_fast_as_can_be_in_its_memory():
    """With one stage on a rank and no memory to spare, the bound says that nothing is faster."""
    for num_ranks in (2, 3, 4):
        found = search(num_ranks, 8, UNEVEN, memory_limit=num_ranks, steps=0)
        zb_h1 = simulate(by_name("zb-h1", num_ranks, 8), UNEVEN).makespan
        assert found.lower_bound == pytest.approx(zb_h1) == pytest.approx(found.makespan)


@pytest.mark.parametrize("barrier", ["links", "all"])
def test_for_a_loop_it_seeks_tables_that_wait_little(barrier):
    costs, lockstep = dataclasses.replace(UNEVEN, hop=0.1), Lockstep(barrier)
    found = search(loop(4), 8, costs, memory_limit=5, lockstep=lockstep, steps=50)
    verify(found.schedule)
    assert found.makespan == simulate(found.schedule, costs, lockstep).makespan
    known = [simulate(one, costs, lockstep).makespan for one in families(loop(4), 8, 5)]
    assert found.makespan < 0.98 * min(known)


def test_a_number_of_ranks_tries_every_placement():
    one = search(2, 4, UNEVEN, memory_limit=3, steps=0)
    two = search(2, 4, UNEVEN, memory_limit=3, num_chunks=2, steps=0)
    assert one.schedule.placement == loop(2)
    # Half as long stages fill and drain in half the time.
    assert two.makespan < one.makespan
    halves = scaled([0.5] * 4)
    alone = [
        search(placement, 4, halves, kept=Kept(0.5, 0.5), memory_limit=3, steps=0)
        for placement in (loop(2, 2), vee(2))
    ]
    each = [one, *alone]
    assert two.makespan == pytest.approx(min(found.makespan for found in each))
    assert two.lower_bound == pytest.approx(min(found.lower_bound for found in each))


def test_costs_of_parts_become_costs_of_stages():
    parts = scaled([0.5, 0.5, 0.5, 1.1])
    whole = search(loop(2), 4, scaled([1, 1.6]), steps=0)
    assert search(2, 4, parts, steps=0).makespan == pytest.approx(whole.makespan)


def test_without_the_split_no_backward_is_split():
    found = search(loop(3), 5, UNEVEN, split=False)
    assert {action.op for action in found.schedule.ticks()} == {Op.F, Op.B}
    assert found.makespan == pytest.approx(3 * (5 + 3 - 1))  # no faster than 1F1B


def test_a_split_that_costs_too_much_is_not_made():
    found = search(loop(3), 5, Costs(F=1, B=2, I=2, W=2))
    assert {action.op for action in found.schedule.ticks()} == {Op.F, Op.B}


def test_unequal_memory():
    """Each rank has its limit, each stage its size; I keeps less than F."""
    kept = Kept(F=[3, 2, 1], I=[1, 1, 0.5])
    limits = [7, 5, 2]
    found = search(loop(3), 6, UNEVEN, kept=kept, memory_limit=limits)
    verify(found.schedule)
    assert found.memory == kept.peaks(found.schedule)
    assert all(peak <= limit for peak, limit in zip(found.memory, limits, strict=True))


def test_i_that_keeps_more_than_f():
    """Where I does not fit beside what is held, backward is not split."""
    kept = Kept(F=1, I=3)
    found = search(loop(2), 4, UNEVEN, kept=kept, memory_limit=2)
    verify(found.schedule)
    assert max(found.memory) <= 2


def test_kept_by_hand():
    schedule = parse("""
schedule: by hand
placement: 0
num_microbatches: 2
latency: 0
rank 0: 0F0 0F1 0I0 0I1 0W0 0W1
""")
    assert Kept(F=4, I=1).peaks(schedule) == (8,)
    assert Kept(F=1, I=4).peaks(schedule) == (8,)
    assert Kept(F=3, I=2).least(vee(2)) == (6, 6)


def test_the_least_memory_is_enough():
    for placement in (loop(3), loop(2, 2), vee(3)):
        chunks = len(placement) // (1 + max(placement))
        found = search(placement, 3, UNEVEN, memory_limit=chunks, steps=0)
        verify(found.schedule)
        assert max(found.memory) == chunks


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            dict(placement=vee(2), memory_limit=[2, 1]),
            r"rank 1 may keep 1, but one microbatch in all of its stages takes 2\. Allow at least",
        ),
        (dict(placement=2, memory_limit=[1]), "expected one number of 0 or more, or one for each"),
        (dict(placement=2, memory_limit=-1), "got memory_limit=-1"),
        (dict(placement=2, num_chunks=0), "got num_chunks=0"),
        (dict(placement=0), "num_ranks=0"),
        (dict(placement=(0, 2)), "rank 1 owns no stage"),
        (dict(placement=2, num_microbatches=0), "num_microbatches=0"),
        (dict(placement=2, kept=Kept(F=-1)), r"kept\.F is -1; expected 0 or more"),
        (dict(placement=2, costs=Costs(F=[1, 1, 1])), r"costs\.F has 3 costs; .* or divisor"),
        (dict(placement=loop(2), costs=Costs(F=[1] * 4)), r"costs\.F has 4 costs; expected one"),
        (dict(placement=2, costs=Costs(hop=-1)), r"costs\.hop is -1"),
    ],
)
def test_searches_that_are_refused(arguments, message):
    with pytest.raises(ScheduleError, match=message):
        search(**(dict(num_microbatches=2) | arguments))


# --- Parts ----------------------------------------------------------------------------------------


@st.composite
def tasks(draw) -> Task:
    placement = draw(st.sampled_from([loop(1), loop(2), loop(3), loop(2, 2), vee(2), vee(3)]))
    stages = len(placement)
    number = st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, 3.0])
    each = st.lists(number, min_size=stages, max_size=stages)
    costs = Costs(F=draw(each), B=draw(each), I=draw(each), W=draw(each), hop=draw(number))
    kept = Kept(F=draw(each), I=draw(each))
    more = draw(st.lists(number, min_size=3, max_size=3))
    limits = tuple(a + b for a, b in zip(kept.least(placement), more, strict=False))
    return Task(placement, draw(st.integers(1, 4)), costs, kept, limits)


@settings(deadline=None, max_examples=40)
@given(tasks())
def test_every_policy_makes_a_right_order_within_memory_and_above_the_bound(task):
    bound = lower_bound(
        task.placement, task.num_microbatches, task.costs, kept=task.kept, limits=task.limits
    )
    for policy in policies(task, split=True):
        order = greedy(task, policy)
        schedule = place(order, task.placement, task.num_microbatches, name="greedy")
        verify(schedule)
        peaks = task.kept.peaks(schedule)
        assert all(a <= b * (1 + 1e-9) for a, b in zip(peaks, task.limits, strict=True))
        assert simulate(schedule, task.costs).makespan >= bound * (1 - 1e-9)


@settings(deadline=None, max_examples=40)
@given(tasks())
def test_local_search_makes_nothing_worse(task):
    watch, order = Watch(task), greedy(task, Policy(ops="fbw"))
    better = improve(watch, order, steps=60, goal=0)
    schedules = [
        place(each, task.placement, task.num_microbatches, name="any") for each in (order, better)
    ]
    before, after = (simulate(schedule, task.costs).makespan for schedule in schedules)
    assert after <= before * (1 + 1e-9)
    verify(schedules[1])
    peaks = task.kept.peaks(schedules[1])
    assert all(a <= b * (1 + 1e-9) for a, b in zip(peaks, task.limits, strict=True))
    ends = watch.ends(better)
    assert ends is not None
    assert watch.score(better, ends)[0] == pytest.approx(after)


def all_orders(rows: list[list[Action]]) -> Iterator[list[list[Action]]]:
    """Every order in which each rank runs F before B, or before I before W, of each microbatch."""
    sequence = {op: number for number, op in enumerate((Op.F, Op.B, Op.I, Op.W))}
    sound = lambda row: all(
        a.microbatch != b.microbatch or sequence[a.op] < sequence[b.op]
        for a, b in itertools.combinations(row, 2)
    )
    each = [[list(row) for row in itertools.permutations(row) if sound(row)] for row in rows]
    yield from map(list, itertools.product(*each))


@pytest.mark.parametrize("costs", [Costs(), UNEVEN, Costs(F=2, I=1, W=0.5, B=3, hop=0.5)])
@pytest.mark.parametrize("limit", [1, 2])
def test_nothing_is_faster_on_small_tables(costs, limit):
    """Two ranks, two microbatches: every order there is, with and without the split."""
    best = float("inf")
    for ops in ((Op.F, Op.B), (Op.F, Op.I, Op.W)):
        rows = [[Action(s, op, m) for m in range(2) for op in ops] for s in range(2)]
        watch = Watch(Task(loop(2), 2, costs, Kept(), (limit, limit)))
        for order in all_orders(rows):
            if all(watch.fits(rank, row) for rank, row in enumerate(order)):
                ends = watch.ends(order)
                if ends is not None:
                    best = min(best, watch.score(order, ends)[0])
    found = search(loop(2), 2, costs, memory_limit=limit)
    assert found.makespan <= best * (1 + 1e-9)
    assert found.lower_bound <= best * (1 + 1e-9)


def test_the_same_arguments_give_the_same_table():
    found = [search(vee(2), 4, scaled([0.5, 0.7, 0.4, 0.6]), steps=100) for _ in range(2)]
    assert found[0] == found[1]


def test_found_in_a_line():
    assert str(search(2, 2, Costs(), steps=0)) == (
        "zb-h1: makespan 7, at least 7; kept by rank: 2 2"
    )
