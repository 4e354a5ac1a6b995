"""Sections: who listens hears of each, in order, whatever ends it."""

import time

import pytest

from jaxpipe.sections import Section, Sections


def test_listeners_hear_of_every_change_and_what_is_current_can_be_asked():
    heard: list[Section | None] = []
    late: list[Section | None] = []
    sections = Sections(heard.append)
    before = time.monotonic()
    with pytest.raises(ZeroDivisionError), sections.enter("start"):
        with sections.enter("restore"):
            assert sections.current is heard[-1]
        sections.listen(late.append)
        with sections.enter("step", step=17):
            raise ZeroDivisionError
    assert [section and section[:2] for section in heard] == [
        ("start", None), ("restore", None), ("start", None), ("step", 17), ("start", None), None,
    ]  # fmt: skip
    assert late == heard[3:] and sections.current is None
    assert heard[0] is heard[2] is heard[4]  # the same one, with the time it was entered at
    began = [section.began for section in heard[:2] if section]
    assert before <= began[0] <= began[1] <= time.monotonic()
