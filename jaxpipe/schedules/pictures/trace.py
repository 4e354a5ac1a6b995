"""Charts as a trace, in Chrome's JSON format, which https://ui.perfetto.dev opens."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from jaxpipe.schedules.pictures.bars import held_steps
from jaxpipe.schedules.pictures.chart import Chart
from jaxpipe.schedules.pictures.svg import OPS


def trace(charts: Sequence[Chart]) -> str:
    """A process for each chart, a thread for each rank, a slice for each action.

    Times are in microseconds; a tick is a thousand of them. What ranks hold are counters.
    """
    events = [event for number, chart in enumerate(charts) for event in _events(chart, number)]
    lines = ",\n".join(json.dumps(event) for event in events)
    return f'{{"displayTimeUnit": "ms", "traceEvents": [\n{lines}\n]}}\n'


def _events(chart: Chart, pid: int) -> Iterator[dict[str, Any]]:
    """The names first, as readers want them, then what happens."""
    yield _name("process_name", pid, name=f"{chart.title}; {chart.note}")
    yield _name("process_sort_index", pid, sort_index=pid)
    for rank in range(chart.num_ranks):
        yield _name("thread_name", pid, rank, name=f"rank {rank}")
        yield _name("thread_sort_index", pid, rank, sort_index=rank)
    for rank in range(chart.num_ranks):
        for bar in chart.row(rank):
            stage, op, microbatch = bar.action
            yield {
                "name": str(bar.action),
                "cat": OPS[op],
                "ph": "X",
                "ts": round(bar.start * chart.microseconds, 3),
                "dur": round((bar.end - bar.start) * chart.microseconds, 3),
                "pid": pid,
                "tid": rank,
                "args": {"stage": stage, "microbatch": microbatch, "op": str(op)},
            }
        for at, count in held_steps(chart.row(rank)):
            time = round(at * chart.microseconds, 3)
            counter = {"name": f"held by rank {rank}", "ph": "C", "ts": time, "pid": pid}
            yield counter | {"args": {"held": count}}


def _name(kind: str, pid: int, tid: int = 0, **args: str | int) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": args}
