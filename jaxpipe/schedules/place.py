"""From orders to ticks, each action as early as its needs allow; and the placements of stages."""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise

from jaxpipe.errors import ScheduleError
from jaxpipe.schedules.table import Action, Order, Schedule, needs, ready


def place(
    order: Order,
    placement: Sequence[int],
    num_microbatches: int,
    *,
    name: str,
    latency: int = 0,
) -> Schedule:
    """Puts each rank's actions, in their order, at the earliest tick that their needs allow.

    What comes out is right in time; whether it is complete is for `verify` to say.

    Args:
      order: `order[rank]`, the rank's actions one after the other.
      placement: stage -> rank.
      num_microbatches: how many microbatches a batch is cut into.
      name: what to call the schedule.
      latency: extra ticks that a hop between ranks takes.

    Raises:
      ScheduleError: the ranks would wait for each other for ever; an action stands twice or on
        a stage that does not exist; or placement, latency or num_microbatches are out of range.

    >>> from jaxpipe.schedules.table import parse_action
    >>> order = [[parse_action(cell) for cell in row.split()] for row in ("0F0 0B0", "1F0 1B0")]
    >>> print(place(order, loop(2), 1, name="tiny"))
    tiny: 2 ranks, 2 stages, 1 microbatch, 4 ticks; bubble 50.0% at costs F=1 B=2
    rank 0 | F0 .  .  B0 | held 1
    rank 1 | .  F0 B0 .  | held 1
    """
    check_shape(placement, len(order), num_microbatches, latency)
    starts = earliest(order, placement, duration=lambda action: 1, hop=latency)
    num_ticks = 1 + int(max(starts.values(), default=-1))
    rows: list[list[Action | None]] = [[None] * num_ticks for _ in order]
    for row, actions in zip(rows, order, strict=True):
        for action in actions:
            row[int(starts[action])] = action
    return Schedule(name, tuple(placement), num_microbatches, tuple(map(tuple, rows)), latency)


def earliest(
    order: Order, placement: Sequence[int], *, duration: Callable[[Action], float], hop: float
) -> dict[Action, float]:
    """When each action starts if it starts once its rank is free and its needs have arrived.

    Args:
      order: `order[rank]`, the rank's actions one after the other.
      placement: stage -> rank.
      duration: what an action takes, in any unit of time.
      hop: what a value takes from one rank to another, in the same unit.

    Raises:
      ScheduleError: a deadlock; the message has each rank's next action and what it waits for.
        Or an action that stands twice, or on a stage that does not exist.
    """
    queues = [deque(actions) for actions in order]
    free: list[float] = [0] * len(order)
    starts: dict[Action, float] = {}
    ends: dict[Action, float] = {}
    progress = True
    while progress:
        progress = False
        for rank, queue in enumerate(queues):
            while queue and (at := ready(queue[0], placement, ends, hop)) is not None:
                action = queue.popleft()
                if action in ends:
                    raise ScheduleError(f"rank {rank}: {action} stands twice; keep one.")
                starts[action] = max(free[rank], at)
                ends[action] = free[rank] = starts[action] + duration(action)
                progress = True
    if any(queues):
        raise ScheduleError(_deadlock(queues, len(placement), ends))
    return starts


def _deadlock(queues: Sequence[deque[Action]], num_stages: int, ends: dict[Action, float]) -> str:
    """Says why no rank can go on."""
    lines = ["deadlock: no rank can run its next action."]
    for rank, queue in enumerate(queues):
        if not queue:
            lines.append(f"  rank {rank}: done")
            continue
        groups = needs(queue[0], num_stages)
        missing = next(group for group in groups if not any(need in ends for need in group))
        places = [
            f"{need} is number {queue.index(need) + 1} in the queue of rank {other}"
            for need in missing
            for other, queue in enumerate(queues)
            if need in queue
        ]
        wanted = " or ".join(map(str, missing))
        where = ", ".join(places) or "it is in no rank's order"
        lines.append(f"  rank {rank}: {queue[0]} waits for {wanted} ({where})")
    lines.append("Put each action behind what it needs, on every rank in the same sequence.")
    return "\n".join(lines)


# --- Placements -----------------------------------------------------------------------------------


def loop(num_ranks: int, num_chunks: int = 1) -> tuple[int, ...]:
    """Every chunk starts again at rank 0.

    >>> loop(4, num_chunks=2)
    (0, 1, 2, 3, 0, 1, 2, 3)

    Raises:
      ScheduleError: a count below 1.
    """
    _at_least_one(num_ranks=num_ranks, num_chunks=num_chunks)
    return tuple(range(num_ranks)) * num_chunks


def vee(num_ranks: int) -> tuple[int, ...]:
    """Down the ranks and back: first and last stage live on rank 0.

    >>> vee(4)
    (0, 1, 2, 3, 3, 2, 1, 0)

    Raises:
      ScheduleError: a count below 1.
    """
    _at_least_one(num_ranks=num_ranks)
    return (*range(num_ranks), *reversed(range(num_ranks)))


def check_shape(
    placement: Sequence[int], num_ranks: int, num_microbatches: int, latency: int
) -> None:
    """Checks what a schedule is besides its actions.

    Raises:
      ScheduleError: num_microbatches or latency is out of range; a stage lives on a rank that
        does not exist; a rank has no stage; or two stages in a row are not on the same rank or
        on neighbours on the ring of ranks, which are the only links the executor has.
    """
    _at_least_one(num_ranks=num_ranks, num_microbatches=num_microbatches)
    if latency < 0:
        raise ScheduleError(f"got latency={latency}; expected 0 or more extra ticks a hop.")
    for stage, rank in enumerate(placement):
        if not 0 <= rank < num_ranks:
            raise ScheduleError(
                f"stage {stage} is placed on rank {rank}; expected ranks 0 to {num_ranks - 1}, the"
                f" rows of the table. Change the placement {tuple(placement)} or add a row."
            )
    if idle := [rank for rank in range(num_ranks) if rank not in placement]:
        raise ScheduleError(
            f"rank {idle[0]} owns no stage in the placement {tuple(placement)}; expected at least"
            f" one stage on each of {num_ranks} ranks. Use fewer ranks or more stages."
        )
    for stage, (here, there) in enumerate(pairwise(placement)):
        if (there - here) % num_ranks not in (0, 1, num_ranks - 1):
            raise ScheduleError(
                f"stage {stage} is on rank {here} and stage {stage + 1} on rank {there}; expected"
                f" the same rank or neighbours on the ring of {num_ranks} ranks, since only"
                " neighbours are linked. Use loop() or vee(), or reorder the placement"
                f" {tuple(placement)}."
            )


def _at_least_one(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ScheduleError(f"got {name}={count}; expected at least 1.")
