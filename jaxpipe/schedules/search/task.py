"""What a search schedules, and a quick way to time and weigh orders of it."""

import dataclasses
import random
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from jaxpipe.schedules.search.kept import Kept
from jaxpipe.schedules.simulate import Costs
from jaxpipe.schedules.table import Action, Op, needs

Orders: TypeAlias = list[list[Action]]
"""`order[rank]`, as in `Order`."""

SLACK = 1e-9
"""Sums of costs in another sequence differ by this share at most."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be scheduled.

    Attributes:
      placement: stage -> rank.
      num_microbatches: how many microbatches a batch is cut into.
      costs: what each op takes.
      kept: what microbatches leave behind.
      limits: what each rank may keep at once.
    """

    placement: tuple[int, ...]
    num_microbatches: int
    costs: Costs
    kept: Kept
    limits: tuple[float, ...]
    _needs: dict[Action, tuple[tuple[Action, ...], ...]] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def num_ranks(self) -> int:
        """How many ranks there are."""
        return 1 + max(self.placement)

    def needs(self, action: Action) -> tuple[tuple[Action, ...], ...]:
        """As `table.needs`, looked up thousands of times."""
        if action not in self._needs:
            self._needs[action] = needs(action, len(self.placement))
        return self._needs[action]


class _Facts(NamedTuple):
    """What is looked up again and again of an action."""

    slot: int  # B and I of a stage and microbatch share one
    takes: float
    needs: tuple[tuple[int, float], ...]  # (slot, hop) of all that comes before
    adds: float  # bytes
    leaves: float  # bytes


class Watch:
    """Times and weighs orders of one task on free ranks, thousands of them."""

    def __init__(self, task: Task):
        self.task = task
        self.updates = task.costs.updates(task.placement, task.num_ranks)
        stages, microbatches = range(len(task.placement)), range(task.num_microbatches)
        self.facts = {
            action: self._look_up(action)
            for action in (Action(s, op, m) for s in stages for op in Op for m in microbatches)
        }

    def _look_up(self, action: Action) -> _Facts:
        placement = self.task.placement
        before = {
            self._slot(need): self.task.costs.hop * (placement[need.stage] != placement[action[0]])
            for group in self.task.needs(action)
            for need in group
        }
        takes, kept = self.task.costs.of(action), self.task.kept.by(action)
        return _Facts(self._slot(action), takes, tuple(before.items()), *kept)

    def _slot(self, action: Action) -> int:
        kind = {Op.F: 0, Op.W: 2}.get(action.op, 1)
        return (action.stage * self.task.num_microbatches + action.microbatch) * 3 + kind

    def ends(self, order: Orders) -> list[float] | None:
        """When each slot's action ends on free ranks, or `None` in a deadlock."""
        never = -1.0
        ends = [never] * (3 * len(self.task.placement) * self.task.num_microbatches)
        queues = [iter([self.facts[action] for action in actions]) for actions in order]
        heads = [next(queue, None) for queue in queues]
        free = [0.0] * len(order)
        progress = True
        while progress:
            progress = False
            for rank, queue in enumerate(queues):
                head, at = heads[rank], free[rank]
                while head is not None:
                    start = at
                    for slot, hop in head.needs:
                        end = ends[slot]
                        if end == never:
                            break
                        if end + hop > start:
                            start = end + hop
                    else:
                        at = ends[head.slot] = start + head.takes
                        head, progress = next(queue, None), True
                        continue
                    break
                heads[rank], free[rank] = head, at
        return None if any(head is not None for head in heads) else ends

    def score(self, order: Orders, ends: Sequence[float]) -> tuple[float, float]:
        """The makespan, and then how early the ranks are done all together."""
        done = [
            ends[self.facts[actions[-1]].slot] + update
            for actions, update in zip(order, self.updates, strict=True)
        ]
        return max(done), sum(done)

    def fits(self, rank: int, actions: Sequence[Action]) -> bool:
        """Whether a rank's limit is kept."""
        now, most = 0.0, self.task.limits[rank] * (1 + SLACK)
        for action in actions:
            facts = self.facts[action]
            if now + facts.adds > most:
                return False
            now += facts.leaves
        return True

    def critical(
        self, order: Orders, ends: Sequence[float], draw: random.Random
    ) -> list[tuple[int, int]]:
        """Where on a critical path an action waits only for the one before it on its rank."""
        at = {
            self.facts[a].slot: (r, i)
            for r, actions in enumerate(order)
            for i, a in enumerate(actions)
        }
        last = [
            ends[self.facts[actions[-1]].slot] + self.updates[r] for r, actions in enumerate(order)
        ]
        rank, slack = last.index(max(last)), SLACK * max(last)
        i, places = len(order[rank]) - 1, []
        while True:
            facts = self.facts[order[rank][i]]
            start = ends[facts.slot] - facts.takes - slack
            causes = [slot for slot, hop in facts.needs if ends[slot] + hop >= start]
            before = self.facts[order[rank][i - 1]].slot if i else None
            if before is not None and before not in causes and ends[before] >= start:
                places.append((rank, i))
                causes.append(before)
            if not causes or start <= 0:
                return places
            rank, i = at[draw.choice(causes)]
