"""Slots: no two living values share one, and none is wasted."""

from hypothesis import given
from hypothesis import strategies as st

from jaxpipe.executor.slots import Life, assign_slots

spans = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10)), max_size=40)


def lives_of(spans: list[tuple[int, int]]) -> list[Life]:
    return [Life(start, start + length, i) for i, (start, length) in enumerate(spans)]


@given(spans)
def test_values_that_live_at_once_have_slots_of_their_own(spans: list[tuple[int, int]]):
    lives = lives_of(spans)
    slot, depth = assign_slots(lives)
    assert slot.keys() == {life.what for life in lives}
    assert set(slot.values()) == set(range(depth))
    for a in lives:
        for b in lives:
            if a.what != b.what and a.start <= b.end and b.start <= a.end:
                assert slot[a.what] != slot[b.what]


@given(spans)
def test_there_are_as_many_slots_as_values_at_the_busiest_moment(spans: list[tuple[int, int]]):
    lives = lives_of(spans)
    moments = {life.start for life in lives}
    busiest = max((sum(x.start <= t <= x.end for x in lives) for t in moments), default=0)
    assert assign_slots(lives)[1] == busiest


def test_a_slot_is_free_the_moment_after_its_last_reading():
    slot, depth = assign_slots([Life(0, 3, "a"), Life(3, 4, "b"), Life(4, 5, "c")])
    assert slot["a"] != slot["b"] and slot["c"] == slot["a"] and depth == 2
