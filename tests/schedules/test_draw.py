"""Drawings, kept in tests/golden and compared letter by letter."""

import dataclasses
import pathlib

import pytest

from jaxpipe.schedules import (
    Action,
    Costs,
    Lockstep,
    Op,
    by_name,
    draw,
    forward_only,
    gpipe,
    one_f_one_b,
    parse,
    simulate,
    vee,
)

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "1f1b-eager", "forward"])
def test_golden(name):
    schedule = forward_only(4, 8) if name == "forward" else by_name(name, 4, 8)
    assert f"{schedule}\n" == (GOLDEN / f"{name}_4x8.txt").read_text(encoding="utf-8")


def test_stages_are_named_where_a_rank_has_several():
    assert str(forward_only(2, 1, placement=vee(2))).splitlines()[1:] == [
        "rank 0 | 0F0 .   .   3F0 |",
        "rank 1 | .   1F0 2F0 .   |",
    ]


def test_stages_are_named_where_they_are_not_the_ranks():
    assert str(forward_only(2, 1, placement=(1, 0))).splitlines()[1:] == [
        "rank 0 | .   1F0 |",
        "rank 1 | 0F0 .   |",
    ]


def test_the_costs_of_the_ops_that_occur():
    split = parse("""
schedule: split
placement: 0
num_microbatches: 1
latency: 0
rank 0: 0F0 0I0 0W0
""")
    assert str(split).splitlines() == [
        "split: 1 rank, 1 stage, 1 microbatch, 3 ticks; bubble 0.0% at costs F=1 I=1 W=1",
        "rank 0 | F0 I0 W0 | held 1",
    ]


def test_other_costs_and_a_loop():
    costs = Costs(F=[1, 2], B=3, hop=0.5)
    timeline = simulate(gpipe(2, 3), costs)
    header, *rows = draw.text(gpipe(2, 3), costs=costs).splitlines()
    expected = f"8 ticks; bubble {timeline.bubble_fraction:.1%} at costs F=1:2 B=3 hop=0.5"
    assert header == f"gpipe: 2 ranks, 2 stages, 3 microbatches, {expected}"
    assert rows == str(gpipe(2, 3)).splitlines()[1:]
    locked = draw.text(gpipe(2, 3), costs=costs, lockstep=Lockstep("all")).splitlines()[0]
    assert locked.endswith("F=1:2 B=3 hop=0.5 in lockstep (all)")


def test_columns_stay_in_line():
    lines = str(one_f_one_b(11, 12)).splitlines()[1:]
    assert len({line.index("|") for line in lines}) == 1
    assert len({line.rindex("|") for line in lines}) == 1
    assert lines[0].startswith("rank  0 | F0  F1  ")
    assert lines[10].startswith("rank 10 | .   .   ")


def test_a_mark_shows_the_ticks_around_it():
    lines = draw.text(gpipe(2, 100), mark=(1, 12)).splitlines()
    assert lines[0].endswith("202 ticks; here ticks 4 to 20")
    assert ">1F11<1F12" in lines[2] and lines[2].endswith("| <-- here")
    assert lines[1].startswith("rank 0 | 0F4  0F5 ")
    assert max(map(len, lines[1:])) < 110


@pytest.mark.parametrize(
    "mark, cell", [((0, 0), "|>0F0<0F1"), ((0, 5), "0B0>0B1<|"), ((1, 5), "1B1>.<")]
)
def test_a_mark_at_the_edges(mark, cell):
    line = draw.text(gpipe(2, 2), mark=mark).splitlines()[1 + mark[0]]
    assert cell in line and line.endswith("| <-- here")


def test_wrong_schedules_can_be_drawn():
    schedule = gpipe(2, 1)
    stuck = dataclasses.replace(schedule, rows=(schedule.rows[0], (None,)))
    assert str(stuck).splitlines() == [
        "gpipe: 2 ranks, 2 stages, 1 microbatch, 4 ticks; does not run: see verify()",
        "rank 0 | F0 .  .  B0 |",
        "rank 1 | .           |",
    ]
    strange = dataclasses.replace(schedule, rows=((Action(7, Op.F, 0),), (Action(1, Op.F, 0),)))
    assert "rank 0 | 7F0 |" in str(strange)
    empty = dataclasses.replace(schedule, rows=())
    assert "0 ranks" in str(empty)
