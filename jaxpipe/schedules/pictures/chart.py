"""One chart of a picture: bars on one axis of time, and the words above them."""

import dataclasses
from collections.abc import Sequence

from jaxpipe.errors import ScheduleError
from jaxpipe.schedules.draw import describe, summarise
from jaxpipe.schedules.measured import measured_costs
from jaxpipe.schedules.pictures.bars import Bar, bars_of_ticks, bars_of_times
from jaxpipe.schedules.simulate import Costs, Lockstep, Timeline, simulate
from jaxpipe.schedules.table import Schedule


@dataclasses.dataclass(frozen=True)
class Chart:
    """Bars with a title; several charts of a picture stand under each other on the same scale.

    A measured timeline is drawn beside the simulated one as two charts in the same unit.

    Attributes:
      title: what is shown.
      note: the numbers that belong to it.
      placement: `placement[stage]` is the rank that owns the stage.
      num_ranks: how many ranks have a row.
      bars: what runs when.
      unit: what the axis counts, such as "ticks" or "ms".
      microseconds: how long a unit is in a trace.
    """

    title: str
    note: str
    placement: tuple[int, ...]
    num_ranks: int
    bars: tuple[Bar, ...]
    unit: str
    microseconds: float = 1000.0

    @property
    def end(self) -> float:
        """When the last action ends."""
        return max((bar.end for bar in self.bars), default=0.0)

    def chunk(self, stage: int) -> int:
        """Which of its rank's stages a stage is, from 0."""
        # A drawing may be wrong: there may be no such stage.
        owner = self.placement[stage : stage + 1]
        return self.placement[:stage].count(owner[0]) if owner else 0

    def row(self, rank: int) -> list[Bar]:
        """The bars of a rank, by time."""
        return sorted(bar for bar in self.bars if bar.rank == rank)


def chart_of_ticks(
    schedule: Schedule, costs: Costs | None = None, lockstep: Lockstep | None = None
) -> Chart:
    """The table as it stands. Costs and lockstep are for the numbers in the title alone."""
    return Chart(
        title=describe(schedule),
        note=summarise(schedule, costs, lockstep),
        placement=schedule.placement,
        num_ranks=schedule.num_ranks,
        bars=bars_of_ticks(schedule),
        unit="ticks",
    )


def chart_of_times(
    schedule: Schedule, costs: Costs | None = None, lockstep: Lockstep | None = None
) -> Chart:
    """The schedule as it runs on paper, in the unit of time of its costs.

    Raises:
      ScheduleError: the schedule deadlocks, or the costs do not fit its stages.
    """
    return Chart(
        title=describe(schedule),
        note=summarise(schedule, costs, lockstep),
        placement=schedule.placement,
        num_ranks=schedule.num_ranks,
        bars=bars_of_times(schedule, simulate(schedule, costs, lockstep)),
        unit="time",
    )


def charts_of_measured(
    schedule: Schedule, timelines: Sequence[Timeline], lockstep: Lockstep
) -> list[Chart]:
    """Two charts in seconds: the fastest of some steps, and the step simulated with their costs.

    Args:
      schedule: what ran.
      timelines: of its steps, in seconds.
      lockstep: the loop that it ran in.
    """
    measured = min(timelines, key=lambda timeline: timeline.makespan)
    simulated = simulate(schedule, measured_costs(schedule, timelines), lockstep)
    return [
        Chart(
            title=f"{describe(schedule)}: {what}",
            note=f"{1000 * timeline.makespan:.4g} ms; bubble {timeline.bubble_fraction:.1%}",
            placement=schedule.placement,
            num_ranks=schedule.num_ranks,
            bars=bars_of_times(schedule, timeline),
            unit="s",
            microseconds=1e6,
        )
        for what, timeline in (("simulated", simulated), ("measured", measured))
    ]


def same_unit(charts: Sequence[Chart]) -> None:
    """Checks that charts can stand under each other on one scale.

    Raises:
      ScheduleError: there is no chart, or their units differ.
    """
    units = {chart.unit for chart in charts}
    if len(units) != 1:
        raise ScheduleError(
            f"got charts in {sorted(units)}; expected one or more, all in the same unit."
        )
