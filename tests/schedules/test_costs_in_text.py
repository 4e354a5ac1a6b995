"""Costs as text, in both directions."""

import pytest

from jaxpipe.errors import ScheduleError
from jaxpipe.schedules import Costs, Op, parse_costs
from jaxpipe.schedules.cost_text import describe_costs


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", Costs()),
        ("F=1, B=3  hop=.5", Costs(B=3, hop=0.5)),
        ("F=1:1:2", Costs(F=(1, 1, 2))),
        ("optimizer=1:2 tick=0.25", Costs(optimizer=(1, 2), tick=0.25)),
        # A full backward is both halves, unless it is given.
        ("I=1.5,W=1", Costs(B=2.5, I=1.5)),
        ("I=1.5,B=2", Costs(B=2, I=1.5)),
        ("I=1:2,W=0.5", Costs(B=(1.5, 2.5), I=(1, 2), W=0.5)),
        ("W=1:2", Costs(B=(2, 3), W=(1, 2))),
    ],
)
def test_parse_costs(text, expected):
    assert parse_costs(text) == expected


@pytest.mark.parametrize(
    "text, message",
    [
        ("f=1", "got 'f=1', but there is no cost 'f'; known:"),
        ("hopp=1", "did you mean 'hop'?"),
        ("F=1,F=2", "F stands twice"),
        ("F", "got 'F'; expected a number"),
        ("F=", "got 'F='; expected a number"),
        ("F=1:x", "got 'F=1:x'; expected a number"),
        ("hop=1:2", "got 'hop=1:2'; expected a number, as in hop=0.5."),
        ("I=1:2,W=1:2:3", "I has 2 stages and W has 3"),
    ],
)
def test_costs_that_cannot_be_read(text, message):
    with pytest.raises(ScheduleError) as error:
        parse_costs(text)
    assert message in str(error.value)


def test_what_is_described_can_be_read():
    costs = Costs(F=(1, 2), B=3, hop=0.5, tick=0.125)
    assert parse_costs(describe_costs(costs)) == costs
    assert describe_costs(Costs(), [Op.F, Op.W]) == "F=1 W=1"
