"""Makespans and memory of every family: what papers say, and what docs/schedules.md says."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxpipe.schedules import (
    NAMES,
    Costs,
    Op,
    Schedule,
    by_name,
    dualpipe_v,
    gpipe,
    interleaved,
    interleaved_zb,
    looped_bfs,
    one_f_one_b,
    one_f_one_b_v,
    simulate,
    v_half,
    v_min,
    verify,
    zb_h1,
    zb_h2,
    zb_v,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "schedules.md"
EQUAL = Costs(F=1, B=2, I=1, W=1)
all_ranks = pytest.mark.parametrize("num_ranks", range(1, 9))

# Makespan, in forwards of one of v stages on a rank, and the most that a rank holds, at 4 ranks and
# 8 microbatches, and at 8 and 32.
MEASURED: dict[str, tuple[Callable[[int, int], Schedule], tuple, tuple]] = {
    "gpipe": (gpipe, (33, 8), (117, 32)),
    "1f1b": (one_f_one_b, (33, 4), (117, 8)),
    "interleaved, v=2": (interleaved, (57, 11), (213, 23)),
    "interleaved, v=4": (lambda s, m: interleaved(s, m, 4), (105, 19), (405, 39)),
    "looped-bfs": (looped_bfs, (57, 16), (213, 64)),
    "zb-h1": (zb_h1, (27, 4), (103, 8)),
    "zb-h2": (zb_h2, (27, 7), (103, 15)),
    "interleaved-zb, v=1": (lambda s, m: interleaved_zb(s, m, 1), (27, 4), (103, 8)),
    "interleaved-zb, v=2": (interleaved_zb, (51, 8), (199, 16)),
    "interleaved-zb, v=4": (lambda s, m: interleaved_zb(s, m, 4), (99, 16), (391, 32)),
    "zb-v": (zb_v, (51, 8), (199, 16)),
    "v-half": (v_half, (53, 6), (209, 10)),
    "v-min": (v_min, (59, 4), (219, 8)),
    "1f1b-v": (one_f_one_b_v, (66, 6), (229, 12)),
    "dualpipe-v": (dualpipe_v, (51, 9), (199, 17)),
}


@pytest.mark.parametrize("which", MEASURED)
def test_makespan_and_memory(which):
    schedule_of, small, large = MEASURED[which]
    for counts, expected in (((4, 8), small), ((8, 32), large)):
        schedule = schedule_of(*counts)
        verify(schedule)
        timeline = simulate(schedule, EQUAL)
        assert (timeline.makespan, max(timeline.held)) == expected


@all_ranks
@pytest.mark.parametrize("num_chunks", [1, 2, 3])
@pytest.mark.parametrize("schedule_of", [interleaved, looped_bfs])
def test_several_stages_divide_the_bubble(schedule_of, num_chunks, num_ranks):
    for m in range(num_ranks, 2 * num_ranks + 4):
        schedule = schedule_of(num_ranks, m, num_chunks)
        for b in (1, 2):
            makespan = (1 + b) * (num_chunks * m + num_ranks - 1)
            assert simulate(schedule, Costs(F=1, B=b)).makespan == makespan


@all_ranks
@pytest.mark.parametrize("num_chunks", [1, 2, 3])
def test_interleaved_holds_its_warmup(num_chunks, num_ranks):
    for m in range(1, 2 * num_ranks + 4):
        largest = -(-m // max(1, m // num_ranks))
        most = [
            min(num_chunks * m, (num_chunks - 1) * largest + 2 * (num_ranks - rank) - 1)
            for rank in range(num_ranks)
        ]
        held = simulate(interleaved(num_ranks, m, num_chunks)).held
        assert all(got <= expected for got, expected in zip(held, most, strict=True))
        if m >= 2 * num_ranks:
            assert list(held) == most


@pytest.mark.parametrize("num_microbatches", [1, 5, 8, 13])
def test_larger_rounds_hold_more(num_microbatches):
    four, eight = (
        simulate(interleaved(4, num_microbatches, group_size=size), EQUAL) for size in (4, 8)
    )
    assert four.makespan == eight.makespan
    assert (max(four.held) < max(eight.held)) == (num_microbatches >= 8)
    assert interleaved(4, num_microbatches, group_size=4) == interleaved(4, num_microbatches)


@all_ranks
def test_looped_bfs_holds_everything(num_ranks):
    for m in (1, 3, num_ranks, 10):
        assert simulate(looped_bfs(num_ranks, m, 3)).held == (3 * m,) * num_ranks


@all_ranks
@pytest.mark.parametrize("schedule_of, most", [(zb_h1, 1), (zb_h2, 2)])
def test_zero_bubble_on_a_loop(schedule_of, most, num_ranks):
    for m in range(1, 2 * num_ranks + 4):
        timeline = simulate(schedule_of(num_ranks, m), EQUAL)
        assert timeline.makespan == 3 * m + 2 * num_ranks - 1 - min(num_ranks, m)
        assert max(timeline.held) == min(m, most * num_ranks - (most - 1))


@all_ranks
def test_zb_h2_never_waits_once_a_rank_has_begun(num_ranks):
    for m in range(2 * num_ranks - 1, 2 * num_ranks + 4):
        timeline = simulate(zb_h2(num_ranks, m), EQUAL)
        for rank in range(num_ranks):
            mine = [action for action in timeline.starts if action.stage == rank]
            first = min(timeline.starts[action] for action in mine)
            assert max(timeline.ends[action] for action in mine) - first == 3 * m


@all_ranks
@pytest.mark.parametrize("num_chunks", [1, 2, 3])
def test_interleaved_zb(num_chunks, num_ranks):
    for m in range(1, 3 * num_ranks + 1):
        timeline = simulate(interleaved_zb(num_ranks, m, num_chunks), EQUAL)
        assert max(timeline.held) <= num_chunks * num_ranks
        extra = timeline.makespan - (3 * num_chunks * m + num_ranks - 1)
        if m % num_ranks == 0:
            assert extra == 0
        elif m > num_ranks:
            assert 0 <= extra <= (num_chunks - 1) * num_ranks


@all_ranks
def test_zb_v(num_ranks):
    for m in range(1, 2 * num_ranks + 8):
        timeline = simulate(zb_v(num_ranks, m), EQUAL)
        assert max(timeline.held) == min(2 * m, 2 * num_ranks)
        if m >= num_ranks:
            assert timeline.makespan == 6 * m + num_ranks - 1


@all_ranks
def test_v_schedules_hold_less(num_ranks):
    """Half, a third and two thirds of what 1F1B holds, the last one of whole backwards."""
    for m in (1, 2, 5, 3 * num_ranks, 30):
        for schedule_of, most in (
            (v_half, 2 * ((num_ranks + 2) // 2)),
            (v_min, 2 * ((num_ranks + 4) // 3)),
            (one_f_one_b_v, 2 * (2 * num_ranks // 3) + 2),
        ):
            schedule = schedule_of(num_ranks, m)
            assert max(simulate(schedule).held) <= most
            whole = schedule_of is one_f_one_b_v
            assert (Op.B in {action.op for action in schedule.ticks()}) == whole


@pytest.mark.parametrize("num_ranks", range(2, 9))
def test_bubbles_of_v_schedules(num_ranks):
    """Against 1F1B's, in the same unit: at most half for V-Half, about two thirds for V-Min."""
    m = 4 * num_ranks
    bubble = lambda schedule_of: simulate(schedule_of(num_ranks, m), EQUAL).makespan - 6 * m
    of_1f1b = 2 * 3 * (num_ranks - 1)
    assert bubble(v_half) <= of_1f1b / 2
    assert bubble(v_min) <= of_1f1b * 2 / 3 + 3
    assert bubble(one_f_one_b_v) <= of_1f1b + 6


@all_ranks
def test_dualpipe_v(num_ranks):
    for m in range(1, 2 * num_ranks + 5):
        timeline = simulate(dualpipe_v(num_ranks, m), EQUAL)
        assert max(timeline.held) <= 2 * num_ranks + 1
        if m >= 2 * num_ranks:
            assert timeline.makespan == 6 * m + num_ranks - 1


def links_used(schedule: Schedule) -> int:
    """On how many ticks a pair of ranks has something to pass, be it one way or both ways."""
    used = set()
    for action, tick in schedule.ticks().items():
        to = action.stage + (1 if action.op == Op.F else -1)
        if action.op != Op.W and 0 <= to < schedule.num_stages:
            ranks = {schedule.placement[action.stage], schedule.placement[to]}
            if len(ranks) == 2:
                used.add((frozenset(ranks), tick))
    return len(used)


@pytest.mark.parametrize(
    "name, share", [("zb-h1", 0.65), ("interleaved-zb", 0.7), ("zb-v", 0.7), ("v-half", 0.8)]
)
def test_neighbours_send_at_the_same_tick(name, share):
    """A forward one way and a gradient the other way at once: at best half as many meetings."""
    schedule = by_name(name, 4, 32)
    sends = 2 * 32 * sum(a != b for a, b in itertools.pairwise(schedule.placement))
    assert links_used(schedule) <= share * sends


def test_the_table_of_the_document_is_real():
    cells = [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in DOCUMENT.read_text().splitlines()
    ]
    rows = [row for row in cells if len(row) == 8 and row[0] in NAMES]
    assert {row[0] for row in rows} == set(NAMES)
    for name, chunks, *columns in rows:
        for counts, expected in (((4, 8), columns[:3]), ((8, 32), columns[3:])):
            chunked = name in ("interleaved", "looped-bfs", "interleaved-zb")
            schedule = by_name(name, *counts, num_chunks=int(chunks) if chunked else None)
            timeline = simulate(schedule, EQUAL)
            assert schedule.num_chunks == int(chunks)
            assert expected == [
                f"{timeline.makespan / int(chunks):g}",
                f"{timeline.bubble_fraction:.1%}",
                f"{max(timeline.held) / int(chunks):g}",
            ]
