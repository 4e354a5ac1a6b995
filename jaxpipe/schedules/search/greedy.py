"""List scheduling: whenever a rank is free, it starts the best of what it could start."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias

from jaxpipe.schedules.search.task import SLACK, Orders, Task
from jaxpipe.schedules.table import Action, Op

Ops: TypeAlias = Literal["1F1B", "bfw", "fbw", "bwf"]


class Policy(NamedTuple):
    """What a rank prefers.

    Attributes:
      ops: which op goes first; "1F1B" takes forward and backward in turn, others are in sequence
        (b for B or I, f for F, w for W).
      stages: of a rank's stages, the "deep" one first, the "shallow" one first, or by "groups" of
        as many microbatches as there are ranks.
      depth: for each rank the most microbatches between F and their backward, each stage counted.
      split: whether backward is split where memory allows.
      patience: how long a rank waits for a better action that is on its way, as a share of the
        worse one that it could start now.
    """

    ops: Ops = "bfw"
    stages: Literal["deep", "shallow", "groups"] = "deep"
    depth: tuple[float, ...] | None = None
    split: bool = True
    patience: float = 0.0


def greedy(task: Task, policy: Policy) -> Orders:
    """The order that a policy makes; it keeps within the limits and never deadlocks.

    A forward starts only where its microbatch could still run the rank's later stages after it, and
    each stage takes its microbatches in sequence: so the oldest can always go on. Every limit must
    hold one microbatch (`Kept.least`).
    """
    ranks = [_Rank(task, policy, rank) for rank in range(task.num_ranks)]
    arrived: dict[Action, float] = {}  # what has been started, by when its reader may start
    while True:
        rank = min(ranks, key=lambda r: (r.wakes, r.number))
        if math.isinf(rank.wakes):
            return [r.order for r in ranks]
        action = rank.choose(arrived)
        if action is not None:
            _send(task, ranks, arrived, action, rank.start(action))


def _send(
    task: Task, ranks: "Sequence[_Rank]", arrived: dict[Action, float], made: Action, end: float
) -> None:
    """Notes from when on the result can be read, and wakes the rank that reads it."""
    arrived[made] = end
    to = made.stage + (1 if made.op == Op.F else -1)
    if made.op == Op.W or not 0 <= to < len(task.placement):
        return
    target = task.placement[to]
    if target != task.placement[made.stage]:
        arrived[made] = end + task.costs.hop
    ranks[target].wake(arrived[made])


class _Rank:
    """One rank on its way through its actions."""

    def __init__(self, task: Task, policy: Policy, number: int):
        self.task, self.policy, self.number = task, policy, number
        self.stages = [s for s, rank in enumerate(task.placement) if rank == number]
        self.order: list[Action] = []
        self.wakes = 0.0  # when it looks for something to start
        self.busy = 0.0  # when its last action ends
        self.memory = 0.0
        self.held = 0  # microbatches between F and B or I
        self.forwards = dict.fromkeys(self.stages, 0)
        self.backwards = dict.fromkeys(self.stages, 0)
        self.weights: list[Action] = []  # W whose I has run, oldest first
        self.ends: dict[Action, float] = {}
        # By stage: what F and I add, and what F must leave free for the stages after it.
        self.adds = {(s, op): task.kept.by(Action(s, op, 0)) for s in self.stages for op in Op}
        self.later = {s: [other for other in self.stages if other > s] for s in self.stages}
        self.spare = {s: sum(self.adds[o, Op.F][0] for o in self.later[s]) for s in self.stages}

    def wake(self, at: float) -> None:
        """Looks again at that time, or once it is free."""
        self.wakes = min(self.wakes, max(at, self.busy))

    def choose(self, arrived: dict[Action, float]) -> Action | None:
        """What to start now, or `None` to look again when more has arrived."""
        now = self.wakes
        best: tuple[tuple[int, ...], Action] | None = None
        coming: list[tuple[int, float]] = []  # preference of op, when it could start
        for action in self._candidates():
            ready = self._ready(action, arrived)
            if ready is None:
                continue
            preference = self._preference(action.op)
            if ready > now:
                coming.append((preference, ready))
                continue
            key = (preference, *self._preference_of_stage(action))
            if best is None or key < best[0]:
                best = key, action
        if best is not None:
            (preference, *_), action = best
            patience = self.policy.patience * self.task.costs.of(action)
            better = [at for other, at in coming if other < preference and at - now < patience]
            if not better:
                return action
            coming = [(preference, min(better))]
        self.wakes = min((at for _, at in coming), default=math.inf)
        return None

    def start(self, action: Action) -> float:
        """Runs an action, and returns when it ends."""
        end = self.wakes + self.task.costs.of(action)
        stage, op, m = action
        self.order.append(action)
        self.memory += self.adds[stage, op][1]
        if op == Op.F:
            self.forwards[stage] += 1
            self.held += 1
        elif op == Op.W:
            self.weights.remove(action)
        else:
            self.backwards[stage] += 1
            self.held -= 1
            if op == Op.I:
                self.weights.append(Action(stage, Op.W, m))
        self.ends[action] = self.busy = self.wakes = end
        return end

    def _candidates(self) -> Iterator[Action]:
        """Each stage's next forward and backward, and the oldest weight gradient."""
        if self.weights:
            yield self.weights[0]
        for stage in self.stages:
            if self.backwards[stage] < self.forwards[stage]:
                action = Action(stage, Op.I if self.policy.split else Op.B, self.backwards[stage])
                if self._fits(action):
                    yield action
                elif not self.weights:  # nothing can make room but a full backward
                    yield action._replace(op=Op.B)
            if self.forwards[stage] < self.task.num_microbatches:
                action = Action(stage, Op.F, self.forwards[stage])
                if self._fits(action):
                    yield action

    def _fits(self, action: Action) -> bool:
        """Whether memory allows it, and the depth that the policy wants."""
        adds = self.adds[action.stage, action.op][0]
        if action.op == Op.F:
            adds += self.spare[action.stage]
            depth, later = self.policy.depth, len(self.later[action.stage])
            if depth is not None and self.held + 1 + later > depth[self.number]:
                return False
        return self.memory + adds <= self.task.limits[self.number] * (1 + SLACK)

    def _ready(self, action: Action, arrived: dict[Action, float]) -> float | None:
        """When all that it needs is here, or `None` if that is not known yet."""
        at = 0.0
        for group in self.task.needs(action):
            here = [
                self.ends[need] if need.stage == action.stage else arrived[need]
                for need in group
                if need in arrived
            ]
            if not here:
                return None
            at = max(at, min(here))
        return at

    def _preference(self, op: Op) -> int:
        """Which op goes first: the smaller."""
        letter = {Op.F: "f", Op.W: "w"}.get(op, "b")
        if self.policy.ops != "1F1B":
            return self.policy.ops.index(letter)
        last = next((a.op for a in reversed(self.order) if a.op != Op.W), Op.B)
        return ("bfw" if last == Op.F else "fbw").index(letter)

    def _preference_of_stage(self, action: Action) -> tuple[int, ...]:
        """Which of two actions of one op goes first: the smaller."""
        stage, op, m = action
        match self.policy.stages:
            case "deep":
                return (-stage, m)
            case "shallow":
                return (stage, m)
            case _:
                return (m // self.task.num_ranks, stage if op == Op.F else -stage, m)


# --- Policies -------------------------------------------------------------------------------------


def policies(task: Task, split: bool) -> Iterator[Policy]:
    """A variety to start from: every sequence of ops at every depth, with and without the split."""
    sequences: tuple[Ops, ...] = ("1F1B", "bfw", "fbw", "bwf")
    for halves, depth, ops in itertools.product((True, False), _depths(task), sequences):
        if halves <= split and (halves or ops != "bwf"):  # without W, bwf is bfw
            yield Policy(ops=ops, depth=depth, split=halves)


def variants(policy: Policy) -> Iterator[Policy]:
    """A policy's relatives, with other preferences among stages and more patience."""
    for stages in ("deep", "shallow", "groups"):
        for patience in (0.0, 0.3, 0.7, 1.0):
            yield policy._replace(stages=stages, patience=patience)


def _depths(task: Task) -> list[tuple[float, ...] | None]:
    """How many microbatches each rank may have under way: sloping to the last, flat, and all."""
    ranks = range(task.num_ranks)
    chunks = [task.placement.count(rank) for rank in ranks]
    most = max(chunks) * task.num_ranks
    sloping = [
        [slope * (task.num_ranks - 1 - rank) + most - task.num_ranks + more for rank in ranks]
        for slope in (1, 2)
        for more in (1, 2, 3)
    ]
    flat = [[most * share // 6 + 1 for _ in ranks] for share in (2, 3, 4, 5, 7, 8, 9)]
    # A rank must be able to run one microbatch through all of its stages, and memory or the batch
    # may end before the depth does.
    most_held = [_most_held(task, rank) for rank in ranks]
    depths = [
        tuple(min(max(pair), end) for *pair, end in zip(depth, chunks, most_held, strict=True))
        for depth in (*sloping, *flat)
    ]
    return [None, *dict.fromkeys(depth for depth in depths if depth != tuple(most_held))]


def _most_held(task: Task, rank: int) -> float:
    """How many microbatches a rank could hold at most, each stage counted."""
    stages = [stage for stage, owner in enumerate(task.placement) if owner == rank]
    smallest = min(task.kept.by(Action(stage, Op.F, 0))[0] for stage in stages)
    everything = len(stages) * task.num_microbatches
    room = task.limits[rank] * (1 + SLACK)
    return everything if smallest * everything <= room else room // smallest
