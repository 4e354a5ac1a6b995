"""Actions, the rule of needs, and the text form."""

import ast
import dataclasses
import pathlib
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpipe import schedules
from jaxpipe.errors import ScheduleError
from jaxpipe.schedules import Action, Op, Schedule, dump, needs, parse, parse_action

ZB = """
# Two ranks with the backward split: ZB-H1.
schedule: by hand
placement: 0 1
num_microbatches: 2
latency: 0

rank 0: 0F0 0F1 .   0I0 0W0 0I1 0W1
rank 1: .   1F0 1I0 1F1 1I1 1W0 1W1
"""

actions = st.builds(Action, st.integers(0, 99), st.sampled_from(Op), st.integers(0, 999))


@given(actions)
def test_action_round_trip(action):
    assert parse_action(str(action)) == action


def test_action_text():
    assert str(Action(2, Op.F, 0)) == "2F0"
    assert parse_action("12W345") == Action(12, Op.W, 345)


@pytest.mark.parametrize(
    "text", ["", "F0", "2F", "2X0", "2f0", " 2F0", "2F0 ", "-1F0", "2FB0", "²F0"]
)
def test_text_that_is_no_action(text):
    with pytest.raises(ScheduleError, match="is not an action; expected"):
        parse_action(text)


@pytest.mark.parametrize(
    "action, expected",
    [
        ("0F3", ""),
        ("2F3", "1F3"),
        ("2B3", "2F3, 3B3|3I3"),
        ("2I3", "2F3, 3B3|3I3"),
        ("3B3", "3F3"),
        ("3I3", "3F3"),
        ("2W3", "2I3"),
        ("3W3", "3I3"),
    ],
)
def test_needs(action, expected):
    groups = needs(parse_action(action), num_stages=4)
    assert ", ".join("|".join(map(str, group)) for group in groups) == expected


@pytest.mark.parametrize("stage", [-1, 4])
def test_needs_of_a_stage_that_does_not_exist(stage):
    with pytest.raises(ScheduleError, match=f"there is no stage {stage}; expected stages 0 to 3"):
        needs(Action(stage, Op.F, 0), num_stages=4)


def test_properties_of_a_table():
    schedule = parse(ZB)
    assert (schedule.num_ranks, schedule.num_stages, schedule.num_ticks) == (2, 2, 7)
    assert schedule.num_chunks == 1
    assert schedule.ticks()[Action(1, Op.I, 0)] == 2
    assert len(schedule.ticks()) == 12
    assert schedules.forward_only(2, 2, placement=schedules.vee(2)).num_chunks == 2


def test_parse_reads_what_stands_there():
    schedule = parse(ZB)
    assert schedule.name == "by hand"
    assert schedule.placement == (0, 1)
    assert schedule.num_microbatches == 2
    assert schedule.rows[1][:3] == (None, Action(1, Op.F, 0), Action(1, Op.I, 0))
    schedules.verify(schedule)


@pytest.mark.parametrize("num_microbatches", [1, 3, 11])
@pytest.mark.parametrize("name", schedules.NAMES)
def test_round_trip_of_schedules(name, num_microbatches):
    schedule = schedules.by_name(name, 3, num_microbatches)
    assert parse(dump(schedule)) == schedule


@given(
    st.text("ab1-", min_size=1),
    st.lists(st.integers(0, 20), max_size=5),
    st.integers(0, 50),
    st.lists(st.lists(st.none() | actions, max_size=5), max_size=4),
    st.integers(0, 3),
)
def test_round_trip_of_any_table(name, placement, num_microbatches, rows, latency):
    rows = tuple(map(tuple, rows))
    schedule = Schedule(name, tuple(placement), num_microbatches, rows, latency)
    assert parse(dump(schedule)) == schedule


@pytest.mark.parametrize("name", ["", " a", "a\nb", "a  b"])
def test_a_name_that_cannot_be_written(name):
    with pytest.raises(ScheduleError, match="cannot be written as text"):
        dump(dataclasses.replace(parse(ZB), name=name))


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("0I0", "0X0", "line 8, tick 3: '0X0' is not an action"),
        ("1F1", "1F", "line 9, tick 3: '1F' is not an action"),
        ("rank 1", "rank 2", "line 9: got rank 2; expected rank 1"),
        ("latency: 0", "latency 0", "line 6: 'latency 0'; expected `key: value`"),
        ("latency: 0", "latency: 1 2", "line 6: got '1 2'; expected one integer"),
        ("latency: 0", "latency: fast", "line 6: got 'fast'; expected integers"),
        ("latency:", "latncy:", "line 6: unknown key 'latncy'; did you mean 'latency'"),
        ("latency:", "placement:", "line 6: 'placement' stands on line 4 already"),
        ("placement: 0 1\n", "", "there is no line `placement: ...`"),
    ],
)
def test_parse_says_where(old, new, message):
    assert ZB.count(old) == 1
    with pytest.raises(ScheduleError) as error:
        parse(ZB.replace(old, new))
    assert message in str(error.value)


def test_schedules_import_no_jax():
    allowed = {*sys.stdlib_module_names, "numpy"}
    files = list(pathlib.Path(schedules.draw.__file__).parent.glob("*.py"))
    assert len(files) > 8
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, file
                modules = [node.module or ""]
            for module in modules:
                inside = module == "jaxpipe.errors" or module.startswith("jaxpipe.schedules")
                assert inside or module.split(".")[0] in allowed, (file.name, module)
