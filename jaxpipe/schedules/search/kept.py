"""The bytes that each rank keeps while it runs its actions."""

import dataclasses
from collections.abc import Iterable, Sequence

from jaxpipe.schedules.simulate import Cost, at_stage
from jaxpipe.schedules.table import Action, Op, Schedule


@dataclasses.dataclass(frozen=True)
class Kept:
    """What one microbatch leaves behind in a stage, in any unit; a sequence for unequal stages.

    Attributes:
      F: what F keeps for the backward: until B or I has run.
      I: what I keeps for the weight gradient, in place of what F kept: until W has run.
    """

    F: Cost = 1.0
    I: Cost = 1.0

    def by(self, action: Action) -> tuple[float, float]:
        """What an action adds to what its rank keeps: while it runs, and from then on."""
        of_forward, of_input = at_stage(self.F, action.stage), at_stage(self.I, action.stage)
        match action.op:
            case Op.F:
                return of_forward, of_forward
            case Op.I:
                return max(0.0, of_input - of_forward), of_input - of_forward
            case Op.W:
                return 0.0, -of_input
            case _:
                return 0.0, -of_forward

    def peak(self, actions: Iterable[Action]) -> float:
        """The most that a rank keeps at once while it runs these, one after the other."""
        now = most = 0.0
        for action in actions:
            while_running, after = self.by(action)
            most = max(most, now + while_running)
            now += after
        return most

    def peaks(self, schedule: Schedule) -> tuple[float, ...]:
        """The most that each rank keeps at once.

        >>> from jaxpipe.schedules.families.one_f_one_b import one_f_one_b
        >>> Kept(F=100).peaks(one_f_one_b(3, 8))
        (300.0, 200.0, 100.0)
        """
        return tuple(self.peak(actions) for actions in schedule.order)

    def least(self, placement: Sequence[int]) -> tuple[float, ...]:
        """What each rank must be able to keep at least: one microbatch in all of its stages.

        A microbatch's first backward on a rank comes after all of its forwards there.
        """
        kept = [0.0] * (1 + max(placement))
        for stage, rank in enumerate(placement):
            kept[rank] += at_stage(self.F, stage)
        return tuple(kept)
