"""When each rank's actions really began and ended, read from a profile of one step.

Each branch of a program is a loop of its own in the compiled step, named after the branch, and is
entered once a tick on every rank, if only to find that it has nothing to do. So its n-th event in
the profile of a device is tick n of the device's rank. What the loop runs may go on after its own
event has ended: an action ends with the last operation of its branch before the next tick's.
"""

import bisect
import re
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.profiler import ProfileData
from jax.sharding import Mesh

from jaxpipe.errors import JaxpipeError
from jaxpipe.executor.program import FUSED, IDLE, Program
from jaxpipe.executor.run import BRANCH_SCOPE
from jaxpipe.mesh import first_pipeline
from jaxpipe.schedules import Action, Op, Schedule, Timeline

Span = tuple[float, float]  # from, to, in seconds
# The path of an operation: through which branch, and whether it is the branch's loop itself. XLA
# puts a loop that has little to do into a function of its own: then the call is what is seen.
_PATH = re.compile(
    r"%?([\w.\-]+) = .* ([\w\-]+)\(.*op_name=\"[^\"]*/"
    + BRANCH_SCOPE.format(r"(\d+)")
    + r"/while(/[^\"]*)?\""
)


class Operation(NamedTuple):
    """An operation of the compiled program that belongs to a branch."""

    branch: int
    is_loop: bool


def operations_of(text: str) -> dict[str, Operation]:
    """The operations of branches in an optimised program, `compiled.as_text()`, by their names."""
    lines = (line for line in text.splitlines() if BRANCH_SCOPE.format("") in line)
    return {
        found[1]: Operation(int(found[3]), not found[4] and found[2] in ("while", "call"))
        for found in map(_PATH.search, lines)
        if found
    }


def measure(
    run: Callable[[], Any],
    operations: Mapping[str, Operation],
    program: Program,
    schedule: Schedule,
    mesh: Mesh,
) -> tuple[Any, Timeline]:
    """Runs a step under the profiler: what it gave, and its timeline in seconds.

    On meshes with a `data` axis it is the first pipeline's. Where F and B of the last stage run as
    one action, all of its time is B's. Of several processes, which call it together, each sees its
    own ranks, by its own clock; `schedules.clocks.joined` makes one timeline of theirs.

    Args:
      run: runs the compiled step once.
      operations: of its branches.
      program: what the step runs.
      schedule: what the program was lowered from.
      mesh: where it runs.

    Raises:
      JaxpipeError: the profile does not show the branches, as on platforms whose profiler does not
        record single operations.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            result = jax.block_until_ready(run())
        events = _events(folder, operations)
    spans = _by_tick(events, operations, program.num_ticks, _ranks(mesh))
    return result, _timeline(spans, program, schedule)


def _ranks(mesh: Mesh) -> dict[int, int]:
    """The rank of each local device of the first pipeline, by the device's number in profiles."""
    here, devices = jax.process_index(), enumerate(first_pipeline(mesh))
    # Profiles of CPUs count the devices of all processes, others those of their own.
    number = lambda d: d.id if d.platform == "cpu" else d.local_hardware_id
    return {number(d): rank for rank, d in devices if d.process_index == here}


def _events(folder: str, operations: Collection[str]) -> list[tuple[int, str, Span]]:
    """(device, operation, span) of every run of an operation, by time."""
    found = []
    # On newer Pythons the reader's types warn, at their first use, that they have no module, and
    # where warnings are errors that would end the process.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for path in Path(folder).rglob("*.xplane.pb"):
            data = ProfileData.from_file(str(path))
            events = (e for plane in data.planes for line in plane.lines for e in line.events)
            for event in events:
                if event.name in operations:
                    device = int(dict(event.stats).get("device_ordinal", 0))
                    end = event.start_ns + event.duration_ns
                    found.append((device, event.name, (event.start_ns / 1e9, end / 1e9)))
    return sorted(found, key=lambda event: event[2])


def _by_tick(
    events: Sequence[tuple[int, str, Span]],
    operations: Mapping[str, Operation],
    num_ticks: int,
    ranks: Mapping[int, int],
) -> dict[tuple[int, int], list[Span]]:
    """(rank, branch) -> what happened at each tick."""
    loops: dict[tuple[int, str], list[Span]] = {}
    inside: dict[tuple[int, int], list[Span]] = {}
    for device, name, span in events:
        if device in ranks and operations[name].is_loop:
            loops.setdefault((ranks[device], name), []).append(span)
        elif device in ranks:
            inside.setdefault((ranks[device], operations[name].branch), []).append(span)
    found = {
        (rank, operations[name].branch): spans
        for (rank, name), spans in loops.items()
        if len(spans) == num_ticks
    }
    branches = {operation.branch for operation in operations.values()}
    if missing := {(r, b) for r in ranks.values() for b in branches} - found.keys():
        rank, branch = min(missing)
        raise JaxpipeError(
            f"the profile does not show branch {branch} of rank {rank} once a tick, {num_ticks}"
            " times. Timelines can be measured where the profiler records each operation, as it"
            " does on CPU."
        )
    return {key: _until_the_last(spans, inside.get(key, ())) for key, spans in found.items()}


def _until_the_last(loops: Sequence[Span], inside: Iterable[Span]) -> list[Span]:
    """The loop's spans, each as long as the last operation that began before the next one."""
    begins, ends = [begin for begin, _ in loops], [end for _, end in loops]
    for begin, end in inside:
        tick = max(0, bisect.bisect_right(begins, begin) - 1)
        ends[tick] = max(ends[tick], end)
    return list(zip(begins, ends, strict=True))


def _timeline(
    spans: Mapping[tuple[int, int], Sequence[Span]], program: Program, schedule: Schedule
) -> Timeline:
    """The spans of the branches that had something to do, by action; the first starts at 0."""
    starts: dict[Action, float] = {}
    ends: dict[Action, float] = {}
    for rank in {rank for rank, _ in spans}:
        for tick, action in enumerate(schedule.rows[rank]):
            branch = int(program.table["branch"][tick, rank])
            if action is None or branch == IDLE:  # a fused F runs with its B
                continue
            starts[action], ends[action] = spans[rank, branch][tick]
            if program.branches[branch - 1][0] == FUSED:
                forward = action._replace(op=Op.F)
                starts[forward] = ends[forward] = starts[action]
    if not starts:  # the first pipeline is other processes'
        return Timeline({}, {}, 0.0, 0.0, program.held)
    first = min(starts.values())
    starts = {action: start - first for action, start in starts.items()}
    ends = {action: end - first for action, end in ends.items()}
    makespan = max(ends.values())
    work = sum(ends[action] - starts[action] for action in starts)
    idle = max(0.0, 1 - work / (makespan * len({rank for rank, _ in spans})))
    return Timeline(starts, ends, makespan, idle, program.held)
