"""Consecutive elements as blocks: all of them, in order, each once, none too large."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jaxpipe.checkpoint.blocks import boxes


@st.composite
def ranges(draw):
    shape = draw(st.lists(st.integers(1, 6), max_size=4))
    size = math.prod(shape)
    first = draw(st.integers(0, size - 1))
    return shape, first, draw(st.integers(1, size - first)), draw(st.integers(1, 30))


@given(ranges())
def test_blocks_are_the_elements_in_order(case):
    shape, first, size, most = case
    array = np.arange(math.prod(shape)).reshape(shape)
    found = []
    for box in boxes(shape, first, size, most):
        values = array[box.place].reshape(-1)
        assert len(values) == box.size <= most
        assert values[0] == box.first
        found += values.tolist()
    assert found == list(range(first, first + size))


def test_few_blocks_are_enough():
    assert len(list(boxes((1000, 8, 4), 0, 32000, 3200))) == 10
    assert len(list(boxes((1000, 8, 4), 17, 31950, 32000))) <= 7
