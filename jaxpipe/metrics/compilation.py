"""How long JAX traced, lowered and compiled, from the events that it reports."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.monitoring

_STAGES = {
    "/jax/core/compile/jaxpr_trace_duration": "tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lowering",
    "/jax/core/compile/backend_compile_duration": "compiling",
}
_HIT, _MISS = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"


class Compilation(NamedTuple):
    """What it took to make programs ready.

    Attributes:
      tracing: seconds from Python to a jaxpr.
      lowering: seconds from there to what XLA reads.
      compiling: seconds in XLA, or to read what the cache has.
      hits: programs that JAX's compilation cache had.
      misses: those that it had not.
    """

    tracing: float
    lowering: float
    compiling: float
    hits: int
    misses: int

    @classmethod
    def none(cls) -> "Compilation":
        """Of nothing."""
        return cls(0.0, 0.0, 0.0, 0, 0)

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.tracing + self.lowering + self.compiling

    def since(self, before: "Compilation") -> "Compilation":
        """What came after `before`."""
        return Compilation(
            self.tracing - before.tracing,
            self.lowering - before.lowering,
            self.compiling - before.compiling,
            self.hits - before.hits,
            self.misses - before.misses,
        )

    def __str__(self) -> str:
        times = f"traced {self.tracing:.1f} s, lowered {self.lowering:.1f} s"
        compiled = f"{times}, compiled {self.compiling:.1f} s"
        if not self.hits + self.misses:
            return f"{compiled} (without a compilation cache)"
        return f"{compiled} ({self.hits} of {self.hits + self.misses} from the compilation cache)"


class CompilationTimes:
    """What has been compiled by this thread within `watched_compilation`, so far."""

    def __init__(self) -> None:
        self._spans: dict[str, list[tuple[float, float]]] = {name: [] for name in _STAGES.values()}
        self._counts = {_HIT: 0, _MISS: 0}
        self._thread = threading.get_ident()

    def read(self) -> Compilation:
        """The times up to now; a trace within a trace counts once."""
        seconds = {name: _union(spans) for name, spans in self._spans.items()}
        return Compilation(**seconds, hits=self._counts[_HIT], misses=self._counts[_MISS])

    def _took(self, event: str, duration_secs: float, **_: Any) -> None:
        if event in _STAGES and threading.get_ident() == self._thread:
            now = time.monotonic()
            self._spans[_STAGES[event]].append((now - duration_secs, now))

    def _happened(self, event: str, **_: Any) -> None:
        if event in self._counts and threading.get_ident() == self._thread:
            self._counts[event] += 1


@contextlib.contextmanager
def watched_compilation() -> Iterator[CompilationTimes]:
    """Within, listens to what JAX says of its compilations (`jax.monitoring`)."""
    times = CompilationTimes()
    jax.monitoring.register_event_duration_secs_listener(times._took)
    jax.monitoring.register_event_listener(times._happened)
    try:
        yield times
    finally:
        jax.monitoring.unregister_event_duration_listener(times._took)
        jax.monitoring.unregister_event_listener(times._happened)


def _union(spans: list[tuple[float, float]]) -> float:
    """The length of what the spans cover together.

    >>> _union([(0.0, 2.0), (1.0, 3.0), (5.0, 6.0)])
    4.0
    """
    total, end = 0.0, float("-inf")
    for begin, stop in sorted(spans):
        total += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    return total
