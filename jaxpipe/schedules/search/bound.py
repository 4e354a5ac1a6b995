"""How fast any schedule could be, whatever its order."""

import math
from collections.abc import Sequence
from itertools import pairwise

from jaxpipe.schedules.search.kept import Kept
from jaxpipe.schedules.search.task import SLACK
from jaxpipe.schedules.simulate import Costs, at_stage
from jaxpipe.schedules.table import Action, Op


def lower_bound(
    placement: Sequence[int],
    num_microbatches: int,
    costs: Costs,
    *,
    kept: Kept | None = None,
    limits: Sequence[float] | None = None,
    split: bool = True,
) -> float:
    """A makespan that no schedule on free ranks beats.

    The longest of these. One microbatch goes through all stages and back. A rank waits for its
    first microbatch, then does all of its work; or all but weight gradients, and the stages below
    have theirs to do after its last. Or it waits for its first gradient: before, it can only run
    forwards, as many as memory holds. And where memory does not hold all microbatches, it waits
    once more, for the gradient of its last forward: in the meantime it can only finish what it
    still holds.

    Args:
      placement: stage -> rank.
      num_microbatches: how many microbatches a batch is cut into.
      costs: what each op takes; a sequence has one for each stage.
      kept: what F keeps, where memory is limited.
      limits: what each rank may keep.
      split: whether backward may be split in two.

    >>> lower_bound((0, 1, 2, 3), 8, Costs(F=1, B=2, I=1, W=1))
    27.0
    """
    way = _Way(placement, costs, split)
    updates = costs.updates(placement, 1 + max(placement))
    bounds = [way.back(0) + way.whole[0] + updates[placement[0]]]
    for rank, update in enumerate(updates):
        stages = [stage for stage, owner in enumerate(placement) if owner == rank]
        first, last = min(stages), max(stages)
        forward = num_microbatches * sum(way.forward[s] for s in stages)
        whole = forward + num_microbatches * sum(way.whole[s] for s in stages)
        passed = forward + num_microbatches * sum(way.passed[s] for s in stages)
        room = None if limits is None or kept is None else limits[rank]
        first_gap = way.back(last) - _early(way, stages, num_microbatches, kept, room)
        last_gap = _last_gap(way, stages, num_microbatches, kept, room)
        bounds += [
            way.there(first) + whole + update,
            way.there(first) + passed + way.tail(first) + updates[placement[0]],
            max(0.0, first_gap) + whole + last_gap + update,
            first_gap + passed + way.tail(first) + updates[placement[0]],
        ]
    return max(bounds)


class _Way:
    """What a microbatch needs to get to places."""

    def __init__(self, placement: Sequence[int], costs: Costs, split: bool):
        stages = range(len(placement))
        take = lambda op, stage: costs.of(Action(stage, op, 0))
        both = lambda stage: take(Op.I, stage) + take(Op.W, stage)
        self.hops = [costs.hop * (a != b) for a, b in pairwise(placement)]
        self.forward = [take(Op.F, s) for s in stages]
        self.whole = [min(take(Op.B, s), both(s)) if split else take(Op.B, s) for s in stages]
        self.weight = [take(Op.W, s) if split else 0.0 for s in stages]
        self.passed = [
            min(take(Op.B, s), take(Op.I, s)) if split else take(Op.B, s) for s in stages
        ]

    def there(self, stage: int) -> float:
        """Until its forward of a stage may begin."""
        return sum(self.forward[:stage]) + sum(self.hops[:stage])

    def back(self, stage: int) -> float:
        """Until its backward of a stage may begin."""
        there = sum(self.forward) + sum(self.hops)
        return there + sum(self.passed[stage + 1 :]) + sum(self.hops[stage:])

    def round_trip(self, stage: int) -> float:
        """From the end of its forward of a stage to where its backward there may begin."""
        later = slice(stage + 1, None)
        return sum(self.forward[later]) + sum(self.passed[later]) + 2 * sum(self.hops[stage:])

    def tail(self, stage: int) -> float:
        """From the end of its backward of a stage, weight gradients aside, to the end of all."""
        if stage == 0:
            return self.whole[0] - self.passed[0]
        return sum(self.passed[1:stage]) + sum(self.hops[:stage]) + self.whole[0]


def _early(
    way: _Way, stages: Sequence[int], num_microbatches: int, kept: Kept | None, room: float | None
) -> float:
    """The most that a rank's forwards can take before its first backward."""
    if kept is None or room is None:
        return num_microbatches * sum(way.forward[s] for s in stages)
    bytes_of = lambda stage: at_stage(kept.F, stage)
    if len(stages) == 1 and bytes_of(stages[0]) > 0:  # whole microbatches; else shares of some
        room = bytes_of(stages[0]) * math.floor(room / bytes_of(stages[0]) * (1 + SLACK))
    total = 0.0
    for stage in sorted(stages, key=lambda s: _ratio(way.forward[s], bytes_of(s)), reverse=True):
        size = bytes_of(stage)
        count = num_microbatches if size <= 0 else min(num_microbatches, room / size)
        total += count * way.forward[stage]
        room -= count * size
    return total


def _last_gap(
    way: _Way, stages: Sequence[int], num_microbatches: int, kept: Kept | None, room: float | None
) -> float:
    """What a rank must wait for the gradient of its last forward, if not all fits into memory."""
    last = max(stages)
    bytes_of = lambda stage: at_stage(kept.F, stage) if kept is not None else 0.0
    all_forwards = num_microbatches * sum(map(bytes_of, stages))
    if kept is None or room is None or room * (1 + SLACK) >= all_forwards:
        return 0.0  # all forwards may come before the first gap: then there is no other
    # What it holds beside the last forward, each with all of its backward or only W still to do.
    best = max(
        max(
            _ratio(way.whole[s], bytes_of(s)),
            _ratio(way.whole[s] - way.passed[s], at_stage(kept.I, s)),
            _ratio(way.weight[s], at_stage(kept.I, s)),
        )
        for s in stages
    )
    if math.isinf(best):
        return 0.0
    return max(0.0, way.round_trip(last) - best * (room - bytes_of(last)))


def _ratio(time: float, size: float) -> float:
    if size > 0:
        return time / size
    return math.inf if time > 0 else 0.0
