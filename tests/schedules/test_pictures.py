"""Pictures: golden files, and what holds for each of them."""

import itertools
import json
import pathlib
import re
import xml.etree.ElementTree as xml
from typing import NamedTuple

import pytest

from jaxpipe.errors import ScheduleError
from jaxpipe.schedules import (
    NAMES,
    Action,
    Costs,
    Lockstep,
    Op,
    Schedule,
    by_name,
    forward_only,
    gpipe,
    one_f_one_b,
    parse,
    pictures,
    simulate,
    vee,
)

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
SVG = "{http://www.w3.org/2000/svg}"

# Down two ranks and back, the backward split: two chunks on each rank, F, I and W.
SPLIT = parse("""
schedule: split
placement: 0 1 1 0
num_microbatches: 2
latency: 0
rank 0: 0F0 0F1 .   3F0 3I0 3F1 3I1 0I0 0W0 0I1 0W1 3W0 3W1
rank 1: .   1F0 2F0 1F1 2F1 2I0 1I0 2I1 1I1 2W0 1W0 2W1 1W1
""")
COSTS = Costs(I=1.25, W=0.75, hop=0.25)
CHARTS = {
    "1f1b_2x3_ticks": [pictures.chart_of_ticks(one_f_one_b(2, 3))],
    "split_2x2_times": [pictures.chart_of_times(SPLIT, COSTS)],
}


class Drawn(NamedTuple):
    """A bar as it stands in an SVG."""

    kind: str  # op and chunk
    title: str
    x: float
    width: float
    number: str


def drawn(picture):
    """The bars of an SVG."""
    for group in xml.fromstring(picture).iter(f"{SVG}g"):
        title = group.findtext(f"{SVG}title", "")
        if (kind := group.get("class", "")).startswith("bar ") and title:  # else a legend's box
            at = next(group.iter(f"{SVG}rect")).attrib
            number = group.findtext(f"{SVG}text", "")
            yield Drawn(kind[4:], title, float(at["x"]), float(at["width"]), number)


@pytest.mark.parametrize("name", CHARTS)
@pytest.mark.parametrize("form", ["svg", "json"])
def test_golden(name, form):
    draw = {"svg": pictures.svg, "json": pictures.trace}[form]
    assert draw(CHARTS[name]) == (GOLDEN / f"{name}.{form}").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_every_action_is_a_bar_with_a_number_and_a_tooltip(name):
    schedule = by_name(name, 8, 32)
    bars = list(drawn(pictures.svg([pictures.chart_of_ticks(schedule)])))
    assert {bar.title.split(":")[0] for bar in bars} == set(map(str, schedule.ticks()))
    assert len(bars) == len(schedule.ticks())
    for bar in bars:
        assert f"microbatch {bar.number}, " in bar.title


@pytest.mark.parametrize("name", NAMES)
def test_bars_do_not_overlap_and_numbers_fit(name):
    costs = Costs(F=1, B=2, I=1.2, W=0.8, hop=0.1)
    chart = pictures.chart_of_times(by_name(name, 8, 32), costs)
    bars = sorted(drawn(pictures.svg([chart])), key=lambda bar: (rank(bar), bar.x))
    for row in (list(row) for _, row in itertools.groupby(bars, key=rank)):
        assert len(row) >= 64
        for bar, following in itertools.pairwise(row):
            assert bar.x + bar.width <= following.x + 0.02
    numbers = [bar for bar in bars if bar.number]
    assert len(numbers) > 0.9 * len(bars)
    assert all(bar.width >= 4.5 * len(bar.number) for bar in numbers)


def rank(bar):
    [number] = re.findall(r"rank (\d+)", bar.title)
    return int(number)


def test_very_many_bars_have_no_numbers_and_a_bounded_width():
    picture = pictures.svg([pictures.chart_of_ticks(gpipe(2, 2000))])
    assert float(xml.fromstring(picture).attrib["width"]) < 4500
    assert not any(bar.number for bar in drawn(picture))


def test_widths_are_times():
    chart = pictures.chart_of_times(gpipe(1, 1), Costs(F=1, B=2.5))
    forward, backward = drawn(pictures.svg([chart]))
    assert backward.x == forward.width
    assert backward.width == pytest.approx(2.5 * forward.width, rel=1e-2)
    assert chart.unit == "time" and backward.title.endswith("; time 1 to 3.5")


def test_lockstep_changes_the_times():
    free, locked = (
        pictures.chart_of_times(one_f_one_b(4, 8), Costs(), lockstep)
        for lockstep in (None, Lockstep("all"))
    )
    assert locked.end == simulate(one_f_one_b(4, 8), Costs(), Lockstep("all")).makespan > free.end
    assert "in lockstep (all)" in locked.note


def test_what_is_held_is_what_the_simulator_says():
    for schedule in (SPLIT, forward_only(2, 3), *(by_name(name, 4, 9) for name in NAMES)):
        for chart in (pictures.chart_of_ticks(schedule), pictures.chart_of_times(schedule)):
            peaks = [
                max((count for _, count in pictures.held_steps(chart.row(rank))), default=0)
                for rank in range(schedule.num_ranks)
            ]
            assert tuple(peaks) == simulate(schedule).held


def test_chunks_are_shades_and_the_legend_has_what_occurs():
    picture = pictures.svg(CHARTS["split_2x2_times"])
    fills = dict(re.findall(r"\.([FBIW]\d) rect\{fill:(#\w+)\}", picture))
    assert set(fills) == {"F0", "F1", "I0", "I1", "W0", "W1"}
    assert len(set(fills.values())) == 6
    kinds = {bar.title.split(":")[0]: bar.kind for bar in drawn(picture)}
    assert (kinds["0F0"], kinds["3F0"], kinds["1I0"], kinds["2I0"]) == ("F0", "F1", "I0", "I1")
    assert "W: weight gradient" in picture and "B: backward" not in picture


def test_charts_share_one_scale():
    short, long = pictures.chart_of_ticks(gpipe(2, 2)), pictures.chart_of_ticks(gpipe(2, 60))
    assert len({bar.width for bar in drawn(pictures.svg([short, long]))}) == 1
    with pytest.raises(ScheduleError, match=r"got charts in \['ticks', 'time'\]; expected"):
        pictures.svg([short, pictures.chart_of_times(gpipe(2, 2))])
    with pytest.raises(ScheduleError, match="expected one or more"):
        pictures.svg([])


def test_a_page_is_whole_and_fetches_nothing():
    page = pictures.html([pictures.chart_of_ticks(SPLIT)])
    assert page.startswith("<!doctype html>") and page.endswith("</html>\n")
    assert pictures.svg([pictures.chart_of_ticks(SPLIT)]) in page
    assert not re.search(r"(src|href)=|@import|url\(", page)


def test_names_are_escaped():
    odd = Schedule("<a & b>", (0,), 1, ((Action(0, Op.F, 0),),))
    page = pictures.html([pictures.chart_of_ticks(odd)])
    assert "&lt;a &amp; b&gt;" in page and "<a & b>" not in page
    xml.fromstring(pictures.svg([pictures.chart_of_ticks(odd)]))


def test_a_trace_has_a_thread_for_each_rank():
    charts = [pictures.chart_of_ticks(SPLIT), pictures.chart_of_ticks(gpipe(2, 2))]
    events = json.loads(pictures.trace(charts))["traceEvents"]
    threads = [e["args"]["name"] for e in events if e["name"] == "thread_name" and e["pid"] == 0]
    assert threads == ["rank 0", "rank 1"]
    slices = {e["name"]: e for e in events if e["ph"] == "X" and e["pid"] == 0}
    assert len(slices) == len(SPLIT.ticks())
    for action, tick in SPLIT.ticks().items():
        event = slices[str(action)]
        assert (event["ts"], event["dur"]) == (1000 * tick, 1000)
        assert event["tid"] == SPLIT.placement[action.stage]
        assert event["args"] == dict(stage=action.stage, microbatch=action.microbatch, op=action.op)
    counts = [e["args"]["held"] for e in events if e["name"] == "held by rank 1" and e["pid"] == 1]
    assert counts == [1, 2, 1, 0]


def test_a_measured_timeline_stands_beside_the_simulated_one():
    schedule = gpipe(2, 1)
    simulated = pictures.chart_of_times(schedule)
    bars = [bar._replace(start=bar.start + 1, end=bar.end + 1) for bar in simulated.bars]
    measured = pictures.Chart("measured: gpipe", "", schedule.placement, 2, tuple(bars), "time")
    lefts = [bar.x for bar in drawn(pictures.svg([simulated, measured]))]
    shift = {round(after - before, 1) for before, after in zip(lefts[:4], lefts[4:], strict=True)}
    assert len(shift) == 1 and shift.pop() > 5


def test_wrong_schedules_can_be_drawn():
    wrong = Schedule("wrong", (0,), 1, ((Action(7, Op.B, 3), None), (None, Action(0, Op.F, 0))))
    picture = pictures.svg([pictures.chart_of_ticks(wrong)])
    assert "does not run: see verify()" in picture
    assert len(list(drawn(picture))) == 2
    empty = Schedule("empty", (0,), 1, ((),))
    assert list(drawn(pictures.svg([pictures.chart_of_ticks(empty)]))) == []


def test_forwards_alone_hold_nothing():
    picture = pictures.svg([pictures.chart_of_ticks(forward_only(2, 2, placement=vee(2)))])
    assert 'class="held"' not in picture
