"""Fills the gaps of an order with weight gradients, and keeps what ranks hold within a limit."""

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence

from jaxpipe.errors import ScheduleError
from jaxpipe.schedules.table import Action, Op, Order, ready

_TICKS = {Op.F: 1, Op.I: 1, Op.W: 1, Op.B: 2}
# A forward that runs before its turn leaves so many places free, for what has its turn.
_SPARE = 2


def fill(
    turns: Order, placement: Sequence[int], *, limit: int, full_first: bool = True
) -> list[list[Action]]:
    """Runs what has its turn, and while that waits, something else.

    The turns say in which sequence F, I and B come up; a W comes up once its I has run. Whenever a
    rank is free, it takes what is next. If that is not ready, or a forward for which there is no
    place, then: while the pipeline fills (its first stage has run no backward yet) or empties (no
    forwards are left), the next of another stage or op; else the oldest W; else it waits.

    Args:
      turns: by rank, its forwards and backwards; the microbatches of a stage and op ascend.
      placement: stage -> rank.
      limit: how many microbatches a rank may hold, counted for each of its stages.
      full_first: a rank that is full, with forwards to come, runs a W before anything else. This
        costs nothing where I has time, and a forward of one rank then runs at the tick of an
        input gradient of the next: the two meet once instead of twice. Without it, W only fills.

    Raises:
      ScheduleError: the limit is too low for these turns.

    >>> from jaxpipe.schedules.table import parse_action
    >>> turns = [[parse_action(cell) for cell in "0F0 0I0 0F1 0I1".split()]]
    >>> print(*fill(turns, (0,), limit=2)[0])
    0F0 0I0 0F1 0I1 0W0 0W1
    >>> print(*fill(turns, (0,), limit=1)[0])
    0F0 0I0 0W0 0F1 0I1 0W1
    """
    ranks = [_Rank.start(actions) for actions in turns]
    ends: dict[Action, float] = {}
    tick = 0
    while any(rank.queues or rank.weights for rank in ranks):
        for rank in ranks:
            if rank.free > tick:
                continue
            arrived = lambda action, now=tick: _by(now, ready(action, placement, ends, 0))
            if action := rank.choose(limit, full_first, arrived):
                rank.run(action, tick)
                ends[action] = rank.free
        tick += 1
        if all(rank.free < tick for rank in ranks):  # nobody began anything, nobody is at work
            raise ScheduleError(
                f"deadlock: no rank can go on within limit={limit}; the ranks hold"
                f" {', '.join(str(rank.held) for rank in ranks)}. Raise the limit."
            )
    return [rank.order for rank in ranks]


def _by(tick: int, at: float | None) -> bool:
    return at is not None and at <= tick


@dataclasses.dataclass
class _Rank:
    """What a rank has yet to do, and what it has done."""

    queues: dict[tuple[int, Op], deque[tuple[int, Action]]]  # by stage and op: (turn, action)
    weights: deque[Action] = dataclasses.field(default_factory=deque)  # W whose I has run
    order: list[Action] = dataclasses.field(default_factory=list)
    held: int = 0
    free: int = 0
    filled: bool = False

    @classmethod
    def start(cls, actions: Sequence[Action]) -> "_Rank":
        """Nothing has run yet."""
        queues: dict[tuple[int, Op], deque[tuple[int, Action]]] = {}
        for turn, action in enumerate(actions):
            queues.setdefault((action.stage, action.op), deque()).append((turn, action))
        return cls(queues)

    def choose(
        self, limit: int, full_first: bool, arrived: Callable[[Action], bool]
    ) -> Action | None:
        """What to run now, if there is anything."""
        forwards = any(op == Op.F for _, op in self.queues)
        if full_first and forwards and self.weights and self.held >= limit:
            return self.weights[0]
        strict = self.filled and forwards
        turns = sorted(queue[0] for queue in self.queues.values())
        for place, (_, action) in enumerate(turns[:1] if strict else turns):
            most = limit - (_SPARE if place else 0)
            if (action.op != Op.F or self.held < most) and arrived(action):
                return action
        return self.weights[0] if self.weights else None

    def run(self, action: Action, tick: int) -> None:
        """Runs an action that was chosen."""
        stage, op, microbatch = action
        if op == Op.W:
            self.weights.popleft()
        else:
            queue = self.queues[stage, op]
            queue.popleft()
            if op != Op.F and stage == min(stage for stage, _ in self.queues):
                self.filled = True
            if not queue:
                del self.queues[stage, op]
        if op == Op.I:
            self.weights.append(Action(stage, Op.W, microbatch))
        self.held += {Op.F: 1, Op.I: 0, Op.B: -1, Op.W: -1}[op]
        self.order.append(action)
        self.free = tick + _TICKS[op]
