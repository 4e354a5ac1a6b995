"""A train step on paper and as it ran: its schedule, its costs, its measured times."""

import dataclasses
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxpipe.errors import JaxpipeError
from jaxpipe.schedules import (
    Lockstep,
    Op,
    Schedule,
    Timeline,
    dump,
    estimated_costs,
    parse,
    parse_action,
    simulate,
)
from jaxpipe.schedules.pictures import Chart, chart_of_times, charts_of_measured
from jaxpipe.schedules.simulate import held

_SLOW = 1.5  # times what its FLOPs suggest, of which a rank is told


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """A step of a run; JSON can hold it.

    Attributes:
      schedule: which rank does what at which tick.
      lockstep: how the ranks wait for each other.
      flops: of each stage's forward on a microbatch.
      recomputes: whether backwards begin with a forward.
      measured: timelines of steps, in seconds; none where none could be measured.
      hosts: for each rank the host that it runs on.
    """

    schedule: Schedule
    lockstep: Lockstep
    flops: tuple[float, ...]
    recomputes: bool
    measured: tuple[Timeline, ...] = ()
    hosts: tuple[str, ...] = ()

    @property
    def planned(self) -> Timeline:
        """The step on paper, in FLOPs."""
        costs = estimated_costs(self.flops, recomputes=self.recomputes)
        return simulate(self.schedule, costs, self.lockstep)

    @property
    def fastest(self) -> Timeline | None:
        """The measured step that took the least."""
        return min(self.measured, key=lambda timeline: timeline.makespan, default=None)

    def charts(self) -> list[Chart]:
        """What can be drawn on one axis: simulated and measured, or the step on paper alone."""
        if self.measured:
            return charts_of_measured(self.schedule, self.measured, self.lockstep)
        costs = estimated_costs(self.flops, recomputes=self.recomputes)
        scale = 1 / min(x for x in self.flops if x > 0) if any(self.flops) else 1.0
        return [chart_of_times(self.schedule, costs.scaled(scale), self.lockstep)]

    def slow_ranks(self) -> list[str]:
        """Ranks whose actions take much more time than their FLOPs suggest, in words.

        What counts is a rank's time for each FLOP, compared with the median of all ranks; of each
        op of a stage, the run that took the least, since others may have waited for a core.
        """
        if not self.measured:
            return []
        ratios = list(self._ratios())
        usual = statistics.median_low(ratios)
        words = []
        for rank, ratio in enumerate(ratios):
            if usual and ratio > _SLOW * usual:
                stages = [s for s, at in enumerate(self.schedule.placement) if at == rank]
                plural = "s" if len(stages) > 1 else ""
                host = f" on {self.hosts[rank]}" if rank < len(self.hosts) else ""
                words.append(
                    f"rank {rank}{host} (stage{plural} {', '.join(map(str, stages))}) takes"
                    f" {ratio / usual:.1f} times what its FLOPs suggest: its layers move more than"
                    " they compute, or its device is slow"
                )
        return words

    def _ratios(self) -> Iterator[float]:
        """Each rank's seconds for a FLOP."""
        least: dict[tuple[Op, int], float] = {}
        for timeline in self.measured:
            for action, start in timeline.starts.items():
                key, seconds = (action.op, action.stage), timeline.ends[action] - start
                least[key] = min(least.get(key, seconds), seconds)
        for rank in range(self.schedule.num_ranks):
            own = {stage for stage, at in enumerate(self.schedule.placement) if at == rank}
            flops = sum(self.flops[stage] for stage in own)
            seconds = sum(taken for (_, stage), taken in least.items() if stage in own)
            yield seconds / flops if flops else 0.0

    def write(self, path: Path) -> None:
        """Keeps it in a file.

        Raises:
          OSError: the file cannot be written.
          ScheduleError: the schedule's name cannot be written as text.
        """
        data = {
            "schedule": dump(self.schedule),
            "lockstep": dataclasses.asdict(self.lockstep),
            "flops": self.flops,
            "recomputes": self.recomputes,
            "hosts": self.hosts,
            "measured": [told(timeline) for timeline in self.measured],
        }
        path.write_text(json.dumps(data) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "StepRecord | None":
        """What a file keeps; None where there is none, or none that can be read."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            schedule = parse(data["schedule"])
            return cls(
                schedule,
                Lockstep(**data["lockstep"]),
                tuple(data["flops"]),
                data["recomputes"],
                tuple(heard(timeline, schedule) for timeline in data["measured"]),
                tuple(data["hosts"]),
            )
        except (OSError, ValueError, KeyError, TypeError, JaxpipeError):
            return None


def told(timeline: Timeline) -> dict[str, Any]:
    """A timeline as JSON can hold it."""
    spans = {str(a): (start, timeline.ends[a]) for a, start in timeline.starts.items()}
    return {"makespan": timeline.makespan, "bubble": timeline.bubble_fraction, "spans": spans}


def heard(data: Mapping[str, Any], schedule: Schedule) -> Timeline:
    """The timeline, of that schedule, that `told` has told."""
    spans: dict[str, Sequence[float]] = data["spans"]
    starts = {parse_action(name): begin for name, (begin, _) in spans.items()}
    ends = {parse_action(name): end for name, (_, end) in spans.items()}
    return Timeline(starts, ends, data["makespan"], data["bubble"], held(schedule))
