"""Tokens per second, without the time that goes into anything but training."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Throughput:
    """A stopwatch that counts tokens.

    >>> clock = iter([0.0, 2.0, 3.0, 4.0]).__next__
    >>> throughput = Throughput(clock)
    >>> with throughput.paused():  # from 2.0 to 3.0
    ...     pass
    >>> throughput.add(30)
    >>> throughput.read()  # 30 tokens in 4 - 1 seconds
    10.0
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """Starts counting; `clock` gives the time in seconds."""
        self._clock = clock
        self._tokens = 0
        self._start = clock()

    def add(self, tokens: int) -> None:
        """Counts tokens that have been trained on."""
        self._tokens += tokens

    def read(self) -> float:
        """Tokens per second since the last reading; starts the next count."""
        now = self._clock()
        rate = self._tokens / max(now - self._start, 1e-9)
        self._tokens, self._start = 0, now
        return rate

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the time spent inside."""
        begin = self._clock()
        yield
        self._start += self._clock() - begin
